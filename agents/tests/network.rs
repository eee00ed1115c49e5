//! Drops that really happen, as the network collector tells them.

mod support;

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};
use tapio_agents::collectors::network::{NetworkConfig, Sampler};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::attribute::find;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::Source;
use tapio_schemas::payload::{MetricKind, Payload};

/// Value of `system.network.stack.dropped` by reason.
fn stack_drops(events: &[UnifiedEvent]) -> BTreeMap<String, f64> {
    let one = |event: &UnifiedEvent| {
        let metric = support::metric(event, "system.network.stack.dropped")?;
        assert!(metric.monotonic && metric.kind == MetricKind::CumulativeSum);
        Some((find(&metric.attributes, "reason")?.as_text()?.to_owned(), metric.value))
    };
    events.iter().filter_map(one).collect()
}

fn sampler() -> Sampler {
    let node = EntityRef { cluster: "c".into(), node: "n".into(), ..EntityRef::default() };
    Sampler::new(&NetworkConfig::default(), std::sync::Arc::new(node.sealed()))
}

fn sample(sampler: &mut Sampler) -> Vec<UnifiedEvent> {
    sampler.sample(UnixNanos(SystemClock::shared().now_unix_nanos()))
}

/// A socket whose queue of connections that wait for `accept` has one place.
fn narrow_listener() -> TcpListener {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    bind(&socket, &any).unwrap();
    listen(&socket, 0).unwrap();
    TcpListener::from(socket)
}

fn connect_without_waiting(address: &std::net::SocketAddr) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    match connect(&socket, address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => socket,
        Err(error) => panic!("connect: {error}"),
    }
}

#[test]
fn a_program_that_does_not_accept_is_an_overflow() {
    let mut sampler = sampler();
    let before = stack_drops(&sample(&mut sampler));
    let listener = narrow_listener();
    let address = listener.local_addr().unwrap();
    let _held: Vec<TcpStream> = (0..1).map(|_| TcpStream::connect(address).unwrap()).collect();
    let _waiting: Vec<OwnedFd> = (0..20).map(|_| connect_without_waiting(&address)).collect();
    let after = stack_drops(&sample(&mut sampler));
    let rise = after["listen_overflow"] - before["listen_overflow"];
    assert!(rise >= 10.0, "{before:?} → {after:?}");
}

#[test]
fn a_full_receive_queue_is_a_drop_by_its_reason() {
    let mut sampler = sampler();
    let before = stack_drops(&sample(&mut sampler));
    let (receiver, sender) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, 2048).unwrap();
    for _ in 0..100 {
        sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
    }
    let after = stack_drops(&sample(&mut sampler));
    let rise = after["udp_receive_buffer_full"] - before["udp_receive_buffer_full"];
    assert!(rise >= 90.0, "{before:?} → {after:?}");
}

#[test]
fn full_tables_are_drops_by_their_reason_over_all_processors() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
    std::fs::create_dir(place.path().join("stat")).unwrap();
    write("dev", "titles\ntitles\n");
    write("snmp", "Ip: Forwarding FragOKs FragFails\nIp: 1 0 7\n");
    write(
        "stat/arp_cache",
        "entries  allocs destroys  unresolved_discards table_fulls\n00000401 00000002 00000003 00000000 00000010\n\
         00000401 00000002 00000003 00000000 00000002\n",
    );
    let config = NetworkConfig { dir: place.path().into(), ..NetworkConfig::default() };
    let drops = stack_drops(&sample(&mut Sampler::new(&config, std::sync::Arc::default())));
    let expected = [("neighbour_table_full", 18.0), ("packet_too_big", 7.0)];
    assert_eq!(drops, expected.map(|(reason, count)| (reason.to_owned(), count)).into());
}

#[test]
fn only_a_table_of_connections_without_room_is_full() {
    let proc = tempfile::tempdir().unwrap();
    let net = proc.path().join("1/net");
    std::fs::create_dir_all(net.join("stat")).unwrap();
    std::fs::write(net.join("dev"), "titles\ntitles\n").unwrap();
    // Two processors: entries are of the table and stand in both lines, drops are of each.
    let counts = |entries: u32, drops: u32| {
        let line = |drops: u32| format!("{entries:08x} 00000001 {drops:08x} 00000000\n");
        let text = format!("entries insert_failed drop early_drop\n{}{}", line(drops), line(5));
        std::fs::write(net.join("stat/nf_conntrack"), text).unwrap();
    };
    let config = NetworkConfig { dir: net.clone(), ..NetworkConfig::default() };
    let mut sampler = Sampler::new(&config, std::sync::Arc::default());
    let mut told = |entries, drops| {
        counts(entries, drops);
        let drops = stack_drops(&sample(&mut sampler));
        assert_eq!(drops.len(), 2, "{drops:?}");
        (drops["conntrack_full"], drops["conntrack_drop"])
    };
    // What was before the collector began is nobody's news, and without the room nobody can say why it was.
    assert_eq!(told(1000, 255), (0.0, 0.0));
    assert_eq!(told(1000, 258), (0.0, 3.0));
    std::fs::create_dir_all(proc.path().join("sys/net/netfilter")).unwrap();
    std::fs::write(proc.path().join("sys/net/netfilter/nf_conntrack_max"), "1000\n").unwrap();
    assert_eq!(told(500, 260), (0.0, 5.0), "two packets of one connection");
    assert_eq!(told(950, 360), (100.0, 5.0));
    assert_eq!(told(700, 370), (110.0, 5.0), "it was full at the beginning of that time");
    assert_eq!(told(700, 371), (110.0, 6.0));
    // The counters begin anew, and go on from there.
    assert_eq!(told(1000, 0), (110.0, 6.0));
    assert_eq!(told(1000, 1), (111.0, 6.0));
}

