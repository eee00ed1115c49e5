//! Names of what happens in requests: each is kept once, and is a number while requests are under way.
//!
//! The number is a hash of kind, service and name: it is the same in all shards and in all runs.

use foldhash::HashMap;
use smol_str::SmolStr;
use tapio_schemas::{Step, StepKind, UnixNanos};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::counters::Counters;
use super::entities::Known;
use super::templates;

/// Texts kept per shard. When they are too many, those unused for [`UNUSED_NS`] are forgotten, then new ones find no room.
const TEXTS_MAX: usize = 16_384;
/// A text unused for so long may be forgotten, ns of event time: longer than any request waits for its parent.
const UNUSED_NS: u64 = 120_000_000_000;
/// Names as they came, with what became of them. When they are too many, they are worked out again.
const RAW_MAX: usize = 16_384;
/// Operations of one service in one shard; further ones are one.
const OPERATIONS_MAX: u32 = 256;
/// Name of all operations beyond [`OPERATIONS_MAX`].
const OTHER: &str = "(other)";

/// Number of a text.
pub type TextId = u64;

/// All texts of a shard.
#[derive(Default)]
pub struct Texts {
    known: HashMap<TextId, Text>,
    /// By the name as it came: the operation.
    raw: HashMap<u64, TextId>,
    /// Operations kept, by service.
    operations: HashMap<u128, u32>,
    scratch: String,
}

struct Text {
    kind: StepKind,
    tenant: u128,
    service: SmolStr,
    name: SmolStr,
    used: UnixNanos,
}

impl Texts {
    /// Number of an operation of a service.
    pub fn operation(&mut self, of: &Known, raw: &str, at: UnixNanos, counters: &mut Counters) -> TextId {
        let asked = hash(StepKind::Call, of.tenant_id, raw);
        if let Some(id) = self.raw.get(&asked) {
            let id = *id;
            if let Some(text) = self.known.get_mut(&id) {
                text.used = text.used.max(at);
                return id;
            }
        }
        let mut name = std::mem::take(&mut self.scratch);
        templates::operation(raw, &mut name);
        let mut id = hash(StepKind::Call, of.tenant_id, &name);
        let count = self.operations.get(&of.tenant_id).copied().unwrap_or(0);
        if count >= OPERATIONS_MAX && !self.known.contains_key(&id) {
            counters.evicted.operations += 1;
            name.clear();
            name.push_str(OTHER);
            id = hash(StepKind::Call, of.tenant_id, OTHER);
        }
        self.keep(id, StepKind::Call, of, &name, at, counters);
        self.scratch = name;
        if self.raw.len() >= RAW_MAX {
            self.raw.clear();
        }
        self.raw.insert(asked, id);
        id
    }

    /// Number of the template of a log line.
    pub fn line(
        &mut self,
        of: &Known,
        body: &str,
        is_error: bool,
        at: UnixNanos,
        counters: &mut Counters,
    ) -> TextId {
        let kind = if is_error { StepKind::ErrorLog } else { StepKind::Log };
        let mut template = std::mem::take(&mut self.scratch);
        templates::line(body, &mut template);
        let id = hash(kind, of.tenant_id, &template);
        self.keep(id, kind, of, &template, at, counters);
        self.scratch = template;
        id
    }

    /// Number of a call that failed, by the number of its operation.
    pub fn failed_call(
        &mut self,
        of: &Known,
        operation: TextId,
        at: UnixNanos,
        counters: &mut Counters,
    ) -> TextId {
        let name = self.name(operation);
        let id = hash(StepKind::FailedCall, of.tenant_id, &name);
        self.keep(id, StepKind::FailedCall, of, &name, at, counters);
        id
    }

    /// What a number stands for; `None` when it found no room.
    pub fn step(&self, id: TextId) -> Option<Step> {
        let text = self.known.get(&id)?;
        Some(Step { kind: text.kind, service: text.service.clone(), name: text.name.clone() })
    }

    /// Name behind a number.
    pub fn name(&self, id: TextId) -> SmolStr {
        self.known.get(&id).map_or_else(|| SmolStr::new_static(OTHER), |text| text.name.clone())
    }

