use std::net::TcpListener;
use std::time::Duration;

use super::*;

fn start(config: ChildConfig) -> Child {
    Child::start(config).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn starts_stops_and_restarts_on_the_same_port() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(ChildConfig::new(dir.path()));
    let (addr, pid) = (child.addr(), child.pid());
    assert!(child.is_running() && addr.port() != 0);
    assert_eq!(child.url(), format!("nats://{addr}"));
    child.stop().unwrap();
    assert!(!child.is_running());
    child.stop().unwrap();
    child.restart().unwrap();
    assert_eq!(child.addr(), addr);
    assert_ne!(child.pid(), pid);
    assert!(dir.path().join("jetstream").is_dir(), "the store is in the data directory");
}

#[test]
fn dropping_ends_the_process_and_frees_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let child = start(ChildConfig::new(dir.path()));
    let error = Child::start(ChildConfig::new(dir.path())).unwrap_err();
    assert!(matches!(error, NatsServerError::Locked { .. }), "{error}");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.pid()).unwrap()).unwrap();
    drop(child);
    assert!(rustix::process::test_kill_process(pid).is_err(), "the process is gone");
    start(ChildConfig::new(dir.path()));
}

#[test]
fn the_server_outlives_the_thread_that_started_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = ChildConfig::new(dir.path());
    let child = std::thread::spawn(move || start(config)).join().unwrap();
    std::net::TcpStream::connect(child.addr()).unwrap();
    assert!(child.is_running());
}

#[test]
fn a_port_in_use_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Child::start(ChildConfig { port, ..ChildConfig::new(dir.path()) }).unwrap_err();
    assert!(matches!(error, NatsServerError::PortInUse { port: p, .. } if p == port), "{error}");
}

#[test]
fn a_bad_configuration_shows_the_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let config = ChildConfig { host: "not a host".into(), ..ChildConfig::new(dir.path()) };
    let error = Child::start(config).unwrap_err();
    let NatsServerError::EndedEarly { log, .. } = &error else { panic!("{error}") };
    assert!(!log.is_empty());
}

#[tokio::test]
async fn an_unexpected_end_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let child = start(ChildConfig::new(dir.path()));
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(10), child.wait_exit()).await.unwrap();
    assert!(status.contains('9'), "{status}");
    assert!(!child.is_running());
}
