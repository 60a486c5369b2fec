//! What saving and loading 1 GB cost here. `cargo xtask bench checkpoint` runs it side by side with its peers.
//!
//!     checkpoint FOLDER
//!
//! Reads lines `<what>_<pieces>` from stdin (`blocked`, `save`, `load`, `view`, `memcpy`; `62` or `10k` pieces) and answers
//! each with one line: the seconds it took.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_checkpoint::*;

const TOTAL: usize = 1_000_000_000;
const LIMIT: Duration = Duration::from_secs(600);

/// A model of so many tensors, in sizes as a network has them, and a saver that is kept.
struct Bench {
    names: Vec<String>,
    shapes: Vec<Vec<u64>>,
    data: Vec<Vec<u8>>,
    copy: Vec<u8>,
    store: Arc<dyn Store>,
    saver: Saver,
    step: u64,
}

impl Bench {
    fn new(folder: &Path, pieces: usize) -> Result<Bench> {
        let folder = folder.join(pieces.to_string());
        let store = store::open(folder.to_str().expect("a folder with a plain name"))?;
        let config = SaverConfig { retention: Retention::last(2), ..SaverConfig::default() };
        let saver = config.build(store.clone(), Arc::new(Solo))?;
        let sizes = sizes(pieces);
        let data = sizes.iter().map(|&size| random(size)).collect();
        Ok(Bench {
            names: (0..pieces).map(|i| format!("layers.{i}.weight")).collect(),
            shapes: sizes.iter().map(|&size| vec![size as u64 / 4]).collect(),
            data,
            copy: vec![1; sizes.iter().sum()],
            store,
            saver,
            step: 0,
        })
    }

    fn save(&mut self) -> Result<SaveReport> {
        let tensors: Vec<Tensor<'_>> = (0..self.names.len())
            .map(|i| Tensor::replicated(&self.names[i], Dtype::F32, &self.shapes[i], &self.data[i]))
            .collect();
        self.step += 1;
        let saved = self.saver.save(&Save::new(self.step, &tensors))?.wait(LIMIT)?;
        // The old one is removed outside of anybody's time.
        self.saver.finish(LIMIT)?;
        Ok(saved.expect("nothing is skipped"))
    }

    /// Seconds the step is stopped: the whole call, planning included.
    fn blocked(&mut self) -> Result<f64> {
        let tensors: Vec<Tensor<'_>> = (0..self.names.len())
            .map(|i| Tensor::replicated(&self.names[i], Dtype::F32, &self.shapes[i], &self.data[i]))
            .collect();
        self.step += 1;
        self.saver.finish(LIMIT)?;
        let start = Instant::now();
        let saved = self.saver.save(&Save::new(self.step, &tensors))?;
        let seconds = start.elapsed().as_secs_f64();
        saved.wait(LIMIT)?;
        self.saver.finish(LIMIT)?;
        Ok(seconds)
    }

    /// One memcpy of the same bytes into memory that is there, on one thread.
    fn memcpy(&mut self) -> f64 {
        let start = Instant::now();
        let mut to = &mut self.copy[..];
        for from in &self.data {
            let (now, rest) = to.split_at_mut(from.len());
            now.copy_from_slice(from);
            to = rest;
        }
        black_box(&self.copy);
        start.elapsed().as_secs_f64()
    }

    /// Finds the newest, verifies all of it and copies every tensor into memory of its own.
    fn load(&self) -> Result<f64> {
        let start = Instant::now();
        let found = recover::newest(self.store.clone(), Verify::OnRead)?;
        let mut out: Vec<Vec<u8>> = self.data.iter().map(|data| vec![0; data.len()]).collect();
        let mut targets: Vec<Target<'_>> =
            out.iter_mut().zip(&self.names).map(|(to, name)| Target { name, region: None, to }).collect();
        found.checkpoint.read_into(&mut targets, 0)?;
        let seconds = start.elapsed().as_secs_f64();
        assert!(out == self.data, "what is loaded is what was saved");
        Ok(seconds)
    }

    /// Finds the newest, verifies all of it and hands out mapped tensors.
    fn view(&self) -> Result<f64> {
        let start = Instant::now();
        let found = recover::newest(self.store.clone(), Verify::Full)?;
        for name in &self.names {
            black_box(found.checkpoint.tensor(name)?.first());
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Sizes that differ by factors, a multiple of four each, 1 GB in all.
fn sizes(pieces: usize) -> Vec<usize> {
    let weights: Vec<usize> = (0..pieces).map(|i| 1 + (i * 7) % 13).collect();
    let sum: usize = weights.iter().sum();
    weights.iter().map(|weight| TOTAL / 4 * weight / sum * 4).collect()
}

fn random(size: usize) -> Vec<u8> {
    let mut state = size as u64 | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.take(size / 8 + 1).flat_map(u64::to_le_bytes).take(size).collect()
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(folder) = arguments.next() else {
        return Err("usage: checkpoint FOLDER".into());
    };
    let mut benches: [Option<Bench>; 2] = [None, None];
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (what, pieces) = line.rsplit_once('_').ok_or("a case is called <what>_<pieces>")?;
        let (slot, pieces) = if pieces == "10k" { (1, 10_000) } else { (0, 62) };
        // One model at a time: two would take twice the memory.
        benches[1 - slot] = None;
        if benches[slot].is_none() {
            benches[slot] = Some(Bench::new(Path::new(&folder), pieces)?);
        }
        let bench = benches[slot].as_mut().expect("just made");
        let seconds = match what {
            "blocked" => bench.blocked()?,
            "memcpy" => bench.memcpy(),
            "save" => bench.save()?.total_seconds,
            "load" => bench.load()?,
            "view" => bench.view()?,
            other => return Err(format!("there is no case {other}").into()),
        };
        println!("{seconds}");
    }
    Ok(())
}
