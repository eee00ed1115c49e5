//! Leases over a real server. All members here share a process and a clock, so that who holds what can be seen at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tapio_runtime::bus::Bus;
use tapio_runtime::clock::{ManualClock, SystemClock};
use tapio_runtime::health::Health;
use tapio_runtime::lease::{Lease, LeaseConfig, LeaseError, LeaseEvent, LeaseEvents, Leases, desired_owner};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names;
use tokio::sync::watch;

use crate::{in_time, server_and_bus};

pub(crate) const RESOURCES: usize = 64;

pub(crate) fn config(replica: &str) -> LeaseConfig {
    let resources = (0..RESOURCES).map(|shard| format!("shard.{shard}")).collect();
    LeaseConfig::new(names::lease_group("correlator", "test"), replica, resources)
}

/// One acquisition.
#[derive(Debug, Clone)]
struct Taken {
    replica: String,
    lease: Lease,
    note: Bytes,
    at: Instant,
}

/// Every acquisition there ever was; refuses two valid leases of one resource.
#[derive(Clone, Default)]
pub(crate) struct Book(Arc<Mutex<BTreeMap<String, Vec<Taken>>>>, watch::Sender<usize>);

impl Book {
    pub(crate) fn enter(&self, replica: &str, lease: &Lease, note: Bytes) {
        let mut book = self.0.lock().unwrap();
        let taken = book.entry(lease.resource().to_owned()).or_default();
        for before in taken.iter() {
            assert!(lease.epoch() > before.lease.epoch(), "{replica} got {lease:?} after {before:?}");
            assert!(!before.lease.is_valid(), "{replica} got {lease:?} while {before:?}");
        }
        let (replica, lease) = (replica.to_owned(), lease.clone());
        taken.push(Taken { replica, lease, note, at: Instant::now() });
        drop(book);
        self.1.send_modify(|count| *count += 1);
    }

    fn taken(&self, resource: &str) -> Vec<Taken> {
        self.0.lock().unwrap().get(resource).cloned().unwrap_or_default()
    }

    pub(crate) fn acquisitions(&self) -> usize {
        *self.1.borrow()
    }

    /// Valid leases by replica.
    pub(crate) fn valid(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut owned = BTreeMap::<String, BTreeSet<String>>::new();
        for (resource, taken) in self.0.lock().unwrap().iter() {
            let valid: Vec<_> = taken.iter().filter(|taken| taken.lease.is_valid()).collect();
            assert!(valid.len() <= 1, "two owners: {valid:?}");
            for taken in valid {
                owned.entry(taken.replica.clone()).or_default().insert(resource.clone());
            }
        }
        owned
    }

    /// Waits until these replicas have everything, each its share.
    pub(crate) async fn wait_shared_by(&self, replicas: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
        let mut expected = BTreeMap::<String, BTreeSet<String>>::new();
        for resource in config("a").resources {
            let owner = desired_owner(&resource, replicas.iter().copied()).unwrap().to_owned();
            expected.entry(owner).or_default().insert(resource);
        }
        let mut changes = self.1.subscribe();
        in_time(async {
            while self.valid() != expected {
                changes.changed().await.unwrap();
            }
        })
        .await;
        expected
    }

    /// Times from `start` to the acquisitions made after it.
    fn delays(&self, start: Instant) -> Vec<Duration> {
        let book = self.0.lock().unwrap();
        let after = book.values().flatten().filter(|taken| taken.at >= start);
        let mut delays: Vec<_> = after.map(|taken| taken.at - start).collect();
        delays.sort();
        delays
    }
}

/// A replica that hands over whatever it is asked for.
pub(crate) struct Replica {
    pub(crate) leases: Leases,
    task: tokio::task::JoinHandle<()>,
}

impl Replica {
    pub(crate) async fn join(bus: &Bus, name: &str, book: &Book) -> Self {
        Self::join_as(bus, config(name), book, &Metrics::new()).await
    }

    pub(crate) async fn join_as(bus: &Bus, config: LeaseConfig, book: &Book, metrics: &Metrics) -> Self {
        let name = config.replica.clone();
        let clock = SystemClock::shared();
        let (leases, events) = Leases::join(bus, config, clock, metrics, Shutdown::new()).await.unwrap();
        let task = tokio::spawn(serve(name, leases.clone(), events, book.clone()));
        Self { leases, task }
    }

