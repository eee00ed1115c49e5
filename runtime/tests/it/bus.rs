use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{
    Bus, BusConfig, BusError, CircuitState, ConnectionState, DurableConfig, Headers, OrderedConfig, StartAt,
};
use tapio_runtime::clock::ManualClock;
use tapio_runtime::config::{ByteSize, HumanDuration};
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names;

use crate::{in_time, server_and_bus};

async fn put(bus: &Bus, subject: &str, text: &'static str) -> u64 {
    let ack = bus.publish(subject, None, Headers::new(), Bytes::from_static(text.as_bytes()));
    in_time(ack).await.unwrap().sequence
}

#[tokio::test]
async fn a_repeated_id_is_stored_once() {
    let (_server, bus) = server_and_bus().await;
    let subject = names::signals_subject("test");
    let publish = || bus.publish(&subject, Some("id-1"), Headers::new(), Bytes::from_static(b"x"));
    let first = in_time(publish()).await.unwrap();
    let second = in_time(publish()).await.unwrap();
    assert_eq!((first.stream.as_str(), first.sequence, first.duplicate), ("TAPIO_SIGNALS", 1, false));
    assert_eq!((second.sequence, second.duplicate), (1, true));
    put(&bus, &subject, "a").await;
    put(&bus, &subject, "a").await;
    let state = bus.stream_state(names::STREAM_SIGNALS).await.unwrap();
    assert_eq!((state.messages, state.first_sequence, state.last_sequence), (3, 1, 3));
}

#[tokio::test]
async fn streams_are_made_once_and_their_limits_follow_the_configuration() {
    let (server, bus) = server_and_bus().await;
    put(&bus, &names::events_subject("c", 3), "kept").await;
    bus.ensure_streams().await.unwrap();
    let mut config = server.bus_config();
    config.streams.events.max_bytes = ByteSize::mib(1);
    config.streams.events.max_age = HumanDuration::from_secs(30);
    let second = Bus::connect(&config, &Metrics::new()).await.unwrap();
    second.ensure_streams().await.unwrap();
    assert_eq!(bus.stream_state(names::STREAM_EVENTS).await.unwrap().messages, 1);
    // Full means that the oldest go: 3 MiB do not fit into 1 MiB.
    for _ in 0..48 {
        let payload = Bytes::from(vec![7; 64 << 10]);
        let subject = names::events_subject("c", 3);
        in_time(bus.publish(&subject, None, Headers::new(), payload)).await.unwrap();
    }
    let state = bus.stream_state(names::STREAM_EVENTS).await.unwrap();
    assert!(state.bytes <= 1 << 20 && state.first_sequence > 1, "{state:?}");
    assert_eq!(state.last_sequence, 49);
}

#[tokio::test]
async fn events_are_split_over_streams_by_shard() {
    let server = tapio_runtime::harness::NatsServer::start().unwrap_or_else(|error| panic!("{error}"));
    let mut config = server.bus_config();
    config.streams.events.streams = 5;
    let bus = Bus::connect(&config, &Metrics::new()).await.unwrap();
    bus.ensure_streams().await.unwrap();
    let streams = bus.events_streams();
    assert_eq!(streams.len(), 5);
    let untold = Bus::connect(&server.bus_config(), &Metrics::new()).await.unwrap();
    let named: Vec<_> = streams.iter().map(|stream| stream.name.clone()).collect();
    assert_eq!(
        in_time(untold.stored_events_streams()).await.unwrap(),
        named,
        "found by who was not told their number"
    );
    for shard in 0..names::SHARD_COUNT {
        let subject = names::events_subject("c", shard);
        let ack = bus.publish(&subject, None, Headers::new(), Bytes::new());
        let stream = bus.events_stream_of(shard);
        assert_eq!(in_time(ack).await.unwrap().stream, stream.name);
        assert!(stream.shards.contains(&shard) && streams.contains(&stream));
    }
    put(&bus, &names::events_subject("other", 0), "of another cluster").await;
    let mut read = 0;
    for stream in &streams {
        let filters = stream.filters("c");
        let config = OrderedConfig { filters, ..OrderedConfig::new(&stream.name) };
        let mut reader = bus.ordered_consumer(config).await.unwrap();
        for shard in stream.shards.clone() {
            let message = in_time(reader.next()).await.unwrap();
            assert_eq!(message.subject, names::events_subject("c", shard));
            read += 1;
        }
    }
    assert_eq!(read, 64);
    // Another number of streams would take the same subjects: told, with what to do.
    let mut config = server.bus_config();
    config.streams.events.max_bytes = ByteSize::mib(1);
    let other = Bus::connect(&config, &Metrics::new()).await.unwrap();
    let error = other.ensure_streams().await.unwrap_err().to_string();
    assert!(error.contains("bus.streams.events.streams"), "{error}");
    assert_eq!(other.events_streams()[0].filters("c"), [names::events_filter("c")]);
}