#[test]
fn interfaces_are_limited_and_the_machines_own_come_first() {
    let place = tempfile::tempdir().unwrap();
    let line = |name: &str| format!("  {name}: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n");
    let names = ["veth1", "cali2", "lo", "eth0"];
    let text = format!("titles\ntitles\n{}", names.map(line).join(""));
    std::fs::write(place.path().join("dev"), text).unwrap();
    let config = NetworkConfig { dir: place.path().into(), interfaces_max: 2, ..NetworkConfig::default() };
    let mut sampler = Sampler::new(&config, std::sync::Arc::default());
    let events = sample(&mut sampler);
    let of = |event: &UnifiedEvent| {
        let metric = support::metric(event, "system.network.dropped")?;
        let attribute = |key| find(&metric.attributes, key).and_then(|v| v.as_text()).unwrap_or_default();
        Some((
            attribute("network.interface.name").to_owned(),
            attribute("network.io.direction").to_owned(),
            metric.value,
        ))
    };
    let drops: Vec<_> = events.iter().filter_map(of).collect();
    let expected = [
        ("lo", "receive", 4.0),
        ("lo", "transmit", 8.0),
        ("eth0", "receive", 4.0),
        ("eth0", "transmit", 8.0),
    ];
    assert_eq!(drops, expected.map(|(name, direction, n)| (name.to_owned(), direction.to_owned(), n)));
    assert_eq!((sampler.left_out(), sampler.leaves_out_own()), (2, false));
    assert!(stack_drops(&events).is_empty(), "what is not counted is absent");
    let config = NetworkConfig { interfaces_max: 1, ..config };
    let mut sampler = Sampler::new(&config, std::sync::Arc::default());
    sample(&mut sampler);
    assert_eq!((sampler.left_out(), sampler.leaves_out_own()), (3, true));
}

#[test]
fn who_cannot_see_the_machines_counters_says_so() {
    assert_eq!(sampler().blind(), None);
    let node = EntityRef { cluster: "c".into(), node: "n".into(), ..EntityRef::default() };
    let config = NetworkConfig { dir: "/nowhere/net".into(), ..NetworkConfig::default() };
    let mut sampler = Sampler::new(&config, std::sync::Arc::new(node.sealed()));
    let blind = sampler.blind().expect("it is said").to_owned();
    assert!(blind.contains("/nowhere/net/dev: No such file") && blind.contains("own namespace"), "{blind}");
    assert!(!sample(&mut sampler).is_empty(), "the agent's own counters are better than none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_that_are_left_out_are_counted_and_told() {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = support::bare("left-out");
    config.network.enabled = true;
    config.network.interfaces_max = 0;
    let parts = support::parts(&nats).await;
    let metrics = parts.metrics.clone();
    let agent = tapio_agents::node::NodeAgent::start(config, parts).await.expect("the agent starts");
    let told = support::until("the state", || agent.degraded().first().cloned()).await;
    assert_eq!(told.0, "network");
    assert!(told.1.contains("network.interfaces_max"), "{told:?}");
    let text = metrics.encode();
    let line = text.lines().find(|line| line.contains("network_left_out_total")).expect("it is counted");
    assert!(line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > 0), "{line}");
    support::drain(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_publishes_them_as_the_nodes() {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = support::bare("network");
    config.network.enabled = true;
    let agent = support::start(&nats, config).await;
    let bus = nats.bus().await.unwrap();
    let is_loopback = |event: &UnifiedEvent| {
        support::metric(event, "system.network.packets").is_some_and(|metric| {
            find(&metric.attributes, "network.interface.name").and_then(|v| v.as_text()) == Some("lo")
        })
    };
    let mut stream = support::Stream::open(&bus, "network").await;
    let events = stream.events_until("loopback", |events| events.iter().any(is_loopback)).await;
    let event = events.iter().find(|event| is_loopback(event)).unwrap();
    assert_eq!((event.source, event.entity.node.as_str()), (Source::Network, support::NODE));
    assert!(matches!(&event.payload, Payload::Metric(m) if m.value > 0.0));
    assert_eq!(agent.degraded(), vec![]);
    support::drain(agent).await;
}
