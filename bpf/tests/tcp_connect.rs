//! How connects end, each outcome provoked for real. Exactly one outcome per attempt.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use support::{Watch, accepts, begins, child, closes, ends, pid, resets_received, resets_sent, retransmits};
use tapio_bpf::{Body, ConnectOutcome, TcpConnectEnd, TcpState};

const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;
const EHOSTUNREACH: i32 = 113;

/// A neighbour that is said to be there and is not: what is sent to it is gone, and nothing answers.
const BLACKHOLE: &str = "\
ip link add hole0 type veth peer name hole1
ip addr add 10.99.0.1/24 dev hole0
ip -6 addr add fd99::1/64 dev hole0 nodad
ip link set hole0 up
ip link set hole1 up
ip neigh replace 10.99.0.2 lladdr 02:00:00:00:99:02 dev hole0 nud permanent
ip neigh replace fd99::2 lladdr 02:00:00:00:99:02 dev hole0 nud permanent
echo 1 > /proc/sys/net/ipv4/tcp_syn_retries
linear=/proc/sys/net/ipv4/tcp_syn_linear_timeouts
if [ -e $linear ]; then echo 0 > $linear; fi
";

fn outcomes(ends: &[TcpConnectEnd]) -> Vec<ConnectOutcome> {
    ends.iter().map(|end| end.outcome).collect()
}

fn port(ended: &child::Ended) -> u16 {
    ended.stdout.trim().parse().unwrap_or_else(|_| panic!("not a port: {:?}", ended.stdout))
}

/// A port that was just free, five attempts, by a blocking or a non-blocking connect.
fn refuse_five_times(family: &str, address: &str, blocking: bool) -> (Watch, child::Ended) {
    let mut watch = Watch::start();
    let script = format!(
        "import errno, select, socket\n\
         held = socket.socket(socket.{family})\n\
         held.bind(('{address}', 0))\n\
         port = held.getsockname()[1]\n\
         print(port)\n\
         for _ in range(5):\n\
         \x20   s = socket.socket(socket.{family})\n\
         \x20   s.setblocking({})\n\
         \x20   error = s.connect_ex(('{address}', port))\n\
         \x20   if error == errno.EINPROGRESS:\n\
         \x20       select.select([], [s], [])\n\
         \x20       error = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)\n\
         \x20   assert error == errno.ECONNREFUSED, error\n\
         \x20   s.close()\n",
        if blocking { "True" } else { "False" }
    );
    let ended = child::python(&script).ok();
    watch.settle();
    (watch, ended)
}

fn assert_refused_five_times(family: &str, address: &str, blocking: bool) {
    let (watch, ended) = refuse_five_times(family, address, blocking);
    let remote = SocketAddr::new(address.parse().expect("an address"), port(&ended));
    let records = watch.of_pid(ended.pid);
    let ends = ends(&records);
    assert_eq!(outcomes(&ends), [ConnectOutcome::Refused; 5], "five refused, nothing else");
    for end in &ends {
        assert_eq!(end.tuple.remote, remote);
        assert_eq!(end.tuple.local.ip(), remote.ip());
        assert_ne!(end.tuple.local.port(), 0);
        assert_eq!(end.error, ECONNREFUSED);
        assert!(end.latency.is_some());
    }
    assert_eq!(begins(&records).len(), 5);
    assert!(begins(&records).iter().all(|begin| begin.tuple.remote == remote));
    assert_eq!(resets_received(&records), [], "a refusal is not a reset of a connection");
    assert_eq!(closes(&records), [], "what was never established does not close");
    for record in records.iter().filter(|record| !matches!(record.body, Body::Exec(_) | Body::Exit(_))) {
        let process = record.owner.process.expect("a process");
        assert!(process.comm.to_string().starts_with("python"), "{record:?}");
        assert!(record.owner.cgroup_id.is_some() && record.owner.memory_cgroup_id.is_some());
    }

    // The side that refuses sends a reset, of no socket and so of nobody.
    let everything: Vec<_> = watch.records.iter().collect();
    let sent: Vec<_> =
        resets_sent(&everything).into_iter().filter(|reset| reset.tuple.local == remote).collect();
    assert_eq!(sent.len(), 5);
    assert!(sent.iter().all(|reset| reset.state.is_none() && reset.tuple.socket.is_none()));
    assert!(sent.iter().all(|reset| reset.tuple.network_namespace == ends[0].tuple.network_namespace));
    let sources: Vec<_> = sent.iter().map(|reset| reset.tuple.remote).collect();
    assert_eq!(sources, ends.iter().map(|end| end.tuple.local).collect::<Vec<_>>());
}

#[test]
fn five_refused_ipv4() {
    assert_refused_five_times("AF_INET", "127.0.0.1", true);
}

