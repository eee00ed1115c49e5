//! Three real servers: what is acknowledged survives the death of the one that leads.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{Bus, BusError, Headers, OrderedConfig, Outgoing, PublishReports, Publisher};
use tapio_runtime::harness::NatsCluster;
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names;
use tokio::sync::watch;

use crate::fence::own;
use crate::in_time;
use crate::lease::{Book, Replica};

const STREAMS: u16 = 4;
const WINDOW: usize = 64;

async fn cluster() -> (NatsCluster, Bus) {
    let cluster = NatsCluster::start(3).unwrap_or_else(|error| panic!("{error}"));
    let mut config = cluster.bus_config();
    config.streams.events.streams = STREAMS;
    let bus = Bus::connect(&config, &Metrics::new()).await.unwrap();
    bus.ensure_streams().await.unwrap();
    (cluster, bus)
}

fn numbered(number: u64) -> Outgoing {
    Outgoing {
        subject: names::events_subject("c", (number % 64) as u16),
        msg_id: Some(format!("n-{number}")),
        headers: Headers::new(),
        payload: Bytes::from([&number.to_le_bytes()[..], &[0; 1016]].concat()),
    }
}

async fn publish_until(mut publisher: Publisher, stop: Arc<AtomicBool>) -> u64 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        publisher.submit(numbered(number)).await.unwrap();
        number += 1;
    }
    number
}

async fn count_acknowledged(mut reports: PublishReports, acked: watch::Sender<u64>) {
    while let Some(report) = reports.next().await {
        report.result.unwrap();
        acked.send_modify(|count| *count += 1);
    }
}

async fn wait_acked(acked: &mut watch::Receiver<u64>, more: u64) {
    let target = *acked.borrow() + more;
    in_time(acked.wait_for(|count| *count >= target)).await.unwrap();
}

/// All numbers in a stream; each must be there once.
async fn read_all(bus: &Bus, stream: &str, numbers: &mut HashSet<u64>) {
    let count = in_time(bus.stream_state(stream)).await.unwrap().messages;
    // A stream whose leader has just come back may be too busy to answer the first time.
    let open = async {
        loop {
            if let Ok(reader) = bus.ordered_consumer(OrderedConfig::new(stream)).await {
                return reader;
            }
        }
    };
    let mut reader = in_time(open).await;
    for _ in 0..count {
        let message = in_time(reader.next()).await.unwrap();
        let number = u64::from_le_bytes(message.payload[..8].try_into().unwrap());
        assert!(numbers.insert(number), "{number} is stored twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_with_the_leader() {
    let (mut cluster, bus) = cluster().await;
    let streams = bus.events_streams();
    let (publisher, reports) = bus.publisher(WINDOW, Shutdown::new());
    let stop = Arc::new(AtomicBool::new(false));
    let (count, mut acked) = watch::channel(0);
    let publishing = tokio::spawn(publish_until(publisher, stop.clone()));
    let reporting = tokio::spawn(count_acknowledged(reports, count));
    for stream in streams.iter().take(2) {
        wait_acked(&mut acked, 2_000).await;
        let leader = cluster.leader(&bus, &stream.name).await.unwrap();
        let start = std::time::Instant::now();
        cluster.kill(leader);
        wait_acked(&mut acked, 2_000).await;
        println!(
            "{}: 2000 more acknowledged {:?} after its leader nats-{leader} was killed",
            stream.name,
            start.elapsed()
        );
        let next = cluster.leader(&bus, &stream.name).await.unwrap();
        assert_ne!(next, leader);
        cluster.restart(leader).unwrap();
    }
    wait_acked(&mut acked, 2_000).await;
    stop.store(true, Ordering::Relaxed);
    let submitted = in_time(publishing).await.unwrap();
    in_time(reporting).await.unwrap();
    assert_eq!(*acked.borrow(), submitted);
    let mut numbers = HashSet::new();
    for stream in &streams {
        read_all(&bus, &stream.name, &mut numbers).await;
    }
    assert_eq!(numbers, (0..submitted).collect::<HashSet<_>>());
    println!("{submitted} published, each is stored once in {} streams", streams.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fences_hold_in_a_cluster_with_many_messages_in_flight() {
    let (_cluster, bus) = cluster().await;
    let subject = names::insights_fence_subject("test");
    let (_, first_events, first_lease) = own(&bus, "first").await;
    let first = bus.fence(&subject, &first_lease).await.unwrap();
    let (mut publisher, mut reports) = bus.publisher(16, Shutdown::new());
    let start = std::time::Instant::now();
    let stamped = move |number: u64, fence: &tapio_runtime::bus::Fence| Outgoing {
        subject: "tapio.v1.insights.critical.test.shop.Deployment.api".into(),
        headers: fence.stamp(Headers::new()),
        ..numbered(number)
    };
    let stale = first.clone();
    let flood = tokio::spawn(async move {
        for number in 0.. {
            if publisher.submit(stamped(number, &stale)).await.is_err() {
                break;
            }
        }
    });
    for _ in 0..200 {
        in_time(reports.next()).await.unwrap().result.unwrap();
    }
    println!("200 fenced messages in flight 16 at a time took {:?}", start.elapsed());
    drop(first_events);
    let (_leases, _events, second_lease) = own(&bus, "second").await;
    let second = bus.fence(&subject, &second_lease).await.unwrap();
    let own = Outgoing { msg_id: None, ..stamped(0, &second) };
    let ack = in_time(bus.publish(&own.subject, None, own.headers, own.payload)).await.unwrap();
    let mut refused = 0;
    while refused < 50 {
        match in_time(reports.next()).await.unwrap().result {
            Ok(before) => assert!(before.sequence < ack.sequence),
            Err(BusError::Fenced { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    flood.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_live_through_the_death_of_the_leader_of_their_bucket() {
    let (mut cluster, bus) = cluster().await;
    let book = Book::default();
    let _a = Replica::join(&bus, "a", &book).await;
    let _b = Replica::join(&bus, "b", &book).await;
    book.wait_shared_by(&["a", "b"]).await;
    let bucket = format!("KV_{}", names::BUCKET_STATE);
    let kv = bus.kv().await.unwrap();
    let leader = cluster.leader(&bus, &bucket).await.unwrap();
    let start = std::time::Instant::now();
    cluster.kill(leader);
    let kv = kv.with_timeout(Duration::from_millis(250));
    let probe = async {
        while kv.put("probe", Bytes::new()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    in_time(probe).await;
    println!("bucket writable again {:?} after its leader was killed", start.elapsed());
    // The book refuses two owners; a member that could not renew in time comes again.
    book.wait_shared_by(&["a", "b"]).await;
    println!("shared again {:?} after, {} acquisitions", start.elapsed(), book.acquisitions());
}
