//! A replica that is stopped (SIGSTOP) while it owns, and goes on when others have what it had.

use std::io::{BufReader, Write};

use bytes::Bytes;
use rustix::process::{Signal, kill_process};
use tapio_runtime::bus::{Bus, BusConfig};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::lease::{Lease, LeaseError, LeaseEvent, Leases, desired_owner};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::telemetry::Metrics;

use crate::lease::{Book, Replica, config};
use crate::process::{is_child, pid_of, start_child_with, wait_word};
use crate::server_and_bus;

const URL: &str = "LEASE_TEST_URL";

/// How many resources fall to `b` besides `a`.
fn share_of_b() -> usize {
    let owners = config("b").resources;
    owners.iter().filter(|resource| desired_owner(resource, ["a", "b"]) == Some("b")).count()
}

/// The child: takes its share, says so, waits for a line, and tries to use what it had.
async fn play_stopped_owner() {
    let bus = Bus::connect(&BusConfig::with_url(std::env::var(URL).unwrap()), &Metrics::new()).await.unwrap();
    let (clock, metrics) = (SystemClock::shared(), Metrics::new());
    let joined = Leases::join(&bus, config("b"), clock, &metrics, Shutdown::new()).await;
    let (leases, mut events) = joined.unwrap();
    let mut held: Vec<Lease> = Vec::new();
    while held.len() < share_of_b() {
        if let Some(LeaseEvent::Acquired { lease, .. }) = events.next().await {
            held.push(lease);
        }
    }
    println!("owns {}", held.len());
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await.unwrap().unwrap();
    let valid = held.iter().filter(|lease| lease.is_valid()).count();
    let mut written = 0;
    for lease in &held {
        match leases.update_note(lease, Bytes::from_static(b"from the grave")).await {
            Ok(()) => written += 1,
            Err(LeaseError::Lost { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let mut lost = 0;
    while lost < held.len() {
        if let Some(LeaseEvent::Lost { .. }) = events.next().await {
            lost += 1;
        }
    }
    println!("tried valid={valid} written={written} lost={lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_owner_that_wakes_up_has_lost_everything() {
    if is_child() {
        return play_stopped_owner().await;
    }
    let (server, bus) = server_and_bus().await;
    let book = Book::default();
    let a = Replica::join(&bus, "a", &book).await;
    book.wait_shared_by(&["a"]).await;
    let name = "lease_process::a_stopped_owner_that_wakes_up_has_lost_everything";
    let mut child = start_child_with(name, &[(URL, &server.url())]);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap());
    let share = wait_word(&mut lines, "owns ");
    assert_eq!(share, share_of_b().to_string());
    let before = bus.kv().await.unwrap();
    kill_process(pid_of(&child), Signal::STOP).unwrap();
    book.wait_shared_by(&["a"]).await;
    // It reads this the moment it goes on.
    child.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    kill_process(pid_of(&child), Signal::CONT).unwrap();
    let tried = wait_word(&mut lines, "tried ");
    assert_eq!(tried, format!("valid=0 written=0 lost={share}"));
    for lease in a.leases.held() {
        let key = tapio_schemas::names::lease_resource_key(&config("a").group, lease.resource());
        let value = before.get(&key).await.unwrap().unwrap().value;
        assert!(!String::from_utf8_lossy(&value).contains("grave"), "{value:?}");
    }
}
