//! What each rank says of a pass, and what all make of it.

use regatta_comm::ProcessGroup;

use crate::error::{Error, Result};

/// One rank's account of a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Account {
    /// The first parameter that should have been reached and was not.
    pub(super) missing: Option<usize>,
    /// The first that should not have been reached and was.
    pub(super) surprise: Option<usize>,
    /// The loss, where it is to be looked at.
    pub(super) loss: Option<f64>,
    /// The first parameter whose gradient was not finite as it came.
    pub(super) infinite: Option<usize>,
}

impl Account {
    const WORDS: usize = 4;

    /// Everybody's account, by rank.
    pub(super) fn exchange(self, group: &ProcessGroup) -> Result<Vec<Account>> {
        let number = |p: Option<usize>| p.map_or(-1, |p| p as i64);
        let loss = self.loss.unwrap_or(0.0).to_bits() as i64;
        let mine = [number(self.missing), number(self.surprise), loss, number(self.infinite)];
        let mut all = vec![0i64; Self::WORDS * group.world_size()];
        group.all_gather(&mine, &mut all)?;
        let read = |words: &[i64]| Account {
            missing: usize::try_from(words[0]).ok(),
            surprise: usize::try_from(words[1]).ok(),
            loss: Some(f64::from_bits(words[2] as u64)),
            infinite: usize::try_from(words[3]).ok(),
        };
        Ok(all.chunks(Self::WORDS).map(read).collect())
    }
}

/// The first thing that is wrong, the same for all who have the same accounts.
pub(super) fn verdict(accounts: &[Account], names: &[&str], step: u64) -> Result<()> {
    let name = |p: usize| names.get(p).copied().unwrap_or("a parameter that is not known here");
    let named = |p: usize| vec![name(p).to_owned()];
    for (rank, account) in accounts.iter().enumerate() {
        if let Some(p) = account.missing {
            let why = "the backward pass did not reach what it should; leave it out of the model, freeze it, or set `unused` to Static or Find";
            return Err(Error::Unused { rank, parameters: named(p), why });
        }
        if let Some(p) = account.surprise {
            let why =
                "the backward pass reached what no rank had reached in the first pass; set `unused` to Find";
            return Err(Error::Unused { rank, parameters: named(p), why });
        }
    }
    for (rank, account) in accounts.iter().enumerate() {
        if let Some(loss) = account.loss.filter(|loss| !loss.is_finite()) {
            return Err(Error::NotFinite {
                step,
                rank: Some(rank),
                what: format!("the loss of rank {rank} ({loss})"),
            });
        }
    }
    for (rank, account) in accounts.iter().enumerate() {
        if let Some(p) = account.infinite {
            let what = format!("the gradient of {} on rank {rank}", name(p));
            return Err(Error::NotFinite { step, rank: Some(rank), what });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Account = Account { missing: None, surprise: None, loss: Some(1.0), infinite: None };

    #[test]
    fn the_lowest_rank_and_the_gravest_cause_come_first() {
        let nan = Account { loss: Some(f64::NAN), ..FINE };
        let missing = Account { missing: Some(1), ..FINE };
        let told = |accounts: &[Account]| verdict(accounts, &["a", "b"], 7).unwrap_err().to_string();
        assert!(verdict(&[FINE, FINE], &["a", "b"], 7).is_ok());
        let infinite = Account { infinite: Some(1), ..FINE };
        assert_eq!(told(&[FINE, infinite]), "step 7: the gradient of b on rank 1 is not finite");
        assert_eq!(told(&[infinite, nan, nan]), "step 7: the loss of rank 1 (NaN) is not finite");
        assert!(told(&[nan, missing]).starts_with("rank 1: the backward pass did not reach"));
        assert!(told(&[nan, missing]).ends_with(": b"));
        assert!(told(&[Account { surprise: Some(0), ..FINE }, missing]).contains("no rank had reached"));
    }
}
