//! Replicas that come, crash and leave at random, and a server that is killed: never two owners, always one in the end.

use std::time::Duration;

use tapio_runtime::lease::LeaseConfig;
use tapio_runtime::telemetry::Metrics;

use crate::lease::{Book, Replica, config};
use crate::server_and_bus;

const STEPS: usize = 40;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// xorshift64: the same seed gives the same run of decisions.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn quick(name: &str) -> LeaseConfig {
    LeaseConfig { ttl: Duration::from_millis(600), renew: Duration::from_millis(150), ..config(name) }
}

/// `LEASE_CHAOS_SEED` repeats a run.
fn seed() -> u64 {
    let given = std::env::var("LEASE_CHAOS_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_there_is_one_owner() {
    let seed = seed();
    println!("LEASE_CHAOS_SEED={seed}");
    let mut dice = Dice(seed);
    let (mut server, bus) = server_and_bus().await;
    let book = Book::default();
    let metrics = Metrics::new();
    let mut replicas: [Option<Replica>; 3] = [None, None, None];
    for _ in 0..STEPS {
        let slot = usize::try_from(dice.roll(3)).unwrap();
        match (replicas[slot].take(), dice.roll(8)) {
            (None, _) => {
                replicas[slot] = Some(Replica::join_as(&bus, quick(NAMES[slot]), &book, &metrics).await);
            }
            (Some(replica), 0..=2) => replica.kill(),
            (Some(replica), 3..=5) => replica.leaves_beside(),
            (replica, 6) => {
                server.kill();
                server.restart().unwrap();
                replicas[slot] = replica;
            }
            (replica, _) => replicas[slot] = replica,
        }
        let pause = Duration::from_millis(dice.roll(300));
        // check: allow sleep, the steps are spread over time, and every look at the book checks it
        tokio::time::sleep(pause).await;
        book.valid();
        let failed = replicas.iter().flatten().any(Replica::is_finished);
        assert!(!failed, "a replica ended by itself");
    }
    for (slot, replica) in replicas.iter_mut().enumerate() {
        if replica.is_none() {
            *replica = Some(Replica::join_as(&bus, quick(NAMES[slot]), &book, &metrics).await);
        }
    }
    book.wait_shared_by(&NAMES).await;
    println!("{} acquisitions in {STEPS} steps", book.acquisitions());
}
