use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{
    Bus, BusError, ConnectionState, DurableConfig, Headers, News, OrderedConfig, Outgoing, PublishReports,
    Publisher,
};
use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::names;

use crate::{in_time, server_and_bus};

const WINDOW: usize = 64;
/// What the product promises to live through.
const AWAY: Duration = Duration::from_secs(10);

fn numbered(number: u64) -> Outgoing {
    Outgoing {
        subject: names::events_subject("c", (number % 64) as u16),
        msg_id: Some(format!("n-{number}")),
        headers: Headers::new(),
        payload: Bytes::from([&number.to_le_bytes()[..], &[0; 1016]].concat()),
    }
}

fn number_of(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

/// Publishes numbered messages as fast as the window allows until told to stop; gives their count.
async fn publish_until(mut publisher: Publisher, stop: Arc<AtomicBool>, peak: Arc<AtomicUsize>) -> u64 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        publisher.submit(numbered(number)).await.unwrap();
        peak.fetch_max(publisher.outstanding(), Ordering::Relaxed);
        number += 1;
    }
    number
}

/// Checks that every report is an acknowledgement, in order; gives their number.
async fn all_acknowledged(mut reports: PublishReports, acked: Arc<AtomicUsize>) -> u64 {
    let mut count = 0;
    while let Some(report) = reports.next().await {
        assert_eq!(report.ticket, count);
        report.result.unwrap();
        count += 1;
        acked.fetch_add(1, Ordering::Relaxed);
    }
    count
}

