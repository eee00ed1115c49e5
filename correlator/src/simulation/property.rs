//! Property: any order of arrival within the lateness, any number of replicas, any moves of shards between them and any
//! cut into batches give the findings that one engine makes of the events in their order.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::{EventBatch, Packer, ShardMark, SignalSection, encode_signals};
use tapio_schemas::{Finding, ProducerId, UnixNanos};

use super::chance::Chance;
use super::scene::{self, CLUSTER, LENGTH, MS, SECOND, START};
use super::term::MODEL;
use crate::config::{CorrelatorConfig, nanos};
use crate::engine::{Engine, StageTwo};
use crate::low_water::LowWater;
use crate::shards::{Budget, ShardSet};
use crate::stage_one::owned::OwnedShard;

/// The messages of a round arrive together.
const ROUND: u64 = 50 * MS;
/// Longest way of an event: with a round's length within the lateness.
const DELAY: u64 = 449 * MS;
/// Rounds between two marks that are kept with a lease.
const KEEP_EVERY: u64 = 20;
/// Findings up to here are compared.
const CUT: u64 = START + LENGTH + 5 * SECOND;

type Found = BTreeMap<(String, u32), String>;

fn config() -> CorrelatorConfig {
    CorrelatorConfig { cluster: CLUSTER.into(), ..CorrelatorConfig::default() }
}

fn collect(found: &mut Found, findings: Vec<Finding>) {
    for finding in findings.into_iter().filter(|finding| finding.emitted_at.0 <= CUT) {
        let text = serde_json::to_string(&finding).expect("JSON");
        let before = found.insert((finding.id.to_string(), finding.revision), text);
        assert!(before.is_none(), "a revision was made twice");
    }
}

/// One engine, every event by itself, in order.
static IN_ORDER: LazyLock<Found> = LazyLock::new(|| {
    let mut engine = Engine::new(CLUSTER, config(), Arc::clone(&MODEL));
    let mut batches: Vec<EventBatch> =
        (0..SHARD_COUNT).map(|s| EventBatch::new(ProducerId(1), 0, s)).collect();
    let mut found = Found::new();
    for event in scene::events() {
        let batch = &mut batches[usize::from(event.key().shard())];
        batch.push(event);
        engine.push_batch(&batch.finish(UnixNanos(0)).expect("a batch")).expect("taken");
        collect(&mut found, engine.drain());
    }
    collect(&mut found, engine.finish());
    found
});

struct Message {
    sequence: u64,
    bytes: Vec<u8>,
}

/// What stands in the stream after each round, by shard.
fn rounds(chance: &mut Chance) -> Vec<Vec<(u16, Message)>> {
    let mut arrivals: Vec<_> =
        scene::events().into_iter().map(|e| (e.timestamp.0 + chance.below(DELAY), e)).collect();
    arrivals.sort_by_key(|(at, event)| (*at, event.id));
    let mut batches: Vec<EventBatch> =
        (0..SHARD_COUNT).map(|s| EventBatch::new(ProducerId(1), 1, s)).collect();
    let (mut packer, mut sequence) = (Packer::default(), 0);
    let mut arrivals = arrivals.into_iter().peekable();
    let mut out = Vec::new();
    for round in 1..=(LENGTH + SECOND) / ROUND {
        let mut stored = Vec::new();
        let mut send = |batch: &mut EventBatch, shard: u16, chance: &mut Chance| {
            if !batch.is_empty() {
                sequence += 1;
                let plain = batch.finish(UnixNanos(0)).expect("a batch");
                let bytes = if chance.per_mille(500) { packer.pack(plain) } else { plain };
                stored.push((shard, Message { sequence, bytes }));
            }
        };
        while let Some((_, event)) = arrivals.next_if(|(at, _)| *at <= START + round * ROUND) {
            let shard = event.key().shard();
            let batch = &mut batches[usize::from(shard)];
            batch.push(event);
            if chance.per_mille(400) {
                send(batch, shard, chance);
            }
        }
        batches.iter_mut().zip(0..).for_each(|(batch, shard)| send(batch, shard, chance));
        out.push(stored);
    }
    out
}

/// A replica's hold on a shard.
struct Hold {
    replica: usize,
    owned: OwnedShard,
    /// Next message.
    cursor: usize,
    /// Rounds that it goes on talking; `None` while it is the owner.
    left: Option<u64>,
    /// Its shards are a set of its own, as after a restart.
    set: ShardSet,
}

/// Moves of every so many shards at a round to a replica; the owner before talks on for some rounds.
#[derive(Debug, Clone)]
struct Move {
    round: u64,
    every: u16,
    to: usize,
    talks_on: u64,
}

struct Cluster {
    log: Vec<Vec<Message>>,
    holds: Vec<Vec<Hold>>,
    kept: Vec<Option<LowWater>>,
    epoch: u64,
    numbers: Vec<u64>,
    stage_two: StageTwo,
    found: Found,
}

impl Cluster {
    fn new(replicas: usize) -> Self {
        let shards = usize::from(SHARD_COUNT);
        let mut cluster = Self {
            log: (0..shards).map(|_| Vec::new()).collect(),
            holds: (0..shards).map(|_| Vec::new()).collect(),
            kept: vec![None; shards],
            epoch: 0,
            numbers: vec![0; replicas],
            stage_two: StageTwo::new(&config(), Arc::clone(&MODEL)),
            found: Found::new(),
        };
        (0..SHARD_COUNT).for_each(|shard| cluster.own(shard, usize::from(shard) % replicas));
        cluster
    }

