//! What of the log is shown, decided without a clock.

use std::time::Duration;

use regatta_cluster::logs::{LogGate, LogLimits};

fn gate(members: usize) -> LogGate {
    let limits = LogLimits { per_second: 10, burst: 20, repeat: Duration::from_secs(5), tail: 3 };
    LogGate::new(limits, members)
}

#[test]
fn a_flood_is_cut_to_the_rate_counted_and_disturbs_no_other_member() {
    let mut gate = gate(2);
    let now = Duration::from_secs(1);
    let shown = (0..100).filter_map(|i| gate.line(now, 0, format!("line {i}"))).count();
    assert_eq!(shown, 20, "the burst");
    assert!(gate.line(now, 1, "quiet".into()).is_some());
    let later = gate.line(now + Duration::from_secs(1), 0, "after".into()).unwrap();
    assert_eq!((later.text.as_str(), later.dropped), ("after", 80));
    let shown =
        (0..100).filter_map(|i| gate.line(now + Duration::from_secs(1), 0, format!("more {i}"))).count();
    assert_eq!(shown, 9, "a second's worth, less the one before");
}

#[test]
fn the_same_line_is_shown_once_in_its_time_whoever_says_it() {
    let mut gate = gate(3);
    let at = |seconds| Duration::from_secs(seconds);
    assert_eq!(gate.line(at(0), 0, "warning".into()).unwrap().repeated, 0);
    for rank in [0, 1, 2, 1] {
        assert!(gate.line(at(1), rank, "warning".into()).is_none());
    }
    let again = gate.line(at(6), 2, "warning".into()).unwrap();
    assert_eq!((again.rank, again.repeated), (2, 4));
}

#[test]
fn the_tail_has_the_last_lines_shown_or_not() {
    let mut gate = gate(1);
    for i in 0..100 {
        gate.line(Duration::ZERO, 0, format!("{}", i / 2));
    }
    assert_eq!(gate.tail(0), ["48", "49", "49"]);
    gate.lost(0, 7);
    let next = gate.line(Duration::from_secs(60), 0, "next".into()).unwrap();
    assert!(next.dropped >= 7);
}
