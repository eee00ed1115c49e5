//! An agent in a container has a cgroup namespace of its own; what it says of others must not depend on that.

mod support;

use std::path::Path;
use std::process::Command;

use support::cgroup::TestGroup;
use tapio_agents::attribution::{Attribution, CGROUP_ROOT, Hierarchies};
use tapio_runtime::clock::SystemClock;

const NAME: &str = "a_process_elsewhere_is_found_from_within_a_cgroup_namespace";
const PID: &str = "TAPIO_TEST_PID";

/// Namespaces belong to processes, so the test runs itself again in another one.
#[test]
fn a_process_elsewhere_is_found_from_within_a_cgroup_namespace() {
    if let Ok(pid) = std::env::var(PID) {
        let seen = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let trees = Hierarchies::discover(Path::new(CGROUP_ROOT)).unwrap();
        let attribution = Attribution::new("c", "n", Some(trees), None, SystemClock::shared());
        let entity = attribution.resolve_process(pid.parse().unwrap());
        println!("relative: {}, resolved: {}", seen.contains(":/../"), entity.cgroup);
        return;
    }
    let (own, other) = (TestGroup::new("namespace-own"), TestGroup::new("namespace-other"));
    let mut elsewhere = other.python("print('up', flush=True); input()");
    assert_eq!(elsewhere.line(), "up");
    let join = own.join_script();
    let script = format!("{join}\nexec unshare --cgroup \"$EXE\" --exact {NAME} --nocapture");
    let output = Command::new("sh")
        .args(["-euc", &script])
        .env("EXE", std::env::current_exe().unwrap())
        .env(PID, elsewhere.pid().to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("relative: true, resolved: {}\n", other.path())), "{said}");
}
