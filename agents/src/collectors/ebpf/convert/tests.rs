use super::*;
use tapio_bpf::{
    Direction, Process, SignalResult, TcpAccepted, TcpConnectBegin, TcpReset, TcpRetransmit, TcpState,
};
use tapio_runtime::clock::ManualClock;

const AT: u64 = 1_700_000_000_000_000_000;
const ECONNREFUSED: i32 = 111;

fn converter() -> Converter {
    // No control groups: everything is the node's.
    let attribution = Attribution::new("c", "n1", None, None, ManualClock::new(AT).shared());
    Converter::new(attribution, ProducerId(7))
}

fn owner() -> Owner {
    let comm = Comm::default();
    let process = Process { pid: 42, tid: 43, uid: 1000, start_boot_ns: 5, comm };
    Owner { cgroup_id: Some(1), memory_cgroup_id: Some(2), process: Some(process) }
}

fn tuple() -> Tuple {
    Tuple {
        local: "10.0.0.1:40000".parse().unwrap(),
        remote: "[2001:db8::5]:5432".parse().unwrap(),
        network_namespace: 1,
        socket: Some(9),
    }
}

fn convert(body: Body) -> Option<UnifiedEvent> {
    converter().event(&RawRecord { boot_ns: 1, unix_ns: AT, owner: owner(), body })
}

fn network_of(event: &UnifiedEvent) -> &NetworkData {
    let Payload::Network(data) = &event.payload else { panic!("{event:?}") };
    data
}

fn kernel_of(event: &UnifiedEvent) -> &KernelData {
    let Payload::Kernel(data) = &event.payload else { panic!("{event:?}") };
    data
}

fn end(outcome: ConnectOutcome, error: i32) -> Body {
    let latency = Some(Duration::from_millis(3));
    Body::TcpConnectEnd(TcpConnectEnd { tuple: tuple(), outcome, latency, error })
}

fn closed(reason: CloseReason, error: i32) -> Body {
    Body::TcpClosed(TcpClosed {
        tuple: tuple(),
        reason,
        direction: Some(Direction::Outbound),
        duration: Some(Duration::from_secs(2)),
        bytes_acked: 100,
        bytes_received: 200,
        smoothed_rtt_us: 50,
        retransmits: 0,
        error,
        old_state: TcpState::Established,
    })
}

#[test]
fn every_outcome_of_a_connect_has_its_kind() {
    use ConnectOutcome as O;
    use EventKind as K;
    for (outcome, kind) in [
        (O::Established, K::NetConnect),
        (O::Refused, K::NetConnectRefused),
        (O::TimedOut, K::NetConnectTimeout),
        (O::Reset, K::NetConnectReset),
        (O::Unreachable, K::NetConnectUnreachable),
        (O::Aborted, K::NetConnectAborted),
        (O::LocalError, K::NetConnectAborted),
        (O::Failed, K::NetConnectAborted),
    ] {
        assert_eq!(convert(end(outcome, 0)).unwrap().kind, kind, "{outcome:?}");
    }
    assert_eq!(convert(Body::TcpConnectBegin(TcpConnectBegin { tuple: tuple() })), None, "its end is told");

    let refused = convert(end(O::Refused, ECONNREFUSED)).unwrap();
    let data = network_of(&refused);
    assert_eq!((data.errno, data.duration_ns), (111, 3_000_000));
    assert_eq!((data.local_port, data.remote_port), (40_000, 5432));
    assert_eq!(data.local_addr, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1], "mapped");
    assert_eq!(data.remote_addr[..4], [0x20, 0x01, 0x0d, 0xb8]);
    assert_eq!((refused.pid, refused.timestamp, refused.source), (42, UnixNanos(AT), Source::Ebpf));
    assert_eq!(refused.entity.node, "n1");
}

#[test]
fn a_reset_connection_is_not_a_refused_one() {
    use CloseReason as R;
    use EventKind as K;
    for (reason, kind, errno) in [
        (R::Finished, K::NetClose, 0),
        (R::ResetByPeer, K::NetReset, ECONNRESET),
        (R::TimedOut, K::NetClose, ETIMEDOUT),
        (R::Aborted, K::NetClose, 0),
        (R::Failed, K::NetClose, 0),
    ] {
        let event = convert(closed(reason, 0)).unwrap();
        assert_eq!((event.kind, network_of(&event).errno), (kind, errno), "{reason:?}");
    }
    let event = convert(closed(CloseReason::Failed, 113)).unwrap();
    let data = network_of(&event);
    assert_eq!((data.errno, data.duration_ns), (113, 2_000_000_000));
    assert_eq!(data.detail.as_ref().map(|d| (d.sent_bytes, d.received_bytes)), Some((100, 200)));
}

#[test]
fn packets_and_accepts_keep_their_connection() {
    let reset = TcpReset { tuple: tuple(), state: Some(TcpState::Established), direction: None };
    let again = TcpRetransmit {
        tuple: tuple(),
        state: TcpState::Established,
        total: 1,
        consecutive: 1,
        direction: None,
    };
    for (body, kind) in [
        (Body::TcpResetSent(reset), EventKind::NetResetSent),
        (Body::TcpResetReceived(reset), EventKind::NetResetReceived),
        (Body::TcpRetransmit(again), EventKind::NetRetransmit),
        (Body::TcpAccepted(TcpAccepted { tuple: tuple() }), EventKind::NetAccept),
    ] {
        let event = convert(body).unwrap();
        assert_eq!((event.kind, network_of(&event).remote_port), (kind, 5432));
    }
}

#[test]
fn a_crash_weighs_more_than_an_end() {
    let exit = |status, signal| {
        let end = Exit { parent_pid: 1, status, signal, core_dumped: false, max_rss_bytes: 0 };
        convert(Body::Exit(end)).unwrap()
    };
    let crash = exit(0, Some(11));
    assert_eq!((crash.kind, crash.severity), (EventKind::ProcessExit, EventSeverity::Error));
    assert_eq!((kernel_of(&crash).signal, kernel_of(&crash).exit_code), (11, 0));
    assert_eq!(exit(0, Some(9)).severity, EventSeverity::Warning);
    assert_eq!(exit(0, Some(15)).severity, EventSeverity::Info);
    assert_eq!(exit(3, None).severity, EventSeverity::Info);
    assert_eq!(kernel_of(&exit(3, None)).exit_code, 3);
    assert_eq!(exit(0, None).severity, EventSeverity::Debug);
}

#[test]
fn signals_name_their_sender_and_programs_their_file() {
    let signal =
        Signal { signal: 11, code: 1, sender: None, to_group: false, result: SignalResult::Delivered };
    let event = convert(Body::Signal(signal)).unwrap();
    assert_eq!((event.kind, event.severity), (EventKind::SignalSent, EventSeverity::Warning));
    assert_eq!((kernel_of(&event).signal, kernel_of(&event).other_pid), (11, 0));
    let event = convert(Body::Exec(Exec { parent_pid: 7, filename: "/bin/true".to_owned() })).unwrap();
    assert_eq!((kernel_of(&event).executable.as_str(), kernel_of(&event).other_pid), ("/bin/true", 7));
    assert_eq!(kernel_of(&event).uid, 1000);
}

#[test]
fn each_event_has_an_id_of_its_own() {
    let mut converter = converter();
    let record =
        RawRecord { boot_ns: 1, unix_ns: AT, owner: owner(), body: end(ConnectOutcome::Refused, 111) };
    let ids: std::collections::HashSet<_> = (0..5).map(|_| converter.event(&record).unwrap().id).collect();
    assert_eq!(ids.len(), 5, "the same thing five times is five events");
}