#[tokio::test]
async fn what_can_never_be_stored_is_refused_at_once() {
    let (_server, bus) = server_and_bus().await;
    let huge = Bytes::from(vec![0; bus.max_payload() + 1]);
    let error = bus.publish("tapio.v1.signals.a", None, Headers::new(), huge).await.unwrap_err();
    assert!(matches!(error, BusError::TooLarge { .. }), "{error}");
    for subject in ["", "a b", "tapio.*", "x\r\nPUB y 0"] {
        let error = bus.publish(subject, None, Headers::new(), Bytes::new()).await.unwrap_err();
        assert!(matches!(error, BusError::Subject { .. }), "{error}");
    }
    let deadline = Duration::from_millis(300);
    let nowhere = bus.publish_within(deadline, "no.stream", None, Headers::new(), Bytes::new());
    let error = nowhere.await.unwrap_err();
    assert!(matches!(&error, BusError::Deadline { last, .. } if last.contains("stream")), "{error}");
}

#[tokio::test]
async fn a_durable_consumer_gives_back_what_was_not_acknowledged() {
    let (_server, bus) = server_and_bus().await;
    let subject = names::signals_subject("test");
    for text in ["a", "b", "c"] {
        put(&bus, &subject, text).await;
    }
    let config = DurableConfig {
        ack_wait: Duration::from_millis(300),
        ..DurableConfig::new(names::STREAM_SIGNALS, "reader")
    };
    let mut reader = bus.durable_consumer(config.clone()).await.unwrap();
    let first = in_time(reader.next()).await.unwrap();
    assert_eq!((&first.payload[..], first.sequence, first.pending, first.delivered), (&b"a"[..], 1, 2, 1));
    assert!(first.published_at_unix_nanos > 1_577_836_800_000_000_000);
    first.ack_confirmed().await.unwrap();
    let second = in_time(reader.next()).await.unwrap();
    second.nak(None).await.unwrap();
    let third = in_time(reader.next()).await.unwrap();
    assert_eq!(&third.payload[..], b"c");
    third.ack_confirmed().await.unwrap();
    let again = in_time(reader.next()).await.unwrap();
    assert_eq!((&again.payload[..], again.delivered), (&b"b"[..], 2));
    drop((again, reader));
    // Not acknowledged and its reader gone: it comes to the next reader of the name.
    let mut reader = bus.durable_consumer(config).await.unwrap();
    let again = in_time(reader.next()).await.unwrap();
    assert_eq!((&again.payload[..], again.delivered), (&b"b"[..], 3));
    again.term().await.unwrap();
    let rest = reader.next_batch(10, Duration::from_millis(700)).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn an_ordered_consumer_begins_where_it_is_told() {
    let (_server, bus) = server_and_bus().await;
    for shard in [0, 1, 0, 1] {
        put(&bus, &names::events_subject("c", shard), "e").await;
    }
    let read = async |start, filters: Vec<String>, count| {
        let config = OrderedConfig { start, filters, ..OrderedConfig::new(names::STREAM_EVENTS) };
        let mut consumer = bus.ordered_consumer(config).await.unwrap();
        let mut sequences = Vec::new();
        while sequences.len() < count {
            let batch = in_time(consumer.next_batch(count, Duration::from_secs(5))).await.unwrap();
            sequences.extend(batch.into_iter().map(|message| message.sequence));
        }
        sequences
    };
    assert_eq!(read(StartAt::Beginning, vec![], 4).await, [1, 2, 3, 4]);
    assert_eq!(read(StartAt::Sequence(3), vec![], 2).await, [3, 4]);
    let odd = vec![names::events_subject("c", 1)];
    assert_eq!(read(StartAt::Beginning, odd, 2).await, [2, 4]);
    assert_eq!(read(StartAt::UnixNanos(1), vec![], 4).await, [1, 2, 3, 4]);
    let config = OrderedConfig { start: StartAt::New, ..OrderedConfig::new(names::STREAM_EVENTS) };
    let mut new_only = bus.ordered_consumer(config).await.unwrap();
    put(&bus, &names::events_subject("c", 9), "new").await;
    assert_eq!(in_time(new_only.next()).await.unwrap().sequence, 5);
}

#[tokio::test]
async fn loss_before_an_ordered_consumer_is_counted() {
    let (server, _bus) = server_and_bus().await;
    let metrics = Metrics::new();
    let mut config = server.bus_config();
    config.streams.signals.max_bytes = ByteSize(200_000);
    let bus = Bus::connect(&config, &metrics).await.unwrap();
    bus.ensure_streams().await.unwrap();
    let subject = names::signals_subject("c");
    put(&bus, &subject, "first").await;
    let config = OrderedConfig { batch: 1, ..OrderedConfig::new(names::STREAM_SIGNALS) };
    let mut reader = bus.ordered_consumer(config).await.unwrap();
    assert_eq!(in_time(reader.next()).await.unwrap().sequence, 1);
    for _ in 0..20 {
        let payload = Bytes::from(vec![1; 50_000]);
        in_time(bus.publish(&subject, None, Headers::new(), payload)).await.unwrap();
    }
    let mut last = 1;
    let mut read = 0;
    while last < 21 {
        last = in_time(reader.next()).await.unwrap().sequence;
        read += 1;
    }
    let text = metrics.encode();
    let skipped = format!("tapio_bus_consumer_skipped_total{{stream=\"TAPIO_SIGNALS\"}} {}", 20 - read);
    assert!(read < 20 && text.contains(&skipped), "{read} read of 20; {text}");
}

#[tokio::test]
async fn dead_letters_say_why_and_where_from() {
    let (_server, bus) = server_and_bus().await;
    let original = names::events_subject("c", 1);
    in_time(bus.dead_letter("events", "bad magic\nsecond line", &original, Bytes::from_static(b"?")))
        .await
        .unwrap();
    let huge = Bytes::from(vec![0; bus.max_payload() + 5]);
    in_time(bus.dead_letter("events", "too large", &original, huge)).await.unwrap();
    let config = OrderedConfig::new(names::STREAM_DEADLETTER);
    let mut letters = bus.ordered_consumer(config).await.unwrap();
    let letter = in_time(letters.next()).await.unwrap();
    assert_eq!(letter.subject, names::deadletter_subject("events"));
    assert_eq!(letter.headers.get(names::HEADER_REASON), Some("bad magic second line"));
    assert_eq!(letter.headers.get(names::HEADER_ORIGIN), Some(original.as_str()));
    assert_eq!(&letter.payload[..], b"?");
    let cut = in_time(letters.next()).await.unwrap();
    assert!(cut.payload.len() < bus.max_payload() && cut.payload.len() > 1 << 20);
}

#[tokio::test]
async fn the_state_bucket_compares_and_sets() {
    let (_server, bus) = server_and_bus().await;
    let kv = bus.kv().await.unwrap();
    assert_eq!(kv.get("shard.1").await.unwrap(), None);
    let first = kv.create("shard.1", Bytes::from_static(b"a")).await.unwrap();
    let taken = kv.create("shard.1", Bytes::from_static(b"b")).await;
    assert!(matches!(taken, Err(BusError::Conflict { key }) if key == "shard.1"));
    let second = kv.compare_and_set("shard.1", Bytes::from_static(b"c"), first).await.unwrap();
    let stale = kv.compare_and_set("shard.1", Bytes::from_static(b"d"), first).await;
    assert!(matches!(stale, Err(BusError::Conflict { .. })));
    let entry = kv.get("shard.1").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.revision), (&b"c"[..], second));
    kv.put("low-water.2", Bytes::from_static(b"9")).await.unwrap();
    assert_eq!(kv.keys().await.unwrap(), ["low-water.2", "shard.1"]);
    kv.delete("shard.1").await.unwrap();
    assert_eq!(kv.get("shard.1").await.unwrap(), None);
    kv.create("shard.1", Bytes::from_static(b"e")).await.unwrap();
    let bad = kv.put("no spaces", Bytes::new()).await;
    assert!(matches!(bad, Err(BusError::Kv { .. })));
}

