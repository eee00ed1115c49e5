//! Work that may wait for other work of the same process.

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

#[cfg(test)]
mod tests {
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
