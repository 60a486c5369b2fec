//! The power goes while a run writes: whatever of it was not synced is lost or cut short, and the run goes on from the newest
//! checkpoint that was, to the same last weights.
//!
//! The image of a moment is a copy of the folder while all of the run's processes stand still. It is then made worse than a
//! power cut may: the store's log loses a part of what was appended since training began, the newest checkpoint perhaps its
//! COMMIT, torn saves any of their files, and what is never synced is emptied, zeroed or gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::run::{Run, shown};

/// Numbers that look random.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

/// A copy of all files at one moment.
fn image(run: &Run, to: &Path) {
    let all = [run.worker(0), run.worker(1), run.controller()];
    all.iter().for_each(|process| kill_process(*process, Signal::STOP).unwrap());
    all.iter().for_each(|process| until_still(*process));
    copy(run.folder(), to);
    all.iter().rev().for_each(|process| kill_process(*process, Signal::CONT).unwrap());
}

/// Waits until no thread of a process runs; one that is in the middle of a system call ends that first.
fn until_still(process: Pid) {
    let still = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with(['T', 't', 'Z', 'X']))
    };
    let threads = format!("/proc/{}/task", process.as_raw_nonzero());
    let begun = Instant::now();
    while !fs::read_dir(&threads).unwrap().flatten().all(still) {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not stand still");
        std::thread::yield_now();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn cut(file: &Path, chance: &mut Chance) {
    let length = fs::metadata(file).unwrap().len();
    match chance.below(4) {
        0 => {}
        1 => fs::write(file, "").unwrap(),
        2 => fs::write(file, vec![0; length as usize]).unwrap(),
        _ => fs::remove_file(file).unwrap(),
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Loses what a power cut may take; `log` is how long the store's log was when training was under way. Returns the newest
/// checkpoint that is left.
fn lose(run: &Path, log: u64, chance: &mut Chance) -> Option<String> {
    let wal = run.join("run.db-wal");
    let length = fs::metadata(&wal).unwrap().len();
    let kept = log + chance.below(length - log + 1);
    fs::OpenOptions::new().write(true).open(&wal).unwrap().set_len(kept).unwrap();
    // Never synced: an index of the log in shared memory, the configuration, copies and hints.
    for name in ["run.db-shm", "config.ron", "env.json", "LATEST"] {
        let file = run.join(name);
        if name == "run.db-shm" {
            fs::remove_file(&file).unwrap();
        } else if file.exists() {
            cut(&file, chance);
        }
    }
    let mut saves = files(&run.join("checkpoints"));
    saves.retain(|folder| folder.is_dir());
    // By step, as there is only one generation.
    let newest = saves.iter().rfind(|folder| folder.join("COMMIT").exists()).cloned();
    if let Some(newest) = newest.filter(|_| chance.below(2) == 0) {
        fs::remove_file(newest.join("COMMIT")).unwrap();
    }
    for torn in saves.iter().filter(|folder| !folder.join("COMMIT").exists()) {
        files(torn).iter().for_each(|file| cut(file, chance));
    }
    let left = saves.iter().rfind(|folder| folder.join("COMMIT").exists())?;
    Some(left.file_name().unwrap().to_str().unwrap().to_owned())
}

#[test]
fn after_a_power_cut_at_any_moment_the_run_ends_with_the_same_bits() {
    let rounds = std::env::var("REGATTA_POWER_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let storage = tempfile::tempdir().unwrap();
    let mut run = Run::start(storage.path(), "powered", 2);
    run.well_under_way(Duration::ZERO);
    let begun = storage.path().join("begun");
    image(&run, &begun);
    let (store, log) =
        (fs::read(begun.join("run.db")).unwrap(), fs::metadata(begun.join("run.db-wal")).unwrap().len());
    let mut images = Vec::new();
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(40 + 37 * (round % 7)));
        if run.is_over() {
            break;
        }
        let folder = storage.path().join(format!("images/{round}"));
        image(&run, &folder);
        // What was moved from the log into the store itself was synced before: then none of the log may be missing.
        let moved = fs::read(folder.join("run.db")).unwrap() != store;
        images.push((folder, if moved { u64::MAX } else { log }));
    }
    let calm = run.hash();
    assert!(images.len() >= 3, "only {} images", images.len());
    for (round, (folder, log)) in (0..).zip(images) {
        let length = fs::metadata(folder.join("run.db-wal")).unwrap().len();
        let left = lose(&folder, log.min(length), &mut Chance(round));
        assert_eq!(Run::of(&folder, &[]).hash(), calm, "image {round}, from {left:?}");
        let shown = shown(&folder);
        let last = shown["attempts"].as_array().unwrap().last().unwrap();
        assert_eq!(last["row"]["restored"].as_str(), left.as_deref(), "image {round}: {shown}");
        assert_eq!(last["row"]["outcome"], "completed", "image {round}: {shown}");
    }
}