async fn wait_acked(acked: &AtomicUsize, count: usize) {
    in_time(async {
        while acked.load(Ordering::Relaxed) < count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn read_ordered(bus: Bus, total: Arc<AtomicUsize>) -> HashSet<u64> {
    let mut reader = bus.ordered_consumer(OrderedConfig::new(names::STREAM_EVENTS)).await.unwrap();
    let mut seen = HashSet::new();
    let mut last_sequence = 0;
    while seen.len() < total.load(Ordering::Relaxed) {
        for message in reader.next_batch(500, Duration::from_millis(100)).await.unwrap() {
            assert_eq!(message.sequence, last_sequence + 1, "in order, none left out");
            last_sequence = message.sequence;
            assert!(seen.insert(number_of(&message.payload)), "each number once");
        }
    }
    seen
}

async fn read_durable(bus: Bus, total: Arc<AtomicUsize>) -> HashSet<u64> {
    let config = DurableConfig {
        ack_wait: Duration::from_secs(2),
        ..DurableConfig::new(names::STREAM_EVENTS, "storage")
    };
    let mut reader = bus.durable_consumer(config).await.unwrap();
    let mut seen = HashSet::new();
    while seen.len() < total.load(Ordering::Relaxed) {
        for message in reader.next_batch(500, Duration::from_millis(100)).await.unwrap() {
            seen.insert(number_of(&message.payload));
            match message.ack().await {
                Ok(()) | Err(BusError::Ack { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    seen
}

/// `kill -9` of the server under load, away for ten seconds, back on the same port and store: the
/// publisher is bounded and resumes, the stream has every message once, both kinds of consumers see
/// every message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_seconds_away_under_load_lose_nothing() {
    let (mut server, bus) = server_and_bus().await;
    let (publisher, reports) = bus.publisher(WINDOW, Shutdown::new());
    let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (acked, total) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
    let publishing = tokio::spawn(publish_until(publisher, stop.clone(), peak.clone()));
    let reporting = tokio::spawn(all_acknowledged(reports, acked.clone()));
    let ordered = tokio::spawn(read_ordered(bus.clone(), total.clone()));
    let durable = tokio::spawn(read_durable(bus.clone(), total.clone()));

    wait_acked(&acked, 2_000).await;
    server.kill();
    let mut state = bus.watch_state();
    in_time(state.wait_for(|state| *state == ConnectionState::Reconnecting)).await.unwrap();
    let before = acked.load(Ordering::Relaxed);
    // check: allow sleep, the outage itself is a span of real time
    tokio::time::sleep(AWAY).await;
    assert_eq!(bus.state(), ConnectionState::Reconnecting);
    assert!(acked.load(Ordering::Relaxed) <= before + WINDOW, "nothing is acknowledged meanwhile");
    server.restart().unwrap();
    wait_acked(&acked, before + 2_000).await;
    stop.store(true, Ordering::Relaxed);

    let submitted = in_time(publishing).await.unwrap();
    assert_eq!(in_time(reporting).await.unwrap(), submitted);
    total.store(submitted as usize, Ordering::Relaxed);
    let expected: HashSet<u64> = (0..submitted).collect();
    assert_eq!(in_time(ordered).await.unwrap(), expected);
    assert_eq!(in_time(durable).await.unwrap(), expected);
    let stream = bus.stream_state(names::STREAM_EVENTS).await.unwrap();
    assert_eq!(stream.messages, submitted, "repetitions are not stored twice");
    let bound = 3 * WINDOW + 1;
    assert!(peak.load(Ordering::Relaxed) <= bound, "{peak:?} outstanding, bound {bound}");
}

/// Who has read all there is does not know what there is once the way to the server was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_says_when_it_does_not_know_what_there_is() {
    let (mut server, bus) = server_and_bus().await;
    let publish = async |number: u64| {
        let Outgoing { subject, msg_id, headers, payload } = numbered(number);
        in_time(bus.publish(&subject, msg_id.as_deref(), headers, payload)).await.expect("stored");
    };
    publish(0).await;
    let mut reader = bus.ordered_consumer(OrderedConfig::new(names::STREAM_EVENTS)).await.unwrap();
    let mut heard = async || match in_time(reader.news()).await.expect("open") {
        News::Message(message) => format!("{}", number_of(&message.payload)),
        News::Current => "current".to_owned(),
        News::Behind => "behind".to_owned(),
    };
    assert_eq!([heard().await, heard().await], ["0", "current"]);
    server.kill();
    server.restart().unwrap();
    publish(1).await;
    assert_eq!(heard().await, "behind");
    // Whether the message or the word comes first depends on when the consumer was opened again.
    let mut rest = [heard().await, heard().await];
    rest.sort();
    assert_eq!(rest, ["1", "current"]);
}

/// A server that stands still leaves the connection as it is; what is called into it does not come back meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_comes_back_when_the_server_moves() {
    let (mut server, bus) = server_and_bus().await;
    let mut echo = bus.echo().await.unwrap();
    echo.call(1).unwrap();
    assert_eq!(in_time(echo.heard()).await, 1);
    signal(server.pid(), "-STOP");
    // Each thread stops when it is next on its way out of the kernel.
    while !stands_still(server.pid()) {
        tokio::task::yield_now().await;
    }
    echo.call(2).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), echo.heard()).await.is_err());
    assert_eq!(bus.state(), ConnectionState::Connected);
    signal(server.pid(), "-CONT");
    assert_eq!(in_time(echo.heard()).await, 2);
    // Through a lost connection, too.
    server.kill();
    server.restart().unwrap();
    let called = async {
        loop {
            let _ = echo.call(3);
            if let Ok(number) = tokio::time::timeout(Duration::from_millis(100), echo.heard()).await {
                return number;
            }
        }
    };
    assert_eq!(in_time(called).await, 3);
}

/// True when all threads of a process are stopped (proc(5): the state follows the name in brackets).
fn stands_still(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let mut states = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    states.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

fn signal(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

/// A server that stops and starts again and again: the same promise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flapping_server_loses_nothing() {
    let (mut server, bus) = server_and_bus().await;
    let (publisher, reports) = bus.publisher(WINDOW, Shutdown::new());
    let stop = Arc::new(AtomicBool::new(false));
    let (acked, total) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
    let publishing = tokio::spawn(publish_until(publisher, stop.clone(), Arc::default()));
    let reporting = tokio::spawn(all_acknowledged(reports, acked.clone()));
    let ordered = tokio::spawn(read_ordered(bus.clone(), total.clone()));
    for round in 0..6 {
        wait_acked(&acked, acked.load(Ordering::Relaxed) + 300).await;
        if round % 2 == 0 {
            server.kill()
        } else {
            server.stop().unwrap()
        }
        server.restart().unwrap();
    }
    wait_acked(&acked, acked.load(Ordering::Relaxed) + 300).await;
    stop.store(true, Ordering::Relaxed);
    let submitted = in_time(publishing).await.unwrap();
    assert_eq!(in_time(reporting).await.unwrap(), submitted);
    total.store(submitted as usize, Ordering::Relaxed);
    assert_eq!(in_time(ordered).await.unwrap().len() as u64, submitted);
    assert_eq!(bus.stream_state(names::STREAM_EVENTS).await.unwrap().messages, submitted);
}
