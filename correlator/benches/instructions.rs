//! Instructions that stage one takes, counted by valgrind: the gate against slower code, because a count does not depend on
//! how busy the machine is. `make instructions`, and part of `make test`.
//!
//! A limit is about a tenth above what was measured. Who makes it faster lowers the limit; who has to raise it says why.

mod load;

use std::hint::black_box;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use load::{BATCH_EVENTS, Load};
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::shards::ShardSet;
use tapio_schemas::UnixNanos;
use tapio_schemas::wire::{EventBatchView, Packer, Unpacker};

/// Batches that are counted: two seconds and more of event time of a shard.
const BATCHES: usize = 64;
/// Batches before that, so that tables and buffers are there.
const WARM_UP: usize = 16;
const EVENTS: u64 = BATCHES as u64 * BATCH_EVENTS;

/// At most so many instructions per event.
fn at_most(per_event: u64, events: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits([(EventKind::Ir, per_event * events)]));
    config
}

fn run(shards: &mut ShardSet, batches: &[Vec<u8>]) {
    for bytes in batches {
        let taken = shards.take(bytes, None, UnixNanos::MAX).expect("taken");
        black_box(shards.advance(taken.newest.minus(500_000_000)));
    }
}

fn warm(load: Load) -> (ShardSet, Vec<Vec<u8>>) {
    let mut batches = load.batches(WARM_UP + BATCHES);
    let mut shards = ShardSet::new("c", [0], &CorrelatorConfig::default());
    let counted = batches.split_off(WARM_UP);
    run(&mut shards, &batches);
    (shards, counted)
}

#[library_benchmark]
#[bench::execs(args = (Load::Execs,), config = at_most(1560, EVENTS), setup = warm)]
#[bench::connections(args = (Load::Connections,), config = at_most(1705, EVENTS), setup = warm)]
#[bench::spans(args = (Load::Spans,), config = at_most(6050, EVENTS), setup = warm)]
#[bench::samples(args = (Load::Samples,), config = at_most(4540, EVENTS), setup = warm)]
#[bench::mix(args = (Load::Mix,), config = at_most(2570, EVENTS), setup = warm)]
fn shard_worker((mut shards, batches): (ShardSet, Vec<Vec<u8>>)) -> ShardSet {
    run(&mut shards, &batches);
    shards
}

fn packed() -> (Unpacker, Vec<u8>) {
    (Unpacker::default(), Load::Mix.batches(1).remove(0))
}

#[library_benchmark]
#[bench::mix(config = at_most(1690, BATCH_EVENTS), setup = packed)]
fn unpack_and_check((mut unpacker, bytes): (Unpacker, Vec<u8>)) -> usize {
    let plain = unpacker.unpack(&bytes).expect("unpacks");
    EventBatchView::check(plain).expect("checks").len()
}

fn plain() -> (Packer, Vec<u8>) {
    let (mut unpacker, bytes) = packed();
    (Packer::default(), unpacker.unpack(&bytes).expect("unpacks").to_vec())
}

#[library_benchmark]
#[bench::mix(config = at_most(2855, BATCH_EVENTS), setup = plain)]
fn pack((mut packer, bytes): (Packer, Vec<u8>)) -> Vec<u8> {
    packer.pack(bytes)
}

library_benchmark_group!(name = stage_one, benchmarks = [shard_worker, unpack_and_check, pack]);
gungraun::main!(library_benchmark_groups = stage_one);
