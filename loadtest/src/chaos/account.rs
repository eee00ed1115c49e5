//! The balance of a load in which processes die: four counts that come about apart from each other.
//!
//! The generator says what it made, the producer counts what was acknowledged, the stream is read for what it holds, and the
//! correlators say what they read and used (`rig/words.rs`). Metrics of processes would not do: they die with them.

use tapio_schemas::ProducerId;

use crate::balance::Balance;
use crate::producer::Place;
use crate::rig::lanes::{Lanes, Stored};
use crate::rig::words::Words;

/// Lanes named one by one, at most.
const NAMED_MAX: usize = 5;

/// The balance, and what is wrong beside it.
pub struct Account {
    /// From the producer and the correlators.
    pub balance: Balance,
    /// Where the stream does not hold what the one sent and the others read.
    pub wrong: Vec<String>,
}

impl Account {
    /// Compares all four.
    pub fn new(place: &Place, lanes: &Lanes, words: &Words) -> Self {
        let said = words.said();
        let balance = Balance {
            produced: place.produced,
            acknowledged: place.acknowledged(),
            read: said.read,
            processed: said.processed,
            dropped: said.dropped,
            rejected_batches: said.rejected_batches,
            // A new owner reads some batches again, and that is no fault.
            duplicate_batches: 0,
            gap_events: said.missing,
        };
        let Stored { events, doubled, holes, .. } = lanes.stored();
        let (mut unread, mut invented, mut named) = (0, 0, Vec::new());
        for ((producer, run, shard), read, stored) in words.differences(&lanes.events()) {
            unread += stored.saturating_sub(read);
            invented += read.saturating_sub(stored);
            if named.len() < NAMED_MAX {
                let who = ProducerId(producer);
                named.push(format!("producer {who}, run {run}, shard {shard}: {read} read of {stored}"));
            }
        }
        let wrong = [
            (
                place.produced.abs_diff(balance.acknowledged),
                "events: produced and acknowledged differ by them",
            ),
            (balance.acknowledged.abs_diff(events), "events: acknowledged and stored differ by them"),
            (doubled, "events are in the stream twice"),
            (holes, "events are missing in producers' numbers in the stream"),
            (unread, "events are in the stream and no correlator says that it has read them"),
            (invented, "events were read, as correlators say, and are not in the stream"),
            (lanes.unreadable, "messages in the stream are no batches of events"),
            (lanes.messages.saturating_sub(place.messages), "messages are in the stream that nobody sent"),
        ];
        let wrong = wrong.into_iter().filter(|(count, _)| *count > 0);
        let wrong = wrong.map(|(count, what)| format!("{count} {what}")).chain(named);
        Self { balance, wrong: wrong.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::lanes::tests::lanes;
    use crate::rig::words::Hears;
    use crate::rig::words::tests::{ID, row, word};
    use tapio_schemas::status::ReadShard;

    fn account(acknowledged: u64, held: &[usize], said: ReadShard) -> (bool, Vec<String>) {
        let place = Place { produced: 100, batched: acknowledged, messages: 4, ..Place::default() };
        let mut words = Words::default();
        words.take(&word(1, said));
        let Account { balance, wrong } = Account::new(&place, &lanes(ProducerId(ID), held), &words);
        (balance.is_exact(), wrong)
    }

    #[test]
    fn what_is_made_sent_held_and_read_is_exact() {
        assert_eq!(account(100, &[0, 1, 2, 3], row(0, 100, 100, 0, 0)), (true, vec![]));
    }

    #[test]
    fn whatever_is_lost_shows_where_it_is_lost() {
        let all = [0, 1, 2, 3];
        let (exact, wrong) = account(75, &all, row(0, 100, 100, 0, 0));
        assert!(!exact && wrong[0].starts_with("25 events: produced and acknowledged"), "{wrong:?}");
        // The stream lost what it had acknowledged, and the correlator says so or not.
        let (exact, wrong) = account(100, &[0, 1, 3], row(0, 100, 75, 0, 25));
        assert!(!exact && wrong[0].starts_with("25 events: acknowledged and stored"), "{wrong:?}");
        let (_, wrong) = account(100, &[0, 1, 2], row(0, 100, 100, 0, 0));
        assert!(wrong.iter().any(|text| text.starts_with("25 events were read")), "{wrong:?}");
        // The correlator began after some of it, or stopped before the end.
        for said in [row(10, 100, 90, 0, 0), row(0, 90, 90, 0, 0)] {
            let (exact, wrong) = account(100, &all, said);
            assert!(!exact && wrong[0].starts_with("10 events are in the stream and no"), "{wrong:?}");
        }
        // It read all and did not use all, or used some of it twice.
        for processed in [99, 101] {
            assert!(!account(100, &all, row(0, 100, processed, 0, 0)).0);
        }
        let (_, wrong) = account(100, &[0, 1, 1, 2, 3], row(0, 100, 100, 0, 0));
        assert!(wrong[0].starts_with("25 events are in the stream twice"), "{wrong:?}");
    }
}
