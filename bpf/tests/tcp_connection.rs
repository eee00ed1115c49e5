//! What happens to connections that were established: closed, reset, lost on the way.

mod support;

use std::{
    net::{TcpListener, TcpStream},
    time::Duration,
};

use support::{Watch, accepts, child, closes, ends, pid, resets_received, resets_sent, retransmits};
use tapio_bpf::{
    BpfConfig, CloseReason, ConnectOutcome, Direction, RawRecord, SocketScan, TcpClosed, TcpRetransmit,
    TcpState,
};

const ECONNRESET: i32 = 104;

/// A connected pair in one process: `client` connected, `server` was accepted.
const PAIR: &str = "\
import errno, socket, struct
listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen()
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
linger_zero = struct.pack('ii', 1, 0)
";

#[test]
fn a_finished_connection_closes_on_both_sides_with_its_account() {
    let mut watch = Watch::start();
    let ended = child::python(&format!(
        "{PAIR}client.sendall(b'x' * 1000); assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000\n\
         client.close(); assert server.recv(1) == b''; server.close()\n"
    ))
    .ok();
    watch.settle();
    let records = watch.of_pid(ended.pid);
    let closed = closes(&records);
    assert_eq!(closed.len(), 2, "{closed:?}");
    assert!(
        closed.iter().all(|close| close.reason == CloseReason::Finished && close.error == 0),
        "{closed:?}"
    );
    assert!(
        closed.iter().all(|close| close.duration.is_some_and(|duration| duration < Duration::from_secs(30)))
    );
    let of = |direction| {
        closed
            .iter()
            .find(|close| close.direction == Some(direction))
            .unwrap_or_else(|| panic!("no {direction:?}"))
    };
    let (client, server) = (of(Direction::Outbound), of(Direction::Inbound));
    // The count includes the SYN or FIN the kernel acknowledges along with the data.
    assert!((1000..=1002).contains(&client.bytes_acked), "{client:?}");
    assert!((1000..=1002).contains(&server.bytes_received), "{server:?}");
    assert_eq!((client.tuple.local, client.tuple.remote), (server.tuple.remote, server.tuple.local));
    assert_eq!(resets_received(&records), []);
    assert_eq!(ends(&records).len(), 1);
}

#[test]
fn a_reset_of_an_established_connection_is_no_refusal() {
    let mut watch = Watch::start();
    let ended = child::python(&format!(
        "{PAIR}server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero); server.close()\n\
         try: client.recv(1); raise SystemExit('no reset')\n\
         except ConnectionResetError: pass\n"
    ))
    .ok();
    watch.settle();
    let records = watch.of_pid(ended.pid);
    let outcomes: Vec<_> = ends(&records).iter().map(|end| end.outcome).collect();
    assert_eq!(outcomes, [ConnectOutcome::Established]);

    let received = resets_received(&records);
    assert_eq!(received.len(), 1, "{received:?}");
    assert_eq!(
        (received[0].state, received[0].direction),
        (Some(TcpState::Established), Some(Direction::Outbound))
    );
    let sent = resets_sent(&records);
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!((sent[0].state, sent[0].direction), (Some(TcpState::Closed), Some(Direction::Inbound)));
    assert_eq!(
        (sent[0].tuple.local, sent[0].tuple.remote),
        (received[0].tuple.remote, received[0].tuple.local)
    );

    let closed = closes(&records);
    assert_eq!(closed.len(), 2, "{closed:?}");
    let client =
        closed.iter().find(|close| close.direction == Some(Direction::Outbound)).expect("the client");
    assert_eq!((client.reason, client.error), (CloseReason::ResetByPeer, ECONNRESET));
    let server = closed.iter().find(|close| close.direction == Some(Direction::Inbound)).expect("the server");
    assert_eq!((server.reason, server.error), (CloseReason::Aborted, 0));
}

#[test]
fn each_of_five_resets_is_counted_once() {
    let mut watch = Watch::start();
    let ended = child::python(
        "import socket, struct\n\
         listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen()\n\
         for _ in range(5):\n\
         \x20   client = socket.create_connection(listener.getsockname())\n\
         \x20   server, _ = listener.accept()\n\
         \x20   server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); server.close()\n\
         \x20   try: client.recv(1); raise SystemExit('no reset')\n\
         \x20   except ConnectionResetError: client.close()\n",
    )
    .ok();
    watch.settle();
    let records = watch.of_pid(ended.pid);
    assert_eq!(resets_received(&records).len(), 5);
    assert_eq!(ends(&records).iter().filter(|end| end.outcome == ConnectOutcome::Established).count(), 5);
    assert_eq!(ends(&records).len(), 5);
    assert_eq!(accepts(&records).len(), 5);
    assert_eq!(closes(&records).iter().filter(|close| close.reason == CloseReason::ResetByPeer).count(), 5);
}

/// Two network namespaces with one wire between; then the wire forgets where the other side is.
const CUT_WIRE: &str = "\
import ctypes, os, socket, subprocess
def ip(words): subprocess.run(['ip', *words.split()], check=True)
ready_r, ready_w = os.pipe(); go_r, go_w = os.pipe()
other = os.fork()
if other == 0:
    os.close(go_w)
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    os.write(ready_w, b'1')
    os.read(go_r, 1)
    ip('addr add 10.98.0.2/24 dev wire1'); ip('link set wire1 up')
    listener = socket.socket(); listener.bind(('10.98.0.2', 81)); listener.listen()
    os.write(ready_w, b'2')
    server, _ = listener.accept()
    os.read(go_r, 1)
    os._exit(0)