#[tokio::test]
async fn no_server_is_told_with_the_address() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = BusConfig {
        connect_timeout: HumanDuration::from_millis(200),
        ..BusConfig::with_url(format!("nats://127.0.0.1:{port}"))
    };
    let error = Bus::connect(&config, &Metrics::new()).await.unwrap_err();
    assert!(matches!(error, BusError::Connect { .. }), "{error}");
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    let config = BusConfig::with_url("::not a url::");
    let error = Bus::connect(&config, &Metrics::new()).await.unwrap_err();
    assert!(matches!(error, BusError::Url { .. }), "{error}");
    let config = BusConfig { credentials_file: Some("/nowhere.creds".into()), ..config };
    let config = BusConfig { urls: vec!["nats://127.0.0.1:1".into()], ..config };
    let error = Bus::connect(&config, &Metrics::new()).await.unwrap_err();
    assert!(matches!(error, BusError::Credentials { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_stream_is_told_when_a_consumer_is_made() {
    let (_server, bus) = server_and_bus().await;
    let error = bus.durable_consumer(DurableConfig::new("NOWHERE", "x")).await.unwrap_err();
    assert!(error.to_string().contains("consumer x of NOWHERE"), "{error}");
    assert!(bus.ordered_consumer(OrderedConfig::new("NOWHERE")).await.is_err());
}

#[tokio::test]
async fn the_process_is_not_ready_while_nats_is_away() {
    let (mut server, bus) = server_and_bus().await;
    let clock = ManualClock::new(0);
    let health = Health::new(clock.shared());
    bus.register_health(&health, clock.shared());
    // Each look at the connection ends in a sleep.
    clock.wait_for_sleepers(1).await;
    assert!(health.is_ready(), "{health:?}");
    server.kill();
    let mut state = bus.watch_state();
    in_time(state.wait_for(|state| *state == ConnectionState::Reconnecting)).await.unwrap();
    clock.advance(Duration::from_secs(6));
    clock.wait_for_sleepers(1).await;
    assert!(!health.is_ready() && health.is_live(), "{health:?}");
    assert_eq!(bus.circuit(), CircuitState::Open);
    let note = |health: &Health| health.report()[0].note.clone().unwrap();
    assert_eq!(note(&health), "circuit open");
    server.restart().unwrap();
    in_time(state.wait_for(|state| *state == ConnectionState::Connected)).await.unwrap();
    clock.advance(Duration::from_secs(1));
    clock.wait_for_sleepers(1).await;
    assert!(health.is_ready(), "{health:?}");
    assert_eq!(note(&health), "circuit half-open");
    put(&bus, &names::signals_subject("c"), "first").await;
    assert_eq!(bus.circuit(), CircuitState::Closed);
}

#[tokio::test]
async fn a_server_that_does_not_answer_opens_the_circuit() {
    let (server, _) = server_and_bus().await;
    let metrics = Metrics::new();
    let config = BusConfig { ack_timeout: HumanDuration::from_millis(50), ..server.bus_config() };
    let bus = Bus::connect(&config, &metrics).await.unwrap();
    put(&bus, &names::signals_subject("c"), "first").await;
    assert_eq!(bus.circuit(), CircuitState::Closed);
    let pid = i32::try_from(server.pid()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let subject = names::signals_subject("c");
    // The first may still be acknowledged: the threads of a process do not stop all at once.
    in_time(async {
        while bus.circuit() != CircuitState::Open {
            let deadline = Duration::from_millis(200);
            let _ = bus.publish_within(deadline, &subject, None, Headers::new(), Bytes::new()).await;
        }
    })
    .await;
    assert_eq!(bus.state(), ConnectionState::Connected, "the connection itself stands");
    assert!(metrics.encode().contains("tapio_bus_circuit_state 2"));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    put(&bus, &subject, "after").await;
    assert_eq!(bus.circuit(), CircuitState::Closed);
}

#[tokio::test]
async fn draining_closes_everything() {
    let (_server, bus) = server_and_bus().await;
    let mut reader = bus.ordered_consumer(OrderedConfig::new(names::STREAM_EVENTS)).await.unwrap();
    let mut state = bus.watch_state();
    bus.drain().await.unwrap();
    in_time(state.wait_for(|state| *state == ConnectionState::Closed)).await.unwrap();
    assert!(matches!(in_time(reader.next()).await, Err(BusError::Closed)));
    let publish = bus.publish("tapio.v1.signals.a", None, Headers::new(), Bytes::new());
    assert!(matches!(in_time(publish).await, Err(BusError::Closed)));
}
