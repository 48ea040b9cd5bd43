//! A document that differed from its row, and when that proves something. Pure.
//!
//! Each look comes after a wait for all that was committed before the wait began, and reads the document before the row. A
//! document that differed and has the same version after such a wait was not written, though its row had changed before: that
//! is a difference, however often rows change. Where there is no version (a document that is missing, a value of Redis) it
//! might have gone and come back: it must be found so several times on end, with the same row.

use rustc_hash::FxHasher;
use std::hash::Hasher;

/// How often a row that changes all the time is looked at.
const ROUNDS: u32 = 10;
/// How often on end what has no version must be found the same.
const CONFIRMATIONS: u32 = 3;

/// What is wrong with a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The target lacks it.
    Missing,
    /// There is no row.
    Extra,
    /// It says something else.
    Different,
}

impl Difference {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Difference::Missing => "missing",
            Difference::Extra => "extra",
            Difference::Different => "different",
        }
    }
}

/// What was seen of both sides: by it is known whether anything was written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The document's version: no two writes have the same.
    Version(u64),
    /// Digests of the document and of the row; None for what is absent.
    Contents(Option<u64>, Option<u64>),
}

impl Sight {
    /// Of a document with its version, and a row.
    pub fn of(document: Option<(&[u8], Option<u64>)>, row: Option<&[u8]>) -> Self {
        match document {
            Some((_, Some(version))) => Sight::Version(version),
            _ => Sight::Contents(document.map(|(document, _)| digest(document)), row.map(digest)),
        }
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

/// What a look at a suspect that still differs proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a difference.
    Wrong,
    /// Nothing yet: it is to be looked at again.
    Again,
    /// Nothing, and it is given up: it changes all the time.
    Unsettled,
}

/// See the module.
pub struct Suspect {
    /// Image of the address.
    pub address: Vec<u8>,
    sight: Option<Sight>,
    confirmed: u32,
    rounds: u32,
}

impl Suspect {
    /// It differed once.
    pub fn new(address: Vec<u8>) -> Self {
        Self { address, sight: None, confirmed: 0, rounds: 0 }
    }

    /// It differs still, and this was seen.
    pub fn look(&mut self, sight: Sight) -> Verdict {
        self.confirmed = if self.sight == Some(sight) { self.confirmed + 1 } else { 0 };
        self.sight = Some(sight);
        self.rounds += 1;
        let needed = if matches!(sight, Sight::Version(_)) { 1 } else { CONFIRMATIONS };
        if self.confirmed >= needed {
            Verdict::Wrong
        } else if self.rounds < ROUNDS {
            Verdict::Again
        } else {
            Verdict::Unsettled
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_stays_is_proof() {
        let mut suspect = Suspect::new(vec![1]);
        assert_eq!(suspect.look(Sight::Version(7)), Verdict::Again);
        assert_eq!(suspect.look(Sight::Version(8)), Verdict::Again);
        assert_eq!(suspect.look(Sight::Version(8)), Verdict::Wrong);
    }

    #[test]
    fn contents_prove_something_on_end_only() {
        let (there, gone) = (Sight::Contents(Some(1), None), Sight::Contents(None, Some(2)));
        let mut suspect = Suspect::new(vec![1]);
        let looks = [there, there, there, gone, gone, gone, gone].map(|sight| suspect.look(sight));
        assert_eq!(looks[..6], [Verdict::Again; 6]);
        assert_eq!(looks[6], Verdict::Wrong);
    }

    #[test]
    fn what_changes_all_the_time_is_given_up() {
        let mut suspect = Suspect::new(vec![1]);
        let looks: Vec<Verdict> = (0..ROUNDS).map(|n| suspect.look(Sight::Version(u64::from(n)))).collect();
        assert_eq!(looks.last(), Some(&Verdict::Unsettled));
        assert!(looks[..looks.len() - 1].iter().all(|look| *look == Verdict::Again));
    }
}
