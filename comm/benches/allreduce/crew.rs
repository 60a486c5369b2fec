//! The ranks of a benchmark: the program that measures, executed again once a rank. They wait in a read between the questions,
//! which all of them are asked and rank 0 answers. Whoever measures ranks takes this file in by its path.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use regatta_comm::Rendezvous;
use regatta_comm::store::{StoreServer, TcpStore, Token};

/// What tells a rank who it is.
pub(crate) const RANK: &str = "REGATTA_BENCH_RANK";

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The ranks of one world.
pub(crate) struct Crew {
    ranks: Vec<(Child, ChildStdin)>,
    answers: BufReader<ChildStdout>,
    _store: StoreServer,
}

impl Crew {
    /// Starts the ranks of a world. Each finds in [`RANK`] its rank, the world's size, where they meet, and `more`.
    pub(crate) fn start(world: usize, more: &str) -> Outcome<Crew> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let store = StoreServer::start(listener, Token::insecure("bench"))?;
        let (mut ranks, mut answers) = (Vec::new(), None);
        for rank in 0..world {
            let mut child = Command::new(std::env::current_exe()?)
                .env(RANK, format!("{rank} {world} {} {more}", store.address()))
                .stdin(Stdio::piped())
                .stdout(if rank == 0 { Stdio::piped() } else { Stdio::null() })
                .spawn()?;
            if rank == 0 {
                answers = child.stdout.take().map(BufReader::new);
            }
            let ask = child.stdin.take().ok_or("a rank has no stdin")?;
            ranks.push((child, ask));
        }
        Ok(Crew { ranks, answers: answers.ok_or("rank 0 has no stdout")?, _store: store })
    }

    /// Asks all ranks; rank 0's answer, a line.
    pub(crate) fn ask(&mut self, what: &str) -> Outcome<String> {
        for (_, ask) in &mut self.ranks {
            writeln!(ask, "{what}")?;
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() { Err("rank 0 ended without an answer".into()) } else { Ok(line) }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for (mut child, ask) in self.ranks.drain(..) {
            drop(ask);
            let _ = child.wait();
        }
    }
}

/// Finds the others: the place of a rank that was told `who` it is, and what more it was told.
pub(crate) fn place(who: &str) -> Outcome<(Rendezvous, Vec<&str>)> {
    let mut words = who.split_whitespace();
    let mut next = || words.next().ok_or("three words say who a rank is");
    let (rank, world, store): (usize, usize, _) = (next()?.parse()?, next()?.parse()?, next()?);
    let token = Token::insecure("bench");
    let store = Arc::new(TcpStore::new(store, token.clone()));
    Ok((Rendezvous::new(store, rank, world).token(token), words.collect()))
}