    /// Texts kept.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    fn keep(
        &mut self,
        id: TextId,
        kind: StepKind,
        of: &Known,
        name: &str,
        at: UnixNanos,
        counters: &mut Counters,
    ) {
        if let Some(text) = self.known.get_mut(&id) {
            text.used = text.used.max(at);
            return;
        }
        if self.known.len() >= TEXTS_MAX && !self.make_room(at) {
            counters.evicted.texts += 1;
            return;
        }
        if kind == StepKind::Call {
            *self.operations.entry(of.tenant_id).or_default() += 1;
        }
        // Of a call this is who is called; of a line, who logs.
        let service = of.tenant.name.clone();
        let name = SmolStr::new(name);
        self.known.insert(id, Text { kind, tenant: of.tenant_id, service, name, used: at });
    }

    fn make_room(&mut self, at: UnixNanos) -> bool {
        let horizon = at.minus(UNUSED_NS);
        self.known.retain(|_, text| text.used >= horizon);
        self.operations.clear();
        for text in self.known.values().filter(|text| text.kind == StepKind::Call) {
            *self.operations.entry(text.tenant).or_default() += 1;
        }
        self.known.len() < TEXTS_MAX
    }
}

fn hash(kind: StepKind, tenant: u128, name: &str) -> TextId {
    xxh3_64_with_seed(name.as_bytes(), tenant as u64 ^ (tenant >> 64) as u64 ^ kind as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tapio_schemas::EntityRef;

    fn known(service: &str) -> Known {
        Known::new(Arc::new(EntityRef { service: service.into(), ..EntityRef::default() }.sealed()))
    }

    #[test]
    fn operations_with_ids_are_one_and_services_are_apart() {
        let (mut texts, mut counters) = (Texts::default(), Counters::default());
        let mut id =
            |service: &str, name: &str| texts.operation(&known(service), name, UnixNanos(1), &mut counters);
        assert_eq!(id("a", "GET /orders/4711"), id("a", "GET /orders/4712"));
        assert_ne!(id("a", "GET /orders/4711"), id("b", "GET /orders/4711"));
        assert_eq!(texts.count(), 2);
    }

    #[test]
    fn beyond_its_limit_a_service_has_one_more_operation() {
        let (mut texts, mut counters) = (Texts::default(), Counters::default());
        let of = known("a");
        let names = ["aa", "ab", "ba", "bb"].map(str::to_owned);
        let all = names.iter().flat_map(|x| (0..100u8).map(move |i| format!("{x}{}", letters(i))));
        let ids: std::collections::HashSet<_> =
            all.map(|name| texts.operation(&of, &name, UnixNanos(1), &mut counters)).collect();
        assert_eq!(ids.len(), OPERATIONS_MAX as usize + 1);
        assert_eq!(counters.evicted.operations, 400 - u64::from(OPERATIONS_MAX));
        assert!(ids.iter().any(|id| texts.name(*id) == OTHER));
    }

    #[test]
    fn old_texts_make_room_and_young_ones_stay() {
        let (mut texts, mut counters) = (Texts::default(), Counters::default());
        let of = known("a");
        for i in 0..TEXTS_MAX as u32 {
            let body = format!("{} {}", letters((i % 251) as u8), letters3(i));
            texts.line(&of, &body, false, UnixNanos(1), &mut counters);
        }
        assert_eq!((texts.count(), counters.evicted.texts), (TEXTS_MAX, 0));
        let lost = texts.line(&of, "one more", false, UnixNanos(2), &mut counters);
        assert_eq!((texts.step(lost), counters.evicted.texts), (None, 1));
        let at = UnixNanos(UNUSED_NS + 2);
        let kept = texts.line(&of, "one more", true, at, &mut counters);
        assert_eq!(texts.count(), 1);
        let step = texts.step(kept).unwrap();
        assert_eq!((step.kind, step.name.as_str()), (StepKind::ErrorLog, "one more"));
    }

    fn letters(i: u8) -> String {
        [b'a' + i / 16, b'a' + i % 16].iter().map(|b| char::from(*b)).collect()
    }

    fn letters3(i: u32) -> String {
        (0..5).map(|n| char::from(b'a' + (i >> (4 * n) & 15) as u8)).collect()
    }
}
