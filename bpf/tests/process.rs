//! Processes that begin, end, crash and are killed.

mod support;

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Watch, child, execs, exits, signals};
use tapio_bpf::{BpfConfig, SignalMask, SignalResult};

const SIGSEGV: u8 = 11;
const SIGTERM: u8 = 15;
const SIGUSR1: u8 = 10;

fn unix_now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64
}

#[test]
fn exec_and_exit_with_its_code() {
    let mut watch = Watch::start();
    let before = unix_now_ns();
    let pid = child::run("/bin/sh", &["-c", "exit 7"]);
    let after = unix_now_ns();
    watch.settle();

    let records = watch.of_pid(pid);
    let exec = &execs(&records)[..];
    assert_eq!(exec.len(), 1, "{records:?}");
    assert_eq!(exec[0].filename, "/bin/sh");
    assert_eq!(exec[0].parent_pid, std::process::id());
    let exit = &exits(&records)[..];
    assert_eq!(exit.len(), 1, "{records:?}");
    assert_eq!((exit[0].status, exit[0].signal, exit[0].core_dumped), (7, None, false));
    assert!((100 * 1024..1 << 30).contains(&exit[0].max_rss_bytes), "{} bytes", exit[0].max_rss_bytes);

    for record in &records {
        let process = record.owner.process.expect("a process");
        assert_eq!(process.comm.to_string(), "sh");
        assert_eq!(process.uid, 0);
        assert!(process.start_boot_ns > 0 && process.start_boot_ns < record.boot_ns);
        // The clocks of one machine, read apart.
        assert!(record.unix_ns + 1_000_000 > before && record.unix_ns < after + 1_000_000);
    }
    assert!(
        records.windows(2).all(|pair| pair[0].owner.process.unwrap().start_boot_ns
            == pair[1].owner.process.unwrap().start_boot_ns)
    );
}

#[test]
fn a_process_ends_once_with_the_code_of_its_last_thread() {
    let mut watch = Watch::start();
    // The first thread leaves by the bare system call; another one ends the process after it.
    let ended = child::python(
        "import ctypes, os, platform, threading\n\
         first = threading.get_native_id()\n\
         def last():\n\
         \x20   while open(f'/proc/self/task/{first}/stat').read().rsplit(')', 1)[1].split()[0] != 'Z': pass\n\
         \x20   os._exit(3)\n\
         threading.Thread(target=last).start()\n\
         exit_thread = 60 if platform.machine() == 'x86_64' else 93\n\
         ctypes.CDLL(None).syscall(exit_thread, 9)\n",
    );
    assert_eq!(ended.status.code(), Some(3), "{}", ended.stderr);
    watch.settle();
    let exit = exits(&watch.of_pid(ended.pid));
    assert_eq!(exit.len(), 1, "one end for two threads: {exit:?}");
    assert_eq!(exit[0].status, 3);
}

#[test]
fn a_crash_is_an_exit_by_signal_and_a_signal_of_the_kernel() {
    let mut watch = Watch::start();
    let ended = child::prepared("ulimit -c 0", "import ctypes; ctypes.string_at(0)");
    assert_eq!(ended.status.signal(), Some(i32::from(SIGSEGV)));
    watch.settle();
    let records = watch.of_pid(ended.pid);
    let exit = exits(&records);
    assert_eq!(exit.len(), 1);
    assert_eq!((exit[0].signal, exit[0].status), (Some(SIGSEGV), 0));
    let signal = signals(&records);
    assert_eq!(signal.len(), 1, "{signal:?}");
    assert_eq!((signal[0].signal, signal[0].sender), (SIGSEGV, None), "a fault has no sender");
    assert!(signal[0].code > 0, "a fault has the kernel's reason: {}", signal[0].code);
    assert_eq!(signal[0].result, SignalResult::Delivered);
}

#[test]
fn a_process_that_raises_a_signal_is_its_own_sender() {
    let mut watch = Watch::start();
    let ended = child::prepared("ulimit -c 0", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)");
    watch.settle();
    let signal = signals(&watch.of_pid(ended.pid));
    assert_eq!(signal.len(), 1);
    assert_eq!(signal[0].sender.expect("a sender").pid, ended.pid);
    assert_eq!(signal[0].code, 0, "SI_USER");
    assert!(signal[0].to_group);
    assert_eq!(exits(&watch.of_pid(ended.pid))[0].signal, Some(SIGSEGV));
}

#[test]
fn a_kill_names_target_and_sender() {
    let mut watch = Watch::start();
    let mut sleeper = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().expect("sleep runs");
    let pid = sleeper.id();
    watch.until("the exec", |records| {
        records.iter().find(|record| support::pid(record) == Some(pid)).map(|_| ())
    });
    kill_process(Pid::from_child(&sleeper), Signal::TERM).expect("the child can be killed");
    sleeper.wait().expect("the child can be waited for");
    watch.settle();
    let records = watch.of_pid(pid);
    let signal = signals(&records);
    assert_eq!(signal.len(), 1);
    assert_eq!(signal[0].signal, SIGTERM);
    assert_eq!(signal[0].sender.expect("a sender").pid, std::process::id());
    assert_eq!(exits(&records)[0].signal, Some(SIGTERM));
    let owner = records.last().expect("records").owner.process.expect("a process");
    assert_eq!(owner.comm.to_string(), "sleep");
}

#[test]
fn only_the_masked_signals_are_reported() {
    let mut watch = Watch::with(BpfConfig { signals: SignalMask::of(&[SIGUSR1]), ..BpfConfig::default() });
    let ended = child::python(
        "import os, signal\n\
         signal.signal(signal.SIGUSR1, lambda *_: None)\n\
         signal.signal(signal.SIGTERM, lambda *_: None)\n\
         os.kill(os.getpid(), signal.SIGUSR1)\n\
         os.kill(os.getpid(), signal.SIGTERM)\n",
    )
    .ok();
    watch.settle();
    let numbers: Vec<u8> = signals(&watch.of_pid(ended.pid)).iter().map(|signal| signal.signal).collect();
    assert_eq!(numbers, [SIGUSR1]);
}
