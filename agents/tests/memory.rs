//! What the agent does when its memory runs out: with a bound that it is above of, and in a real control group.

mod support;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use support::cgroup::TestGroup;
use support::{Stream, bare, drain, start_with_source, until};
use tapio_agents::ledger::DropReason;
use tapio_agents::memory::MemoryShed;
use tapio_runtime::config::ByteSize;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::memory::{MemoryFigure, OwnMemory};
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity};
use tapio_schemas::payload::Payload;
use tapio_schemas::{SignalKind, trouble};

const CLUSTER: &str = "memory";
/// Names the role of a process that this file starts.
const CHILD: &str = "TAPIO_TEST_MEMORY_CHILD";
/// What the control group allows it.
const GROUP_BYTES: u64 = 200 << 20;

fn event(number: u64, severity: EventSeverity, payload: Payload) -> UnifiedEvent {
    let is_object = matches!(payload, Payload::Kubernetes(_));
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let entity = EntityRef { object: format!("o{}", number % 5).into(), ..EntityRef::default() };
    UnifiedEvent {
        timestamp: UnixNanos(since.as_nanos() as u64),
        kind: if is_object { EventKind::K8sImageChanged } else { EventKind::ProcessExec },
        severity,
        entity: Arc::new(entity.sealed()),
        payload,
        ..UnifiedEvent::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_its_bound_an_agent_sheds_routine_and_keeps_errors_and_says_so() {
    const COUNT: u64 = 1000;
    let nats = NatsServer::start().expect("nats-server");
    let mut config = bare(CLUSTER);
    // No process is that small, so it is above its bound from the first look on.
    config.memory_max = ByteSize::mib(1);
    let (agent, sink) = start_with_source(&nats, config).await;
    let severities = [EventSeverity::Info, EventSeverity::Warning, EventSeverity::Error];
    for severity in severities {
        let events = (0..COUNT).map(|n| event(n, severity, Payload::Kernel(Box::default())));
        sink.send(events.collect()).await.expect("taken");
    }
    let objects = (0..10).map(|n| event(n, EventSeverity::Info, Payload::Kubernetes(Box::default())));
    sink.send(objects.collect()).await.expect("taken");
    let own = agent.ledger().collector("agent");
    let ledger = agent.ledger().clone();
    // Its own words: the trouble, and the loss.
    let all = || ledger.snapshot().published == COUNT + 10 + own.get() && own.get() >= 2;
    until("what is not shed", || all().then_some(())).await;
    let end = drain(agent).await;
    assert_eq!(end.dropped, vec![(DropReason::MemoryPressure, 2 * COUNT)]);
    assert_eq!(
        (DropReason::MemoryPressure.stage(), DropReason::MemoryPressure.as_str()),
        ("shed", "memory_pressure")
    );

    let bus = nats.bus().await.expect("a bus");
    let events: Vec<_> =
        Stream::open(&bus, CLUSTER).await.rest().await.into_iter().flat_map(|batch| batch.events).collect();
    let count = |is: &dyn Fn(&UnifiedEvent) -> bool| events.iter().filter(|event| is(event)).count() as u64;
    let is_kernel = |event: &UnifiedEvent| matches!(event.payload, Payload::Kernel(_));
    assert_eq!(count(&|event| is_kernel(event) && event.severity == EventSeverity::Error), COUNT);
    assert_eq!(count(&|event| is_kernel(event)), COUNT, "and nothing less severe");
    assert_eq!(count(&|event| matches!(event.payload, Payload::Kubernetes(_))), 10);
    let says = events.iter().find_map(|event| match &event.payload {
        Payload::Custom(data) => trouble::told(data).filter(|(kind, _)| *kind == SignalKind::TapioMemory),
        _ => None,
    });
    let (_, says) = says.expect("it tells that its memory runs out");
    assert!(says.contains(" of 1 MiB are used") && says.contains("up to severity warning"), "{says}");
}

/// In the group: takes memory in steps and tells what would be shed.
fn child() {
    let mut shed = MemoryShed::new(Arc::new(OwnMemory), ByteSize(0));
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut now = Duration::ZERO;
    for percent in [50, 85, 94, 87, 50] {
        let wanted = GROUP_BYTES * percent / 100;
        let resident = || OwnMemory.resident_bytes().expect("a figure");
        while resident() > wanted && held.pop().is_some() {}
        while resident() < wanted {
            held.push(std::hint::black_box(vec![1; 1 << 20]));
        }
        now += Duration::from_secs(1);
        shed.look(now);
        let status = shed.status();
        println!("{percent} {:?} of {}", status.sheds, status.bytes_max);
    }
}

#[test]
fn in_a_real_control_group_the_limit_of_the_group_counts() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let group = TestGroup::new("memory");
    group.limit_memory(GROUP_BYTES);
    let shell = format!("{}\nexec \"$BINARY\" --exact --nocapture {TEST}", group.join_script());
    let output = Command::new("sh")
        .args(["-ec", &shell])
        .env("BINARY", std::env::current_exe().expect("this binary"))
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .expect("sh runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{:?}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let told: Vec<&str> = text.lines().filter(|line| line.contains(" of ")).collect();
    let expected =
        [(50, "None"), (85, "Some(Info)"), (94, "Some(Warning)"), (87, "Some(Warning)"), (50, "None")];
    let expected: Vec<String> =
        expected.iter().map(|(percent, sheds)| format!("{percent} {sheds} of {GROUP_BYTES}")).collect();
    assert_eq!(told, expected);
}

const TEST: &str = "in_a_real_control_group_the_limit_of_the_group_counts";
