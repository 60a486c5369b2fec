//! `launch`: torchrun's environment, its restarts, its ends; and a real PyTorch where there is one.

use std::time::{Duration, Instant};

use crate::support::{Place, came};

#[test]
fn processes_get_torchruns_environment_and_their_output_is_passed_on() {
    let place = Place::new();
    let script = "echo $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $GROUP_RANK $MASTER_ADDR $TORCHELASTIC_RESTART_COUNT; \
                  echo err$RANK >&2; test -n \"$MASTER_PORT\"";
    let ran = place.run(&["launch", "-n", "4", "--", "sh", "-c", script]).code(0);
    let mut lines: Vec<&str> = ran.out.lines().collect();
    lines.sort_unstable();
    let wanted: Vec<String> = (0..4).map(|rank| format!("{rank}/4 {rank}/4 0 127.0.0.1 0")).collect();
    assert_eq!(lines, wanted);
    assert!((0..4).all(|rank| ran.err.contains(&format!("err{rank}"))), "{}", ran.err);
}

#[test]
fn a_failure_ends_all_and_is_made_good_by_restarts() {
    let place = Place::new();
    // The others would wait for minutes.
    let script = "if [ $RANK = 1 ] && [ $TORCHELASTIC_RESTART_COUNT -lt $0 ]; then exit 7; fi; \
                  if [ $TORCHELASTIC_RESTART_COUNT -lt $0 ]; then sleep 600; fi; echo done $RANK";
    let begun = Instant::now();
    let failed = place.run(&["launch", "-n", "2", "--", "sh", "-c", script, "9"]).code(1);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let last = failed.err.trim_end().lines().last().unwrap();
    assert!(last.contains("root cause: rank 1") && last.contains("code 7"), "{}", failed.err);
    let ran = place.run(&["launch", "-n", "2", "--max-restarts", "1", "--", "sh", "-c", script, "1"]).code(0);
    assert!(ran.out.contains("done 0") && ran.out.contains("done 1"), "{}", ran.out);
    place.run(&["launch", "-n", "2", "--", "no-such-program-here"]).code(1).says("no-such-program-here");
    place.run(&["launch", "-n", "0", "--", "true"]).code(2);
}

#[test]
fn a_signal_ends_all_of_them() {
    let place = Place::new();
    let script = "trap 'echo bye; exit 0' TERM; : > ready$RANK; while true; do sleep 0.05; done";
    let child = place.start(&["launch", "-n", "2", "--", "sh", "-c", script]);
    let begun = Instant::now();
    while !(place.path().join("ready0").exists() && place.path().join("ready1").exists()) {
        assert!(begun.elapsed() < crate::support::LIMIT);
        std::thread::sleep(Duration::from_millis(20));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let ended = came(child).code(130);
    assert_eq!(ended.out.matches("bye").count(), 2, "{}", ended.out);
}

#[test]
fn pytorch_meets_over_it() {
    let program = "import torch, torch.distributed as d\nd.init_process_group('gloo')\nx = torch.ones(1) * (d.get_rank() + 1)\n\
                   d.all_reduce(x)\nprint('sum', x.item(), flush=True)\nd.destroy_process_group()\n";
    let python = std::env::var("REGATTA_PYTHON").unwrap_or_default();
    let probe = std::process::Command::new(&python).args(["-c", "import torch.distributed"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("skipped: set REGATTA_PYTHON to a Python with torch");
        return;
    }
    let place = Place::new();
    place.write("t.py", program);
    let ran = place.run(&["launch", "-n", "2", "--", &python, "t.py"]).code(0);
    assert_eq!(ran.out.matches("sum 3.0").count(), 2, "{}", ran.out);
}