#[test]
fn five_refused_ipv6() {
    assert_refused_five_times("AF_INET6", "::1", true);
}

#[test]
fn five_refused_without_blocking() {
    assert_refused_five_times("AF_INET", "127.0.0.1", false);
}

#[test]
fn five_refused_without_blocking_ipv6() {
    assert_refused_five_times("AF_INET6", "::1", false);
}

#[test]
fn refused_over_a_mapped_address_is_ipv4() {
    let mut watch = Watch::start();
    let ended = child::python(
        "import errno, socket\n\
         held = socket.socket(); held.bind(('127.0.0.1', 0)); port = held.getsockname()[1]; print(port)\n\
         assert socket.socket(socket.AF_INET6).connect_ex(('::ffff:127.0.0.1', port)) == errno.ECONNREFUSED\n",
    )
    .ok();
    watch.settle();
    let ends = ends(&watch.of_pid(ended.pid));
    assert_eq!(outcomes(&ends), [ConnectOutcome::Refused]);
    assert_eq!(ends[0].tuple.remote, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port(&ended)));
}

#[test]
fn established_with_latency_and_accepted_by_the_listener() {
    for (family, address) in [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")] {
        let mut watch = Watch::start();
        let ended = child::python(&format!(
            "import socket\n\
             listener = socket.socket(socket.{family}); listener.bind(('', 0)); listener.listen()\n\
             port = listener.getsockname()[1]; print(port)\n\
             client = socket.create_connection(('{address}', port))\n\
             server, _ = listener.accept()\n\
             client.sendall(b'x' * 1000); assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000\n\
             client.close(); assert server.recv(1) == b''; server.close()\n",
        ))
        .ok();
        watch.settle();
        let remote = SocketAddr::new(address.parse().expect("an address"), port(&ended));
        let records = watch.of_pid(ended.pid);
        let end = &ends(&records)[..];
        assert_eq!(outcomes(end), [ConnectOutcome::Established], "{records:?}");
        assert_eq!((end[0].tuple.remote, end[0].error), (remote, 0));
        let latency = end[0].latency.expect("the begin was seen");
        assert!((1..10_000_000_000).contains(&latency.as_nanos()), "{latency:?}");

        // The listener is found by its wildcard address, although the handshake ends in interrupt context.
        let accepted = &accepts(&records)[..];
        assert_eq!(accepted.len(), 1, "{records:?}");
        assert_eq!((accepted[0].tuple.local, accepted[0].tuple.remote), (remote, end[0].tuple.local));
        assert_ne!(accepted[0].tuple.socket, end[0].tuple.socket, "two sockets of one connection");
    }
}

#[test]
fn no_answer_is_timed_out_and_never_refused() {
    for (family, address) in [("AF_INET", "10.99.0.2"), ("AF_INET6", "fd99::2")] {
        let (watch, ended) = Watch::whole(|| {
            let script = format!(
                "import errno, socket\n\
                 error = socket.socket(socket.{family}).connect_ex(('{address}', 81))\n\
                 assert error == errno.ETIMEDOUT, error\n"
            );
            child::in_own_network(BLACKHOLE, &script).ok()
        });
        let records = watch.of_pid(ended.pid);
        let end = ends(&records);
        assert_eq!(outcomes(&end), [ConnectOutcome::TimedOut]);
        assert_eq!(end[0].error, ETIMEDOUT);
        assert_eq!(end[0].tuple.remote, SocketAddr::new(address.parse().expect("an address"), 81));
        assert!(end[0].latency.expect("the begin was seen").as_millis() >= 1000, "{end:?}");

        let again = retransmits(&records);
        assert_eq!(again.len(), 1, "tcp_syn_retries is 1: {again:?}");
        assert_eq!(again[0].state, TcpState::SynSent);
        assert_eq!(again[0].tuple.socket, end[0].tuple.socket);
    }
}

/// Timers end these attempts in interrupt context, so whoever runs then must not be blamed.
#[test]
fn timed_out_without_blocking_belongs_to_who_connected() {
    let script = "import errno, select, socket\n\
         attempts = [socket.socket() for _ in range(5)]\n\
         poller = select.poll()\n\
         for s in attempts:\n\
         \x20   s.setblocking(False)\n\
         \x20   assert s.connect_ex(('10.99.0.2', 81)) == errno.EINPROGRESS\n\
         \x20   poller.register(s, select.POLLOUT)\n\
         open_ones = {s.fileno(): s for s in attempts}\n\
         while open_ones:\n\
         \x20   for fd, _ in poller.poll():\n\
         \x20       assert open_ones.pop(fd).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT\n\
         \x20       poller.unregister(fd)\n";
    let (watch, ended) = Watch::whole(|| child::in_own_network(BLACKHOLE, script).ok());
    let end = ends(&watch.of_pid(ended.pid));
    assert_eq!(outcomes(&end), [ConnectOutcome::TimedOut; 5]);
    // Nobody else was blamed for this namespace's attempts.
    let namespace = end[0].tuple.network_namespace;
    let everything: Vec<_> = watch.records.iter().filter(|record| pid(record) != Some(ended.pid)).collect();
    assert!(ends(&everything).iter().all(|end| end.tuple.network_namespace != namespace));
}