    /// As `kill -9`: nothing is said to anyone.
    pub(crate) fn kill(&self) {
        self.task.abort();
    }

    /// Leaves in its own time.
    pub(crate) fn leaves_beside(self) {
        tokio::spawn(async move { self.leases.leave().await });
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

async fn serve(name: String, leases: Leases, mut events: LeaseEvents, book: Book) {
    while let Some(event) = events.next().await {
        match event {
            LeaseEvent::Acquired { lease, note } => book.enter(&name, &lease, note),
            LeaseEvent::Release { lease } => {
                let note = Bytes::from(format!("{name} left {}", lease.resource()));
                match leases.released(&lease, note).await {
                    Ok(()) | Err(LeaseError::Lost { .. }) => assert!(!lease.is_valid()),
                    Err(error) => panic!("{error}"),
                }
            }
            LeaseEvent::Lost { lease } => assert!(!lease.is_valid()),
        }
    }
}

fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_come_and_go_and_each_resource_has_one_owner() {
    let (_server, bus) = server_and_bus().await;
    let book = Book::default();
    let a = Replica::join(&bus, "a", &book).await;
    book.wait_shared_by(&["a"]).await;
    assert_eq!(book.acquisitions(), RESOURCES);

    let start = Instant::now();
    let b = Replica::join(&bus, "b", &book).await;
    let two = book.wait_shared_by(&["a", "b"]).await;
    assert_eq!(book.acquisitions(), RESOURCES + two["b"].len(), "only the share of the newcomer moves");
    let delays = book.delays(start);
    println!("1 -> 2: {} moved, last after {:?}", delays.len(), delays.last());
    let moved = book.taken(two["b"].first().unwrap());
    assert_eq!(moved[1].note, format!("a left {}", two["b"].first().unwrap()));

    let c = Replica::join(&bus, "c", &book).await;
    let d = Replica::join(&bus, "d", &book).await;
    let four = book.wait_shared_by(&["a", "b", "c", "d"]).await;
    for replica in ["a", "b"] {
        assert!(four[replica].is_subset(&two[replica]), "{replica} gets nothing when others come");
    }
    assert_eq!(a.leases.members(), ["a", "b", "c", "d"]);
    let held: BTreeSet<_> = a.leases.held().iter().map(|lease| lease.resource().to_owned()).collect();
    assert_eq!(held, four["a"]);

    let before = book.acquisitions();
    let start = Instant::now();
    tokio::join!(b.leases.leave(), c.leases.leave(), d.leases.leave());
    book.wait_shared_by(&["a"]).await;
    let delays = book.delays(start);
    println!(
        "4 -> 1 by leaving: {} moved, median {:?}, last {:?}",
        delays.len(),
        median(&delays),
        delays.last()
    );
    assert!(book.acquisitions() - before >= RESOURCES - four["a"].len());
    for replica in [b, c, d] {
        in_time(replica.task).await.unwrap();
    }
    assert!(!a.task.is_finished());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_is_taken_over_after_its_time_and_not_before() {
    let (_server, bus) = server_and_bus().await;
    let book = Book::default();
    let metrics = Metrics::new();
    let _a = Replica::join_as(&bus, config("a"), &book, &metrics).await;
    let b = Replica::join(&bus, "b", &book).await;
    let two = book.wait_shared_by(&["a", "b"]).await;
    let last = book.taken(two["b"].first().unwrap()).pop().unwrap().lease;
    b.leases.update_note(&last, Bytes::from_static(b"42")).await.unwrap();
    let start = Instant::now();
    b.kill();
    book.wait_shared_by(&["a"]).await;
    let delays = book.delays(start);
    println!("crash: {} moved, median {:?}, last {:?}", delays.len(), median(&delays), delays.last());
    assert_eq!(delays.len(), two["b"].len());
    // It was renewed at most one period before it was killed.
    assert!(delays[0] >= Duration::from_millis(1_400), "{:?}", delays[0]);
    let taken = book.taken(last.resource()).pop().unwrap();
    assert_eq!((taken.replica.as_str(), &taken.note[..]), ("a", &b"42"[..]), "the note of the dead is kept");
    let text = metrics.encode();
    let group = "{group=\"correlator.test\"}";
    assert!(text.contains(&format!("tapio_lease_takeovers_total{group} {}", delays.len())), "{text}");
    assert!(text.contains(&format!("tapio_lease_owned{group} {RESOURCES}")), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_leaves_is_followed_at_once() {
    let (_server, bus) = server_and_bus().await;
    let book = Book::default();
    let _a = Replica::join(&bus, "a", &book).await;
    let mut medians = Vec::new();
    for _ in 0..5 {
        let b = Replica::join(&bus, "b", &book).await;
        book.wait_shared_by(&["a", "b"]).await;
        let start = Instant::now();
        b.leases.leave().await;
        book.wait_shared_by(&["a"]).await;
        medians.push(*book.delays(start).last().unwrap());
        in_time(b.task).await.unwrap();
    }
    medians.sort();
    println!("leave: last resource taken over after, five times: {medians:?}");
    assert!(medians[2] < Duration::from_secs(2), "it must not wait for the end of the ttl: {medians:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_ends_the_leases_and_the_replica_joins_again() {
    let (mut server, bus) = server_and_bus().await;
    let book = Book::default();
    let clock = SystemClock::shared();
    let quick =
        LeaseConfig { ttl: Duration::from_millis(900), renew: Duration::from_millis(200), ..config("a") };
    let joined = Leases::join(&bus, quick, clock, &Metrics::new(), Shutdown::new()).await;
    let (leases, mut events) = joined.unwrap();
    for _ in 0..RESOURCES {
        match in_time(events.next()).await {
            Some(LeaseEvent::Acquired { lease, note }) => book.enter("a", &lease, note),
            other => panic!("{other:?}"),
        }
    }
    let first = book.taken("shard.0").pop().unwrap().lease;
    server.kill();
    for _ in 0..RESOURCES {
        match in_time(events.next()).await {
            Some(LeaseEvent::Lost { lease }) => assert!(!lease.is_valid()),
            other => panic!("{other:?}"),
        }
    }
    assert!(leases.held().is_empty());
    let refused = leases.update_note(&first, Bytes::new()).await;
    assert!(matches!(refused, Err(LeaseError::Lost { epoch, .. }) if epoch == first.epoch()));
    server.restart().unwrap();
    for _ in 0..RESOURCES {
        match in_time(events.next()).await {
            Some(LeaseEvent::Acquired { lease, note }) => book.enter("a", &lease, note),
            other => panic!("{other:?}"),
        }
    }
    book.wait_shared_by(&["a"]).await;
    drop(events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_outage_costs_nothing() {
    let (mut server, bus) = server_and_bus().await;
    let book = Book::default();
    let a = Replica::join(&bus, "a", &book).await;
    book.wait_shared_by(&["a"]).await;
    server.kill();
    server.restart().unwrap();
    let lease = book.taken("shard.7").pop().unwrap().lease;
    // The note goes through as soon as the connection is back.
    a.leases.update_note(&lease, Bytes::from_static(b"after")).await.unwrap();
    assert_eq!(book.acquisitions(), RESOURCES);
    assert!(lease.is_valid());
}

#[tokio::test]
async fn what_cannot_work_is_refused() {
    let (_server, bus) = server_and_bus().await;
    let metrics = Metrics::new();
    let bad = [
        LeaseConfig { replica: "a.b".into(), ..config("a") },
        LeaseConfig { group: "g *".into(), ..config("a") },
        LeaseConfig { resources: vec![], ..config("a") },
        LeaseConfig { resources: vec!["x".into(), "x".into()], ..config("a") },
        LeaseConfig { renew: Duration::from_secs(1), ..config("a") },
    ];
    for config in bad {
        let joined = Leases::join(&bus, config, SystemClock::shared(), &metrics, Shutdown::new()).await;
        assert!(matches!(joined, Err(LeaseError::Config { .. })), "{joined:?}");
    }
    let book = Book::default();
    let a = Replica::join(&bus, "a", &book).await;
    book.wait_shared_by(&["a"]).await;
    let lease = a.leases.held().remove(0);
    let long = a.leases.update_note(&lease, Bytes::from(vec![0; 1025])).await;
    assert!(matches!(long, Err(LeaseError::NoteTooLong { bytes: 1025, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_of_whom_nothing_is_left_is_asked_for_and_followed() {
    let (_server, bus) = server_and_bus().await;
    let kv = bus.kv().await.unwrap();
    let key = names::lease_resource_key(&config("a").group, "shard.5");
    let record = "{\"owner\":{\"replica\":\"ghost\",\"incarnation\":\"00ff\"},\"epoch\":null}\nits note";
    let epoch = kv.create(&key, Bytes::from_static(record.as_bytes())).await.unwrap();
    let book = Book::default();
    let start = Instant::now();
    let _a = Replica::join(&bus, "a", &book).await;
    book.wait_shared_by(&["a"]).await;
    let taken = book.taken("shard.5").pop().unwrap();
    assert!(taken.lease.epoch() > epoch);
    assert_eq!(&taken.note[..], b"its note");
    println!("taken from an unknown owner after {:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_crashed_and_comes_again_waits_for_its_own_end() {
    let (_server, bus) = server_and_bus().await;
    let book = Book::default();
    let first = Replica::join(&bus, "a", &book).await;
    book.wait_shared_by(&["a"]).await;
    first.kill();
    let start = Instant::now();
    let _second = Replica::join(&bus, "a", &book).await;
    // The book refuses a lease while the one before is valid.
    let mut changes = book.1.subscribe();
    in_time(changes.wait_for(|count| *count == 2 * RESOURCES)).await.unwrap();
    let delays = book.delays(start);
    println!("back after {:?}", delays.last());
    assert_eq!(delays.len(), RESOURCES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_hands_over_and_ends_the_events() {
    let (_server, bus) = server_and_bus().await;
    let shutdown = Shutdown::new();
    let joined =
        Leases::join(&bus, config("a"), SystemClock::shared(), &Metrics::new(), shutdown.clone()).await;
    let (leases, mut events) = joined.unwrap();
    let clock = ManualClock::new(0);
    let health = Health::new(clock.shared());
    leases.register_health(&health, Duration::from_secs(2));
    let mut held = 0;
    while held < RESOURCES {
        held += usize::from(matches!(in_time(events.next()).await, Some(LeaseEvent::Acquired { .. })));
    }
    in_time(async {
        while !health.is_ready() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    shutdown.trigger();
    while let Some(event) = in_time(events.next()).await {
        let LeaseEvent::Release { lease } = event else { panic!("{event:?}") };
        assert!(lease.is_valid(), "work goes on until it is released");
        leases.released(&lease, Bytes::from_static(b"done")).await.unwrap();
        assert!(!lease.is_valid());
        let again = leases.released(&lease, Bytes::new()).await;
        assert!(matches!(again, Err(LeaseError::Lost { .. })));
        held -= 1;
    }
    assert_eq!((held, leases.held().len()), (0, 0));
    assert!(leases.members().is_empty() || leases.members() == ["a"]);
    let kv = bus.kv().await.unwrap();
    let member = names::lease_member_key(&config("a").group, "a");
    assert_eq!(kv.get(&member).await.unwrap(), None, "it is gone at once, not after the ttl");
    in_time(leases.leave()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_take_events_gets_no_more_than_there_is_room_for() {
    let (_server, bus) = server_and_bus().await;
    let metrics = Metrics::new();
    let joined = Leases::join(&bus, config("a"), SystemClock::shared(), &metrics, Shutdown::new()).await;
    let (leases, mut events) = joined.unwrap();
    let all = async {
        while leases.held().len() < RESOURCES {
            tokio::task::yield_now().await;
        }
    };
    in_time(all).await;
    // The other one comes: what it should have is asked back, over what was never read.
    let book = Book::default();
    let _b = Replica::join(&bus, "b", &book).await;
    let share = config("a").resources;
    let share = share.iter().filter(|name| desired_owner(name, ["a", "b"]) == Some("b")).count();
    let (mut acquired, mut released) = (0, 0);
    while released < share {
        match in_time(events.next()).await.unwrap() {
            LeaseEvent::Acquired { .. } => acquired += 1,
            LeaseEvent::Release { lease } => {
                leases.released(&lease, Bytes::new()).await.unwrap();
                released += 1;
            }
            LeaseEvent::Lost { lease } => panic!("{lease:?}"),
        }
    }
    assert_eq!(acquired, RESOURCES);
    let mut changes = book.1.subscribe();
    in_time(changes.wait_for(|count| *count == share)).await.unwrap();
}
