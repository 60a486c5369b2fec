//! How a process finds its group by its environment.

use regatta_comm::environment::Environment;
use regatta_comm::{Error, ReduceOp};
use std::collections::HashMap;
use std::time::Duration;

fn read(variables: &[(&str, &str)]) -> Result<Environment, Error> {
    let map: HashMap<_, _> = variables.iter().copied().collect();
    Environment::read(|name| map.get(name).map(|v| v.to_string()))
}

#[test]
fn torchrun_is_understood() {
    let who = read(&[
        ("RANK", "3"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "head"),
        ("MASTER_PORT", "29400"),
        ("TORCHELASTIC_RUN_ID", "r1"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
    ])
    .unwrap();
    assert_eq!((who.rank, who.world_size, who.local_rank, who.generation), (3, 8, 1, 2));
    assert_eq!((who.master.0.as_str(), who.master.1, who.run.as_str()), ("head", 29400, "r1"));
}

#[test]
fn srun_is_understood() {
    let job =
        [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_LOCALID", "1"), ("SLURM_JOB_ID", "20007")];
    let who = read(&job).unwrap();
    assert_eq!((who.rank, who.world_size, who.local_rank), (1, 2, 1));
    assert_eq!(who.master, ("127.0.0.1".to_string(), 20_007));
    let several = [&job[..], &[("SLURM_NNODES", "2")]].concat();
    assert!(matches!(read(&several), Err(Error::InvalidArgument { .. })), "several nodes need MASTER_ADDR");
}

#[test]
fn nonsense_is_named() {
    for (variables, named) in [
        (vec![("WORLD_SIZE", "2")], "RANK"),
        (vec![("RANK", "x"), ("WORLD_SIZE", "2")], "RANK=\"x\""),
        (vec![("RANK", "2"), ("WORLD_SIZE", "2")], "rank 2"),
        (vec![("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "70000")], "70000"),
        (vec![("RANK", "0"), ("WORLD_SIZE", "1"), ("REGATTA_TRANSPORT", "pigeon")], "pigeon"),
    ] {
        let error = read(&variables).unwrap_err().to_string();
        assert!(error.contains(named), "{error:?} does not name {named}");
    }
}

/// Rank 0 serves the store beside a taken port, and the others find it.
#[test]
fn ranks_meet_although_the_port_is_taken() {
    // Somebody else's server, as torchrun's own store would be: it accepts and says nothing.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let rank = |rank: &str| {
        let who = read(&[
            ("RANK", rank),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("MASTER_PORT", &port),
            ("REGATTA_TOKEN", "a secret"),
        ]);
        let group = who.unwrap().join(Duration::from_secs(30)).unwrap();
        let mut sum = [group.rank() as f32 + 1.0];
        group.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
        assert_eq!((sum, group.backend_name()), ([3.0], "shm"));
        group.barrier().unwrap();
    };
    std::thread::scope(|s| {
        s.spawn(|| rank("1"));
        rank("0");
    });
}