os.close(go_r)
os.read(ready_r, 1)
ip(f'link set wire1 netns {other}')
os.write(go_w, b'1')
os.read(ready_r, 1)
client = socket.create_connection(('10.98.0.2', 81))
TCP_USER_TIMEOUT = 18
client.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, 1500)
ip('neigh replace 10.98.0.2 lladdr 02:00:00:00:98:77 dev wire0 nud permanent')
client.send(b'into the void')
try: client.recv(1); raise SystemExit('an answer')
except TimeoutError: pass
os.close(go_w)
os.waitpid(other, 0)
print(other)
";

#[test]
fn what_is_lost_on_the_way_is_sent_again_and_times_out() {
    let mut watch = Watch::start();
    let ended = child::in_own_network(
        "ip link add wire0 type veth peer name wire1\nip addr add 10.98.0.1/24 dev wire0\nip link set wire0 up",
        CUT_WIRE,
    )
    .ok();
    watch.settle();
    let records = watch.of_pid(ended.pid);
    let again = retransmits(&records);
    // On a busy machine the request for the connection may have been sent twice as well.
    let (lost, requests): (Vec<&TcpRetransmit>, Vec<&TcpRetransmit>) =
        again.iter().partition(|again| again.state == TcpState::Established);
    assert!(!lost.is_empty());
    assert!(requests.iter().all(|again| again.state == TcpState::SynSent), "{requests:?}");
    assert!(again.iter().all(|again| again.direction == Some(Direction::Outbound)));
    let closed = closes(&records);
    assert_eq!(closed.len(), 1, "{closed:?}");
    assert_eq!(closed[0].reason, CloseReason::TimedOut);
    // Whether the connection counts its own request among them depends on when the answer came.
    let counts = lost.len()..=again.len();
    assert!(counts.contains(&(closed[0].retransmits as usize)), "{closed:?} {again:?}");

    // The other namespace is another network, and its listener another process.
    let other: u32 = ended.stdout.trim().parse().expect("a pid");
    let accepted = accepts(&watch.of_pid(other));
    assert_eq!(accepted.len(), 1);
    assert_ne!(accepted[0].tuple.network_namespace, closed[0].tuple.network_namespace);
}

/// A pair of this process's own from before the programs, closed under their eyes: the two records of that.
fn close_an_older_pair(config: BpfConfig) -> (Watch, Vec<RawRecord>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let (server, _) = listener.accept().expect("accepted");
    let ends = (client.local_addr().expect("an address"), client.peer_addr().expect("an address"));

    let mut watch = Watch::with(config);
    drop(client);
    drop(server);
    watch.settle();
    let of_pair = |close: &TcpClosed| {
        let tuple = (close.tuple.local, close.tuple.remote);
        tuple == ends || tuple == (ends.1, ends.0)
    };
    let closed: Vec<_> =
        watch.records.iter().filter(|record| closes(&[record]).iter().any(of_pair)).cloned().collect();
    assert_eq!(closed.len(), 2, "both ends");
    for record in &closed {
        let close = &closes(&[record])[0];
        assert_eq!((close.reason, close.direction, close.duration), (CloseReason::Finished, None, None));
        assert!(record.owner.cgroup_id.is_some());
    }
    (watch, closed)
}

#[test]
fn an_older_connection_is_known_by_the_scan() {
    let (watch, closed) = close_an_older_pair(BpfConfig::default());
    assert_eq!(watch.loaded.socket_scan(), &SocketScan::Done);
    for record in closed {
        assert_eq!(pid(&record), Some(std::process::id()));
        assert!(record.owner.memory_cgroup_id.is_some());
    }
}

/// Nothing is made up.
#[test]
fn an_older_connection_without_the_scan_has_a_cgroup_and_no_process() {
    let (watch, closed) = close_an_older_pair(BpfConfig { scan_sockets: false, ..BpfConfig::default() });
    assert_eq!(watch.loaded.socket_scan(), &SocketScan::Disabled);
    for record in closed {
        assert_eq!(pid(&record), None);
        assert_eq!(record.owner.memory_cgroup_id, None);
    }
}

#[test]
fn an_older_listener_owns_what_it_accepts() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut watch = Watch::start();
    let ended =
        child::python(&format!("import socket; socket.create_connection(('127.0.0.1', {}))", address.port()))
            .ok();
    watch.settle();
    let mine = watch.of_pid(std::process::id());
    let accepted: Vec<_> =
        accepts(&mine).into_iter().filter(|accept| accept.tuple.local == address).collect();
    assert_eq!(accepted.len(), 1);
    assert_eq!(ends(&watch.of_pid(ended.pid))[0].tuple.local, accepted[0].tuple.remote);
}

/// A view of few connections forgets the older ones and still tells every end once.
#[test]
fn a_full_view_of_connections_forgets_whose_and_not_what() {
    const ATTEMPTS: usize = 600;
    let mut watch = Watch::with(BpfConfig { connections_max: 16, ..BpfConfig::default() });
    let ended = child::python(&format!(
        "import resource, socket\n\
         resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n\
         listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen({ATTEMPTS})\n\
         print(listener.getsockname()[1])\n\
         kept = [socket.create_connection(listener.getsockname()) for _ in range({ATTEMPTS})]\n",
    ))
    .ok();
    watch.settle();
    let port: u16 = ended.stdout.trim().parse().expect("a port");
    let everything: Vec<_> = watch.records.iter().collect();
    let outcomes = ends(&everything).into_iter().filter(|end| end.tuple.remote.port() == port).count();
    assert_eq!(outcomes, ATTEMPTS);
    let closed = closes(&everything).into_iter().filter(|close| close.tuple.remote.port() == port);
    let (known, forgotten): (Vec<_>, Vec<_>) = closed.partition(|close| close.direction.is_some());
    assert_eq!(known.len() + forgotten.len(), ATTEMPTS);
    assert!(!forgotten.is_empty(), "16 places hold less than {ATTEMPTS} connections");
}
