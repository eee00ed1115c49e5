//! Real events of the kernel, through NATS, with the entity they belong to.

mod support;

use std::os::unix::process::ExitStatusExt;

use support::cgroup::TestGroup;
use support::{NODE, Stream, bare, drain, metric, start, until};
use tapio_agents::collectors::CollectorState;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::entity::{Entity, kinds};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::kind::EventKind;
use tapio_schemas::payload::Payload;

const CLUSTER: &str = "kernel";
const LIMIT: u64 = 48 << 20;
const SIGKILL: u32 = 9;

/// Takes some thirty mebibytes a second until the kernel ends it.
const LEAK: &str = "
import time
kept = []
while True:
    kept.append(bytearray(1 << 20))
    time.sleep(0.03)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_out_of_memory_kill_arrives_once_with_its_cgroup_and_the_growth_before_it() {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = bare(CLUSTER);
    config.ebpf.enabled = true;
    config.cgroup.enabled = true;
    config.cgroup.interval = HumanDuration::from_millis(100);
    config.cgroup.fast_interval = HumanDuration::from_millis(50);
    config.cgroup.discover_interval = HumanDuration::from_millis(50);
    let agent = start(&nats, config).await;
    let states = agent.collectors().states();
    assert_eq!((&states["ebpf"], &states["cgroup"]), (&CollectorState::Running, &CollectorState::Running));
    let group = TestGroup::new("oom");
    group.limit_memory(LIMIT);
    let mut child = group.python(LEAK);
    let pid = child.pid();
    let status = child.0.wait().expect("the child ends");
    assert_eq!(status.signal(), Some(SIGKILL as i32));

    let bus = nats.bus().await.unwrap();
    let exited = |e: &UnifiedEvent| e.kind == EventKind::ProcessExit && e.pid == pid;
    let mut stream = Stream::open(&bus, CLUSTER).await;
    let mut events = stream.events_until("the exit of the victim", |events| events.iter().any(exited)).await;
    let ledger = drain(agent).await;
    assert_eq!(ledger.dropped_total(), 0, "{ledger:?}");
    events.extend(stream.rest().await.into_iter().flat_map(|batch| batch.events));
    assert_eq!(events.len() as u64, ledger.published);

    let kills: Vec<_> = events.iter().filter(|e| e.kind == EventKind::OomKill && e.pid == pid).collect();
    assert_eq!(kills.len(), 1, "exactly once");
    let kill = kills[0];
    let Payload::Kernel(data) = &kill.payload else { panic!("{kill:?}") };
    assert!(data.comm.starts_with("python"), "{data:?}");
    assert!(
        data.victim.as_ref().is_some_and(|v| (LIMIT / 2..=LIMIT).contains(&v.anon_rss_bytes)),
        "{data:?}"
    );
    assert_eq!(kill.entity.subject(), Entity::new(kinds::CGROUP, "", &group.path(), NODE));
    assert_eq!(kill.entity.cluster, CLUSTER);

    let exits: Vec<_> = events.iter().filter(|e| exited(e)).collect();
    assert_eq!(exits.len(), 1, "exactly once");
    let Payload::Kernel(exit) = &exits[0].payload else { panic!("{exits:?}") };
    assert_eq!(exit.signal, SIGKILL);
    assert_eq!(exits[0].entity.lineage, kill.entity.lineage);

    let usage: Vec<f64> = events
        .iter()
        .filter(|e| e.entity.cgroup == group.path() && e.timestamp < kill.timestamp)
        .filter_map(|e| metric(e, "container.memory.usage"))
        .inspect(|usage| assert_eq!(usage.limit, LIMIT as f64))
        .map(|usage| usage.value)
        .collect();
    assert!(usage.len() >= 3, "samples before the kill: {usage:?}");
    assert!(usage.last() > usage.first(), "it grew: {usage:?}");
    let samples =
        events.iter().filter(|e| e.entity.cgroup == group.path() && e.kind == EventKind::CgroupSample);
    assert!(samples.clone().all(|e| e.key() == kill.key()), "growth and kill meet in one shard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_refused_connections_are_five_events_of_the_process_that_tried() {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = bare("refused");
    config.ebpf.enabled = true;
    let agent = start(&nats, config).await;
    let group = TestGroup::new("refused");
    // A port that was free a moment ago, on an address of this test's own.
    let script = "
import socket
free = socket.socket(); free.bind(('127.77.1.1', 0)); port = free.getsockname()[1]; free.close()
for _ in range(5):
    try: socket.create_connection(('127.77.1.1', port))
    except ConnectionRefusedError: pass
print(port)
";
    let mut child = group.python(script);
    let pid = child.pid();
    let port: u16 = child.line().parse().expect("a port");
    child.0.wait().expect("the child ends");

    let bus = nats.bus().await.unwrap();
    let exited = |e: &UnifiedEvent| e.kind == EventKind::ProcessExit && e.pid == pid;
    let mut stream = Stream::open(&bus, "refused").await;
    let mut events = stream.events_until("the exit", |events| events.iter().any(exited)).await;
    drain(agent).await;
    events.extend(stream.rest().await.into_iter().flat_map(|batch| batch.events));
    let own: Vec<_> = events.iter().filter(|e| e.pid == pid && e.kind.as_str().starts_with("net.")).collect();
    let refused: Vec<_> = own.iter().filter(|e| e.kind == EventKind::NetConnectRefused).collect();
    assert_eq!(refused.len(), 5, "{own:?}");
    for event in &refused {
        let Payload::Network(data) = &event.payload else { panic!("{event:?}") };
        assert_eq!((data.remote_port, data.errno), (port, 111));
        assert_eq!(data.remote_addr[10..], [0xff, 0xff, 127, 77, 1, 1]);
        assert_eq!(event.entity.cgroup, group.path());
    }
    assert!(!own.iter().any(|e| e.kind == EventKind::NetConnectTimeout), "{own:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_kernel_is_lost_when_nats_goes_away() {
    const CHILDREN: usize = 300;
    support::require_root();
    let mut nats = NatsServer::start().expect("nats-server");
    let mut config = bare("outage");
    config.ebpf.enabled = true;
    let agent = start(&nats, config).await;
    nats.kill();
    let mut pids = Vec::new();
    for n in 0..CHILDREN {
        let mut child = std::process::Command::new("sh")
            .args(["-c", &format!("exit {}", n % 7)])
            .spawn()
            .expect("sh runs");
        pids.push((child.id(), (n % 7) as i32));
        child.wait().expect("the child ends");
    }
    // Each child began a program and ended.
    let seen = agent.ledger().clone();
    until("their events", || (seen.snapshot().produced >= 2 * CHILDREN as u64).then_some(())).await;
    nats.restart().expect("nats-server starts again");
    let ledger = drain(agent).await;
    assert_eq!(ledger.dropped_total(), 0, "{ledger:?}");
    let bus = nats.bus().await.unwrap();
    let batches = Stream::open(&bus, "outage").await.rest().await;
    for (pid, code) in pids {
        let exits: Vec<_> = batches
            .iter()
            .flat_map(|batch| &batch.events)
            .filter(|e| e.kind == EventKind::ProcessExit && e.pid == pid)
            .collect();
        assert_eq!(exits.len(), 1, "child {pid}");
        let Payload::Kernel(data) = &exits[0].payload else { panic!("{exits:?}") };
        assert_eq!(data.exit_code, code);
    }
}
