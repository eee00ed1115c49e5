use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{BusError, KvEntry, KvEvent};
use tapio_schemas::names;

use crate::{in_time, server_and_bus};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn put(key: &str, value: &'static str, revision: u64) -> KvEvent {
    KvEvent::Put { key: key.to_owned(), entry: KvEntry { value: bytes(value), revision } }
}

#[tokio::test]
async fn only_the_one_who_knows_the_revision_changes_or_removes() {
    let (_server, bus) = server_and_bus().await;
    let kv = bus.kv().await.unwrap();
    let first = kv.create("a.b", bytes("1")).await.unwrap();
    let second = kv.compare_and_set("a.b", bytes("2"), first).await.unwrap();
    for stale in [0, first, second + 1] {
        let set = kv.compare_and_set("a.b", bytes("x"), stale).await;
        assert!(matches!(&set, Err(BusError::Conflict { key }) if key == "a.b"), "{set:?}");
        let removed = kv.delete_expecting("a.b", stale).await;
        assert!(matches!(removed, Err(BusError::Conflict { .. })), "{removed:?}");
    }
    assert_eq!(kv.get("a.b").await.unwrap(), Some(KvEntry { value: bytes("2"), revision: second }));
    let removed = kv.delete_expecting("a.b", second).await.unwrap();
    assert!(removed > second, "revisions rise over removals");
    assert_eq!(kv.get("a.b").await.unwrap(), None);
    let gone = kv.compare_and_set("a.b", bytes("3"), second).await;
    assert!(matches!(gone, Err(BusError::Conflict { .. })));
    let again = kv.create("a.b", bytes("4")).await.unwrap();
    assert!(again > removed);
    assert!(matches!(kv.create("a.b", bytes("5")).await, Err(BusError::Conflict { .. })));
    for bad in ["", ".a", "a.", "a..b", "a*", "a b"] {
        assert!(matches!(kv.put(bad, bytes("x")).await, Err(BusError::Kv { .. })), "{bad}");
    }
}

#[tokio::test]
async fn a_watch_gives_what_is_there_then_every_change_and_ends_of_life() {
    let (_server, bus) = server_and_bus().await;
    let kv = bus.kv().await.unwrap();
    let mut all = kv.watch("").await.unwrap();
    assert_eq!(in_time(all.next()).await.unwrap(), KvEvent::Current, "an empty bucket is current at once");
    let one = kv.create("w.one", bytes("1")).await.unwrap();
    let two = kv.create("w.two", bytes("2")).await.unwrap();
    let other = kv.create("wx.other", bytes("-")).await.unwrap();
    let mut below = kv.watch("w").await.unwrap();
    assert_eq!(in_time(below.next()).await.unwrap(), put("w.one", "1", one));
    assert_eq!(in_time(below.next()).await.unwrap(), put("w.two", "2", two));
    assert_eq!(in_time(below.next()).await.unwrap(), KvEvent::Current);
    let removed = kv.delete_expecting("w.one", one).await.unwrap();
    let gone = KvEvent::Gone { key: "w.one".into(), revision: removed, expired: false };
    assert_eq!(in_time(below.next()).await.unwrap(), gone);
    let short = kv.create_with_ttl("w.short", bytes("s"), Duration::from_secs(1)).await.unwrap();
    assert_eq!(in_time(below.next()).await.unwrap(), put("w.short", "s", short));
    let KvEvent::Gone { key, expired: true, revision } = in_time(below.next()).await.unwrap() else {
        panic!("it must expire");
    };
    assert_eq!(key, "w.short");
    assert!(revision > short);
    assert_eq!(kv.get("w.short").await.unwrap(), None);
    assert_eq!(kv.keys().await.unwrap(), ["w.two", "wx.other"]);
    let again = kv.create_with_ttl("w.short", bytes("t"), Duration::from_secs(60)).await.unwrap();
    assert!(again > revision && again > other);
    // A watch that is read late sees what is left, in the order of the revisions.
    let mut revisions = Vec::new();
    while revisions.last() != Some(&again) {
        match in_time(all.next()).await.unwrap() {
            KvEvent::Put { entry, .. } => revisions.push(entry.revision),
            KvEvent::Gone { revision, .. } => revisions.push(revision),
            KvEvent::Current => panic!("said twice"),
        }
    }
    assert!(
        revisions.is_sorted() && revisions.contains(&two) && revisions.contains(&removed),
        "{revisions:?}"
    );
}

#[tokio::test]
async fn renewing_keeps_a_key_alive() {
    let (_server, bus) = server_and_bus().await;
    let kv = bus.kv().await.unwrap();
    let ttl = Duration::from_secs(1);
    let mut revision = kv.create_with_ttl("alive", bytes("0"), ttl).await.unwrap();
    kv.create_with_ttl("witness", bytes("0"), ttl).await.unwrap();
    let mut watch = kv.watch("").await.unwrap();
    // Another key of the same age ends; the renewed one does not.
    loop {
        let event = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
        match event {
            Err(_) => {
                revision = kv.compare_and_set_with_ttl("alive", bytes("1"), revision, ttl).await.unwrap()
            }
            Ok(Ok(KvEvent::Gone { key, expired, .. })) => {
                assert_eq!((key.as_str(), expired), ("witness", true));
                break;
            }
            Ok(event) => drop(event.unwrap()),
        }
    }
    assert!(kv.get("alive").await.unwrap().is_some());
}

#[tokio::test]
async fn a_watch_goes_on_after_the_server_was_killed() {
    let (mut server, bus) = server_and_bus().await;
    let kv = bus.kv().await.unwrap();
    let mut watch = kv.watch("k").await.unwrap();
    assert_eq!(in_time(watch.next()).await.unwrap(), KvEvent::Current);
    let one = kv.create("k.1", bytes("1")).await.unwrap();
    assert_eq!(in_time(watch.next()).await.unwrap(), put("k.1", "1", one));
    server.kill();
    let away = kv.clone().with_timeout(Duration::from_millis(200)).put("k.1", bytes("lost")).await;
    assert!(matches!(away, Err(BusError::Kv { .. })), "{away:?}");
    server.restart().unwrap();
    let two = in_time(kv.create("k.2", bytes("2"))).await.unwrap();
    assert_eq!(in_time(watch.next()).await.unwrap(), put("k.2", "2", two));
}

#[tokio::test]
async fn a_bucket_of_an_earlier_version_learns_times_to_live() {
    let server = tapio_runtime::harness::NatsServer::start().unwrap_or_else(|error| panic!("{error}"));
    let raw = async_nats::connect(server.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(raw);
    let bucket = names::BUCKET_STATE.to_owned();
    let old = async_nats::jetstream::kv::Config { bucket, history: 1, ..Default::default() };
    jetstream.create_key_value(old).await.unwrap().put("kept", bytes("v")).await.unwrap();
    let bus = server.bus().await.unwrap();
    let kv = bus.kv().await.unwrap();
    assert_eq!(kv.get("kept").await.unwrap().unwrap().value, bytes("v"));
    kv.create_with_ttl("short", bytes("x"), Duration::from_secs(1)).await.unwrap();
    let mut watch = kv.watch("").await.unwrap();
    loop {
        if let KvEvent::Gone { expired: true, key, .. } = in_time(watch.next()).await.unwrap() {
            assert_eq!(key, "short");
            break;
        }
    }
}
