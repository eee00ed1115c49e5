//! Without rights the agent runs with less and says so. A file of its own: the loader library asks the kernel once per
//! process what it can do.

mod support;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use support::cgroup::TestGroup;
use support::{Stream, bare, drain, metric, start};
use tapio_agents::collectors::CollectorState;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::harness::NatsServer;

/// Capabilities belong to threads, and threads inherit them: one thread gives up its own and starts all others.
#[test]
fn without_rights_the_kernel_programs_are_degraded_and_samples_still_come() {
    let group = TestGroup::new("unprivileged");
    let mut child = group.python("print('up', flush=True); input()");
    assert_eq!(child.line(), "up");
    let path = group.path();
    std::thread::spawn(move || {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .expect("a thread may give up its capabilities");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(agent_runs_with_less(&path));
    })
    .join()
    .expect("no panic");
}

async fn agent_runs_with_less(path: &str) {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = bare("unprivileged");
    config.ebpf.enabled = true;
    config.cgroup.enabled = true;
    config.cgroup.interval = HumanDuration::from_millis(100);
    let agent = start(&nats, config).await;
    let states = agent.collectors().states();
    assert_eq!(states["cgroup"], CollectorState::Running);
    let CollectorState::Degraded(reason) = &states["ebpf"] else { panic!("{states:?}") };
    assert!(reason.contains("run as root or with CAP_BPF and CAP_PERFMON"), "{reason}");
    let bus = nats.bus().await.unwrap();
    let mut stream = Stream::open(&bus, "unprivileged").await;
    let sampled = |events: &[tapio_schemas::event::UnifiedEvent]| {
        events.iter().any(|e| e.entity.cgroup == path && metric(e, "container.memory.usage").is_some())
    };
    stream.events_until("a sample of the test's group", sampled).await;
    drain(agent).await;
}
