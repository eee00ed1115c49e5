//! Who answered a call, until its client says what the call was to it.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use tapio_schemas::{SpanId, TraceId, UnixNanos};

use super::counters::Counters;
use super::entities::Known;

/// A client's word is waited for at least so long, and at most twice as long.
const WAIT_NS: u64 = 15_000_000_000;

/// The client span that waits for its callee.
pub type Asked = (TraceId, SpanId);

/// Callees by the client span that is their parent.
///
/// Two generations: when the young ones are old enough, or too many, the old ones are forgotten and the young become old.
/// What is asked for is forgotten at once, so that only calls without a client's word take room.
pub struct Callees {
    young: HashMap<Asked, Arc<Known>>,
    old: HashMap<Asked, Arc<Known>>,
    since: UnixNanos,
    generation_max: usize,
}

impl Callees {
    /// At most `count_max` of them.
    pub fn new(count_max: usize) -> Self {
        let generation_max = (count_max / 2).max(1);
        Self { young: HashMap::new(), old: HashMap::new(), since: UnixNanos(0), generation_max }
    }

    /// `callee` answered at `at`.
    pub fn remember(&mut self, at: UnixNanos, asked: Asked, callee: &Arc<Known>, counters: &mut Counters) {
        let is_full = self.young.len() >= self.generation_max;
        if is_full || at.since(self.since) >= WAIT_NS {
            counters.evicted.calls += if is_full { self.old.len() as u64 } else { 0 };
            self.old.clear();
            self.old.shrink_to(2 * self.young.len());
            std::mem::swap(&mut self.young, &mut self.old);
            self.since = at;
        }
        self.young.insert(asked, Arc::clone(callee));
    }

    /// Who answered; nobody asks again.
    pub fn take(&mut self, asked: &Asked) -> Option<Arc<Known>> {
        self.young.remove(asked).or_else(|| self.old.remove(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::EntityRef;

    fn asked(number: u64) -> Asked {
        (TraceId(1), SpanId(number))
    }

    fn at(seconds: u64) -> UnixNanos {
        UnixNanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_callee_waits_for_its_client_and_goes_with_it() {
        let (mut callees, mut counters) = (Callees::new(100), Counters::default());
        let known = Arc::new(Known::new(Arc::new(EntityRef::default())));
        callees.remember(at(100), asked(1), &known, &mut counters);
        callees.remember(at(114), asked(2), &known, &mut counters);
        callees.remember(at(115), asked(3), &known, &mut counters);
        assert!(callees.take(&asked(1)).is_some(), "15 s old");
        assert!(callees.take(&asked(1)).is_none(), "asked once");
        callees.remember(at(131), asked(4), &known, &mut counters);
        assert!(callees.take(&asked(2)).is_none(), "17 s old, and its generation is gone");
        assert!(callees.take(&asked(3)).is_some());
        assert_eq!(counters.evicted.calls, 0, "nobody asked in time");
    }

    #[test]
    fn there_is_a_bound_and_what_it_costs_is_counted() {
        let (mut callees, mut counters) = (Callees::new(100), Counters::default());
        let known = Arc::new(Known::new(Arc::new(EntityRef::default())));
        for number in 0..1000 {
            callees.remember(at(100), asked(number), &known, &mut counters);
            assert!(callees.young.len() + callees.old.len() <= 100);
        }
        let left = (0..1000).filter(|number| callees.take(&asked(*number)).is_some()).count();
        assert_eq!(counters.evicted.calls as usize + left, 1000);
    }
}