    fn own(&mut self, shard: u16, replica: usize) {
        self.epoch += 1;
        let at = usize::from(shard);
        let (config, from) = (config(), self.kept[at]);
        let mut set = ShardSet::new(CLUSTER, [], &config);
        set.own(shard, self.epoch, &config);
        let owned =
            OwnedShard::new(shard, self.epoch, from, nanos(config.lateness), nanos(config.replay_max));
        let first = from.map_or(0, |from| from.sequence);
        let cursor = self.log[at].partition_point(|message| message.sequence < first);
        self.holds[at].push(Hold { replica, owned, cursor, left: None, set });
    }

    fn move_shards(&mut self, a_move: &Move) {
        for shard in (0..SHARD_COUNT).filter(|shard| shard.is_multiple_of(a_move.every)) {
            let kept = &mut self.kept[usize::from(shard)];
            for hold in self.holds[usize::from(shard)].iter_mut().filter(|hold| hold.left.is_none()) {
                hold.left = Some(a_move.talks_on);
                // Who says no more gave it back.
                if a_move.talks_on == 0 {
                    let needed = hold.set.low_water_of(shard).expect("owned");
                    *kept = hold.owned.last_low_water(needed);
                }
            }
            self.own(shard, a_move.to % self.numbers.len());
        }
    }

    /// Everyone reads what there is, and it is `now`.
    fn round(&mut self, now: UnixNanos, chance: &mut Chance) {
        for shard in 0..usize::from(SHARD_COUNT) {
            let mut holds = std::mem::take(&mut self.holds[shard]);
            holds.retain(|hold| hold.left != Some(0));
            if chance.per_mille(500) {
                holds.reverse();
            }
            for hold in &mut holds {
                while let Some(message) = self.log[shard].get(hold.cursor) {
                    hold.cursor += 1;
                    let taken = hold.set.take(&message.bytes, Some(shard as u16), UnixNanos::MAX);
                    hold.owned.read(message.sequence, taken.expect("a batch").newest);
                    let said = advance(hold);
                    self.say(hold.replica, said);
                }
                hold.owned.caught_up(now);
                let said = advance(hold);
                self.say(hold.replica, said);
                hold.left = hold.left.map(|left| left - 1);
            }
            self.holds[shard] = holds;
        }
    }

    fn say(&mut self, replica: usize, said: Vec<SignalSection>) {
        for section in said {
            self.numbers[replica] += 1;
            let producer = ProducerId(100 + replica as u64);
            let bytes = encode_signals(producer, 0, self.numbers[replica], &section).expect("encoded");
            collect(&mut self.found, self.stage_two.apply_bytes(&bytes).expect("a section"));
        }
    }

    fn keep(&mut self) {
        for (holds, kept) in self.holds.iter_mut().zip(&mut self.kept) {
            for hold in holds.iter_mut().filter(|hold| hold.left.is_none()) {
                let needed = hold.set.low_water_of(hold.owned.shard).expect("owned");
                *kept = hold.owned.low_water(needed).or(*kept);
            }
        }
    }
}

/// What a shard says up to its watermark, and that it is so far.
fn advance(hold: &mut Hold) -> Vec<SignalSection> {
    let mut said = Vec::new();
    let Some(watermark) = hold.owned.due() else { return said };
    let advanced = hold.set.advance_one(hold.owned.shard, watermark, &mut said, &mut Budget::unlimited());
    hold.owned.advanced_to(advanced.expect("owned").mark.at);
    said.retain(|section| !section.marks.iter().all(|mark| hold.owned.was_said(mark.at)));
    let mark = ShardMark { shard: hold.owned.shard, epoch: hold.owned.epoch, at: hold.owned.advanced() };
    said.push(SignalSection { marks: vec![mark], ..SignalSection::default() });
    said
}

fn play(seed: u64, replicas: usize, moves: &[Move]) -> Found {
    let mut chance = Chance::new(seed);
    let mut cluster = Cluster::new(replicas);
    let mut now = START;
    for (stored, round) in rounds(&mut chance).into_iter().zip(1..) {
        now = START + round * ROUND;
        stored.into_iter().for_each(|(shard, message)| cluster.log[usize::from(shard)].push(message));
        moves.iter().filter(|a_move| a_move.round == round).for_each(|a_move| cluster.move_shards(a_move));
        cluster.round(UnixNanos(now), &mut chance);
        if round % KEEP_EVERY == 0 {
            cluster.keep();
        }
    }
    while now <= CUT + SECOND {
        now += SECOND / 4;
        cluster.round(UnixNanos(now), &mut chance);
    }
    cluster.found
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let a_move = (1u64..LENGTH / ROUND, 1u16..9, 0usize..4, prop_oneof![Just(0), 0u64..60]);
    let a_move = a_move.prop_map(|(round, every, to, talks_on)| Move { round, every, to, talks_on });
    prop::collection::vec(a_move, 0..5)
}

#[test]
fn what_is_live_finds_what_a_replay_finds() {
    assert_eq!(*super::CALM, *IN_ORDER);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: super::cases(8), ..ProptestConfig::default() })]

    #[test]
    fn any_arrival_replicas_moves_and_batches_find_the_same(
        seed in any::<u64>(), replicas in 1usize..=4, moves in moves(),
    ) {
        let found = play(seed, replicas, &moves);
        for (key, text) in &found {
            prop_assert_eq!(Some(text), IN_ORDER.get(key), "{:?}", key);
        }
        prop_assert_eq!(found.len(), IN_ORDER.len());
    }
}
