//! The kernel takes every program, and says clearly what it does not take.

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use support::{Watch, child, require_root};
use tapio_bpf::{Batch, BpfConfig, BpfError, Loader, Program, ProgramState, probe};

#[test]
fn every_program_loads_and_attaches() {
    let watch = Watch::start();
    let attached: Vec<Program> = watch.loaded.programs().iter().map(|status| status.program).collect();
    assert_eq!(attached, Program::ALL);
    assert!(watch.loaded.programs().iter().all(|status| status.state == ProgramState::Attached));
}

#[test]
fn the_ring_has_one_reader() {
    let mut watch = Watch::start();
    assert!(matches!(watch.loaded.reader(), Err(BpfError::ReaderTaken)));
}

#[test]
fn only_the_wanted_programs_are_loaded() {
    let mut watch = Watch::with(BpfConfig { programs: vec![Program::Exit], ..BpfConfig::default() });
    for status in watch.loaded.programs() {
        let wanted =
            if status.program == Program::Exit { ProgramState::Attached } else { ProgramState::Disabled };
        assert_eq!(status.state, wanted, "{}", status.program);
    }
    let pid = child::run("true", &[]);
    watch.until("the exit", |records| {
        records.iter().find(|record| support::pid(record) == Some(pid)).map(|_| ())
    });
    assert_eq!(watch.of_pid(pid).len(), 1, "an exit and no exec");
}

#[test]
fn counters_count_what_was_submitted() {
    let mut watch = Watch::with(BpfConfig { programs: vec![Program::Exec], ..BpfConfig::default() });
    for _ in 0..3 {
        child::run("true", &[]);
    }
    let submitted = |watch: &Watch| {
        let counters = watch.loaded.counters().expect("the counters are readable");
        counters
            .iter()
            .find(|counters| counters.program == Program::Exec)
            .expect("exec has counters")
            .submitted
    };
    watch.until("three execs", |records| (records.len() >= 3).then_some(()));
    // Others start processes too; each record that was read was counted before.
    assert!(submitted(&watch) >= watch.records.len() as u64);
    let counters = watch.loaded.counters().expect("the counters are readable");
    assert!(
        counters
            .iter()
            .filter(|counters| counters.program != Program::Exec)
            .all(|counters| counters.submitted == 0)
    );
}

/// Nobody reads while more happens than the ring holds: what was submitted is all there, what was lost is counted, the two
/// make up what happened, and the routine that fills the ring leaves room for a crash.
#[test]
fn a_full_ring_sheds_routine_counts_it_and_keeps_the_crash() {
    let programs = vec![Program::Exec, Program::Exit, Program::Signal];
    let mut watch = Watch::with(BpfConfig { ring_bytes: 16_384, programs, ..BpfConfig::default() });
    for _ in 0..40 {
        child::run("true", &[]);
    }
    let crashed = child::prepared("ulimit -c 0", "import ctypes; ctypes.string_at(0)").pid;
    let counters = watch.loaded.counters().expect("the counters are readable");
    let of =
        |program| *counters.iter().find(|counters| counters.program == program).expect("it has counters");
    let exec = of(Program::Exec);
    assert!(exec.shed > 0 && exec.lost >= exec.shed, "forty records of 336 bytes do not fit: {exec:?}");
    // The shell and Python are two more; others start processes too.
    assert!(exec.submitted + exec.lost + exec.missed >= 42, "{exec:?}");
    assert_eq!(of(Program::Signal).lost, 0);

    // Read to the end; routine that came after the first room was made is read as well.
    watch.reader.waker().close();
    while let Batch::Records(_) =
        watch.reader.next_batch(&mut watch.records, 4096, None).expect("the ring is readable")
    {}
    let all: Vec<_> = watch.records.iter().collect();
    assert!(support::execs(&all).len() as u64 >= exec.submitted);
    let crash = watch.of_pid(crashed);
    assert_eq!(support::signals(&crash).len(), 1, "{crash:?}");
    assert_eq!(support::exits(&crash).len(), 1, "{crash:?}");
    assert_eq!(support::exits(&crash)[0].signal, Some(11));
}

#[test]
fn a_wait_ends_by_time_by_waking_and_by_closing() {
    // No program, no record: nothing but the test ends the wait.
    let mut watch = Watch::with(BpfConfig { programs: vec![], ..BpfConfig::default() });
    let begun = Instant::now();
    let wait = Duration::from_millis(50);
    assert_eq!(watch.reader.next_batch(&mut watch.records, 1, Some(wait)).unwrap(), Batch::Idle);
    assert!(begun.elapsed() >= wait);

    let waker = watch.reader.waker();
    let waking = thread::spawn(move || waker.wake());
    assert_eq!(watch.reader.next_batch(&mut watch.records, 1, None).unwrap(), Batch::Idle);
    waking.join().unwrap();

    let waker = watch.reader.waker();
    let closing = thread::spawn(move || waker.close());
    assert_eq!(watch.reader.next_batch(&mut watch.records, 1, None).unwrap(), Batch::Closed);
    closing.join().unwrap();
    assert_eq!(
        watch.reader.next_batch(&mut watch.records, 1, None).unwrap(),
        Batch::Closed,
        "it stays closed"
    );
}

#[test]
fn a_sleeping_reader_uses_no_processor() {
    let mut watch = Watch::with(BpfConfig { programs: vec![], ..BpfConfig::default() });
    let used = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let before = used();
    assert_eq!(
        watch.reader.next_batch(&mut watch.records, 1, Some(Duration::from_millis(500))).unwrap(),
        Batch::Idle
    );
    assert!(used() - before < Duration::from_millis(50), "it polls: {:?} of 500 ms", used() - before);
}

#[test]
fn bad_configuration_is_named() {
    let error = Loader::new(BpfConfig { ring_bytes: 5000, ..BpfConfig::default() }).load().unwrap_err();
    assert!(error.to_string().contains("ring_bytes is 5000"), "{error}");
}

#[test]
fn probe_finds_every_program_loadable_for_root() {
    require_root();
    let found = probe();
    assert!(!found.kernel_release.is_empty());
    assert!(found.btf);
    assert!(found.capabilities.suffice(), "{:?}", found.capabilities);
    for status in found.programs.expect("the programs are offered to the kernel") {
        assert_eq!(status.state, ProgramState::Loadable, "{}", status.program);
    }
}
