//! Where and how soon threads run: in the background, or on a core of their own.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How much less of a contended core a thread in the background gets: 5 steps are a third.
const NICE: i32 = 5;
/// The kernel's bound.
const NICE_MAX: i32 = 19;

/// Lets the other threads of the process go first where cores are short. A system that refuses it changes nothing else.
pub fn lower_priority() {
    let thread = Some(rustix::thread::gettid());
    let lowered = rustix::process::getpriority_process(thread)
        .and_then(|now| rustix::process::setpriority_process(thread, (now + NICE).min(NICE_MAX)));
    if let Err(error) = lowered {
        tracing::debug!(%error, "the priority of a thread cannot be lowered");
    }
}

/// Keeps this thread on the core with this number among those that the process may use, counted around. A system that refuses
/// it changes nothing else.
pub fn pin(number: usize) {
    if let Err(error) = try_pin(number) {
        tracing::warn!(number, %error, "a thread cannot be kept on one core");
    }
}

fn try_pin(number: usize) -> rustix::io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let Some(core) = cores.get(number % cores.len().max(1)) else { return Ok(()) };
    let mut only = CpuSet::new();
    only.set(*core);
    sched_setaffinity(None, &only)
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CpuSet, sched_getaffinity};

    fn cores() -> Vec<usize> {
        let allowed = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect()
    }

    #[test]
    fn a_pinned_thread_stays_on_one_of_the_cores_it_had() {
        let before = cores();
        for number in 0..2 * before.len() {
            let pinned = std::thread::spawn(move || {
                super::pin(number);
                cores()
            });
            assert_eq!(pinned.join().unwrap(), [before[number % before.len()]]);
        }
        assert_eq!(cores(), before);
    }

    #[test]
    fn only_the_thread_itself_waits() {
        let of = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let before = of();
        std::thread::spawn(move || {
            super::lower_priority();
            assert_eq!(of(), (before + super::NICE).min(super::NICE_MAX));
        })
        .join()
        .unwrap();
        assert_eq!(of(), before);
    }
}
