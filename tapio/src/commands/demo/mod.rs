//! `tapio demo`: see Tapio do its job on a real failure.

mod cgroup;
mod memory_leak;
mod recorded;

use crate::cli::{DemoArgs, DemoScenario};

/// Runs a scenario.
pub async fn run(args: DemoArgs) -> anyhow::Result<i32> {
    match args.scenario {
        DemoScenario::MemoryLeak(args) if rustix::process::geteuid().is_root() => {
            memory_leak::run(args).await
        }
        DemoScenario::MemoryLeak(_) => {
            println!(
                "Not root: cannot make a memory cgroup and cannot see kernel events. What follows is a recording of a \
                 real run; `sudo tapio demo memory-leak` does it live.\n"
            );
            recorded::memory_leak()
        }
    }
}
