//! The process that leaks: joins a cgroup, then touches more and more memory until the kernel kills it.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cli::LeakArgs;

const STEP: Duration = Duration::from_millis(50);

/// Leaks until killed; returns by itself at `stop_mib`, so that a missing limit does not eat the machine.
pub fn run(args: &LeakArgs) -> anyhow::Result<i32> {
    std::fs::write(&args.procs, std::process::id().to_string())
        .with_context(|| format!("cannot join the cgroup through {}", args.procs.display()))?;
    let started = Instant::now();
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    let mut held = 0u64;
    while held < args.stop_mib << 20 {
        let due = (started.elapsed().as_secs_f64() * (args.rate_kib << 10) as f64) as u64;
        while held < due {
            // Written, not only reserved: the kernel charges pages when they are touched.
            hoard.push(vec![0xa5; 64 << 10]);
            held += 64 << 10;
        }
        std::thread::sleep(STEP);
    }
    println!("{held} bytes held in {} pieces and nobody stopped it", hoard.len());
    Ok(crate::exit::FAILED)
}