#[test]
fn a_neighbour_that_is_not_there_is_unreachable() {
    let mut watch = Watch::start();
    let ended = child::in_own_network(
        // More patience than the three questions to the neighbour take; the answer comes by the loopback device.
        &format!("{BLACKHOLE}ip link set lo up\necho 6 > /proc/sys/net/ipv4/tcp_syn_retries"),
        "import errno, socket\n\
         error = socket.socket().connect_ex(('10.99.0.77', 81))\n\
         assert error == errno.EHOSTUNREACH, error\n",
    )
    .ok();
    watch.settle();
    let end = ends(&watch.of_pid(ended.pid));
    assert_eq!(outcomes(&end), [ConnectOutcome::Unreachable]);
    assert_eq!(end[0].error, EHOSTUNREACH);
}

/// Closed, disconnected, shut down and killed while the SYN is out: given up here, which is nobody's refusal.
#[test]
fn given_up_here_is_aborted() {
    let ways = [
        "s.close()",
        "s.connect_ex(('0.0.0.0', 0)); libc.connect(s.fileno(), bytes(16), 16)",
        "s.shutdown(socket.SHUT_RDWR)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ];
    for way in ways {
        let mut watch = Watch::start();
        let ended = child::in_own_network(
            BLACKHOLE,
            &format!(
                "import ctypes, errno, os, signal, socket\n\
                 libc = ctypes.CDLL(None)\n\
                 s = socket.socket()\n\
                 s.setblocking(False)\n\
                 assert s.connect_ex(('10.99.0.2', 81)) == errno.EINPROGRESS\n\
                 {way}\n"
            ),
        );
        watch.settle();
        let end = ends(&watch.of_pid(ended.pid));
        assert_eq!(outcomes(&end), [ConnectOutcome::Aborted], "{way}: {}", ended.stderr);
        assert_eq!(end[0].error, 0, "{way}");
    }
}

#[test]
fn no_free_port_is_a_local_error() {
    let mut watch = Watch::start();
    let ended = child::in_own_network(
        "ip link set lo up\necho '50000 50000' > /proc/sys/net/ipv4/ip_local_port_range",
        "import errno, socket\n\
         listener = socket.socket(); listener.bind(('127.0.0.1', 81)); listener.listen()\n\
         first = socket.create_connection(('127.0.0.1', 81))\n\
         error = socket.socket().connect_ex(('127.0.0.1', 81))\n\
         assert error == errno.EADDRNOTAVAIL, error\n",
    )
    .ok();
    watch.settle();
    let end = ends(&watch.of_pid(ended.pid));
    assert_eq!(outcomes(&end), [ConnectOutcome::Established, ConnectOutcome::LocalError]);
}

#[test]
fn a_socket_that_tries_again_has_an_outcome_each_time() {
    let mut watch = Watch::start();
    let ended = child::python(
        "import errno, socket\n\
         listener = socket.socket(); listener.bind(('127.0.0.1', 0))\n\
         s = socket.socket()\n\
         for _ in range(3): assert s.connect_ex(listener.getsockname()) == errno.ECONNREFUSED\n\
         listener.listen()\n\
         s.connect(listener.getsockname())\n",
    )
    .ok();
    watch.settle();
    use ConnectOutcome::{Established, Refused};
    assert_eq!(outcomes(&ends(&watch.of_pid(ended.pid))), [Refused, Refused, Refused, Established]);
}

/// Two sides that connect to each other at once, here one socket to itself, are outbound and never accepted.
#[test]
fn a_simultaneous_open_is_one_established() {
    let mut watch = Watch::start();
    let ended = child::python(
        "import socket\n\
         s = socket.socket(); s.bind(('127.0.0.1', 0)); s.connect(s.getsockname()); print(s.getsockname()[1])\n",
    )
    .ok();
    watch.settle();
    let records = watch.of_pid(ended.pid);
    let end = ends(&records);
    assert_eq!(outcomes(&end), [ConnectOutcome::Established]);
    assert_eq!(end[0].tuple.local, end[0].tuple.remote);
    assert_eq!(accepts(&records), []);
    assert_ne!(end[0].tuple.local.ip(), IpAddr::V6(Ipv6Addr::LOCALHOST));
}
