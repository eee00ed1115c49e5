//! Pipes and connections that break while the program writes to them.

mod common;
mod told;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{data_dir, tapio, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// As a server that has just been reached.
const HELLO: &[u8] = b"INFO {\"server_id\":\"a\",\"version\":\"2.11.0\",\"proto\":1,\"headers\":true,\"max_payload\":1048576,\"jetstream\":true}\r\n";

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Says hello and is gone, both before the other side, which stands still meanwhile, can answer: what it writes is the first
/// that is written on a broken connection.
fn break_at_hello(mut connection: TcpStream, child: &Child) {
    // It has to wait for a hello by now: too early, and it finds out before it writes, and tries again just so.
    // check: allow sleep, what another process waits for does not show
    std::thread::sleep(Duration::from_millis(300));
    signal(child, Signal::STOP);
    connection.write_all(HELLO).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
    drop(connection);
    signal(child, Signal::CONT);
}

#[test]
fn a_connection_to_nats_that_breaks_while_it_writes_does_not_end_a_command() {
    let dir = data_dir();
    let file = dir.path().join("recorded.jsonl");
    for args in [&["status"][..], &["watch", "--news"], &["record", file.to_str().unwrap()]] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let mut child = tapio(args).args(["--nats-url", &url]).stdout(Stdio::null()).spawn().unwrap();
        break_at_hello(listener.accept().unwrap().0, &child);
        listener.set_nonblocking(true).unwrap();
        wait_for("another try to connect", || {
            assert_eq!(child.try_wait().unwrap(), None, "{args:?}");
            listener.accept().ok()
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_command_whose_output_nobody_reads_any_more_ends_without_a_word() {
    let mut world = told::World::start();
    world.tell_event();
    world.publish(&told::finding(1, "active", 0.9));
    let mut command = tapio(&["watch", "--stored", "--server", world.address()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut String::new()).unwrap();
    drop(lines);
    world.publish(&told::finding(2, "active", 0.9));
    let ended = wait_for("the end of it", || child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(141), "as a shell says of others that are ended so");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn a_service_whose_output_nobody_reads_any_more_ends_in_order_when_it_is_told_to() {
    // It takes the connection and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", silent.local_addr().unwrap());
    let dir = data_dir();
    let mut child = tapio(&["up", "--free-ports", "--data-dir", dir.path().to_str().unwrap()])
        .args(["--nats-url", &url, "--set", "bus.connect_timeout=10m"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _connection = silent.accept().unwrap();
    drop(child.stdout.take());
    signal(&child, Signal::INT);
    let ended = wait_for("the end", || child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
}
