//! The decoder on foreign bytes. No rights needed.

use std::{net::SocketAddr, time::Duration};

use proptest::prelude::*;
use tapio_bpf::{
    Body, BootClock, ConnectOutcome, DecodeError, Direction, Exec, Exit, RawRecord, SignalResult, TcpState,
    decode,
};

const HEADER_BYTES: usize = 72;
/// Bytes of the body by kind, as `layout.h` states them.
const BODY_BYTES: [(u16, usize); 11] =
    [(1, 264), (2, 24), (3, 48), (4, 48), (5, 48), (6, 64), (7, 48), (8, 88), (9, 56), (10, 56), (11, 56)];

fn clock() -> BootClock {
    BootClock::at(1_000, 1_700_000_000_000_001_000)
}

/// A record as the kernel writes it, with a known header.
fn record(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(0_u16.to_ne_bytes());
    bytes.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
    for word in [5_000_u64, 11, 22, 400] {
        bytes.extend(word.to_ne_bytes());
    }
    for word in [77_u32, 78, 1000, 1] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(*b"worker\0\0\0\0\0\0\0\0\0\0");
    bytes.extend(body);
    bytes
}

fn decoded(bytes: &[u8]) -> RawRecord {
    decode(bytes, &clock()).expect("a record")
}

fn tuple() -> Vec<u8> {
    let mut bytes = vec![0; 10];
    bytes.extend([0xff, 0xff, 10, 0, 0, 1]);
    bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    bytes.extend(40_000_u16.to_ne_bytes());
    bytes.extend(443_u16.to_ne_bytes());
    bytes.extend(4_026_531_840_u32.to_ne_bytes());
    bytes.extend(0xffff_8880_0000_1000_u64.to_ne_bytes());
    bytes
}

#[test]
fn header_and_exit() {
    let mut body = Vec::new();
    for word in [1_u32, 3, 0, 1] {
        body.extend(word.to_ne_bytes());
    }
    body.extend(256_u64.to_ne_bytes());
    let record = decoded(&record(2, &body));
    assert_eq!((record.boot_ns, record.unix_ns), (5_000, 1_700_000_000_000_005_000));
    assert_eq!((record.owner.cgroup_id, record.owner.memory_cgroup_id), (Some(11), Some(22)));
    let process = record.owner.process.expect("a process");
    assert_eq!((process.pid, process.tid, process.uid, process.start_boot_ns), (77, 78, 1000, 400));
    assert_eq!(process.comm.to_string(), "worker");
    let page = rustix::param::page_size() as u64;
    let exit = Exit { parent_pid: 1, status: 3, signal: None, core_dumped: true, max_rss_bytes: 256 * page };
    assert_eq!(record.body, Body::Exit(exit));
}

#[test]
fn nothing_known_is_none() {
    let mut bytes = record(5, &tuple());
    bytes[16..HEADER_BYTES].fill(0);
    let record = decoded(&bytes);
    assert_eq!(record.owner.process, None);
    assert_eq!((record.owner.cgroup_id, record.owner.memory_cgroup_id), (None, None));
}

#[test]
fn exec_with_a_name_in_any_encoding_and_a_length_that_lies() {
    let mut body = Vec::new();
    body.extend(1_u32.to_ne_bytes());
    body.extend(5_u32.to_ne_bytes());
    body.extend(*b"/b\xffnxyz");
    body.resize(264, 0);
    let exec = |filename: &str| Body::Exec(Exec { parent_pid: 1, filename: filename.to_owned() });
    assert_eq!(decoded(&record(1, &body)).body, exec("/b\u{fffd}nx"));
    body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    let Body::Exec(lied) = decoded(&record(1, &body)).body else { panic!("an exec") };
    assert!(lied.filename.starts_with("/b\u{fffd}nxyz"));
}

#[test]
fn connect_end_with_both_kinds_of_address() {
    let mut body = tuple();
    body.extend(1_500_u64.to_ne_bytes());
    body.extend(111_i32.to_ne_bytes());
    body.extend([2, 0, 0, 0]);
    let Body::TcpConnectEnd(end) = decoded(&record(6, &body)).body else { panic!("a connect end") };
    assert_eq!(end.tuple.local, "10.0.0.1:40000".parse::<SocketAddr>().unwrap());
    assert_eq!(end.tuple.remote, "[fd00::2]:443".parse::<SocketAddr>().unwrap());
    assert_eq!((end.outcome, end.error), (ConnectOutcome::Refused, 111));
    assert_eq!(end.latency, Some(Duration::from_nanos(1_500)));
    body[60] = 99;
    let error = decode(&record(6, &body), &clock()).unwrap_err();
    assert_eq!(error, DecodeError::UnknownValue { field: "connect outcome", value: 99 });
}

#[test]
fn retransmit_and_signal() {
    let mut body = tuple();
    body.extend(7_u32.to_ne_bytes());
    body.extend([2, 3, 1, 0]);
    let Body::TcpRetransmit(again) = decoded(&record(9, &body)).body else { panic!("a retransmit") };
    assert_eq!((again.total, again.state, again.consecutive), (7, TcpState::SynSent, 3));
    assert_eq!(again.direction, Some(Direction::Outbound));

    let mut body = Vec::new();
    for word in [9_u32, 0x80, 0, 1, 2, 0] {
        body.extend(word.to_ne_bytes());
    }
    body.resize(48, 0);
    let Body::Signal(signal) = decoded(&record(4, &body)).body else { panic!("a signal") };
    assert_eq!((signal.signal, signal.code, signal.sender, signal.to_group), (9, 0x80, None, true));
    assert_eq!(signal.result, SignalResult::AlreadyPending);
}

#[test]
fn foreign_bytes_are_told_by_reason() {
    assert_eq!(decode(&[], &clock()), Err(DecodeError::TooShort { need: HEADER_BYTES, got: 0 }));
    assert_eq!(decode(&record(12, &[]), &clock()), Err(DecodeError::UnknownKind(12)));
    let short = record(2, &[0; 23]);
    assert_eq!(decode(&short, &clock()), Err(DecodeError::WrongLength { kind: 2, expected: 96, got: 95 }));
    let mut lies = record(2, &[0; 24]);
    lies[4] = 95;
    assert!(matches!(decode(&lies, &clock()), Err(DecodeError::WrongLength { .. })));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes, &clock());
    }

    /// With a right kind and length the bytes reach every field; only the closed values can be wrong.
    #[test]
    fn arbitrary_bodies_decode_or_name_a_field(
        kind in 0..BODY_BYTES.len(),
        noise in proptest::collection::vec(any::<u8>(), HEADER_BYTES + 264),
    ) {
        let (kind, body_bytes) = BODY_BYTES[kind];
        let mut bytes = noise[..HEADER_BYTES + body_bytes].to_vec();
        bytes[0..2].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&((HEADER_BYTES + body_bytes) as u32).to_ne_bytes());
        match decode(&bytes, &clock()) {
            Ok(_) | Err(DecodeError::UnknownValue { .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
