use super::*;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{ProducerId, UnixNanos};
use tapio_schemas::wire::EventBatch;

const NO_LIMIT: u64 = u64::MAX / 2;

/// `count` one-event batches of one shard, sequences 0, 1, 2, …
fn payloads(count: usize) -> Vec<Bytes> {
    let mut batch = EventBatch::new(ProducerId(7), 1, 3);
    (0..count)
        .map(|_| {
            batch.push(UnifiedEvent::default());
            Bytes::from(batch.finish(UnixNanos(0)).unwrap())
        })
        .collect()
}

fn sequence(frame: &Frame) -> u64 {
    EventBatchView::check(&frame.payload).unwrap().header().first_sequence
}

fn sequences(spool: &mut Spool) -> Vec<u64> {
    std::iter::from_fn(|| spool.next()).map(|frame| sequence(&frame)).collect()
}

#[test]
fn order_survives_many_files_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), NO_LIMIT, 600).unwrap();
    for payload in payloads(20) {
        spool.append(&payload, 1).unwrap();
    }
    drop(spool);
    let mut spool = Spool::open(dir.path(), NO_LIMIT, 600).unwrap();
    assert!(spool.files.len() > 3, "{} files", spool.files.len());
    assert_eq!(spool.events(), 20);
    assert_eq!(sequences(&mut spool), (0..20).collect::<Vec<_>>());
    assert_eq!(spool.events(), 0);
}

#[test]
fn a_file_goes_with_its_last_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), NO_LIMIT, 600).unwrap();
    for payload in payloads(10) {
        spool.append(&payload, 1).unwrap();
    }
    let frames: Vec<Frame> = std::iter::from_fn(|| spool.next()).collect();
    assert_eq!(frames.len(), 10);
    let files =
        || fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "lock").count();
    let before = files();
    for frame in &frames[..9] {
        spool.acknowledge(frame.spool_file.unwrap());
    }
    let rest = files();
    assert!(rest < before && rest == 1, "{rest} of {before} files");
    spool.acknowledge(frames[9].spool_file.unwrap());
    assert_eq!(files(), 0);
    assert_eq!(spool.bytes(), 0);
}

#[test]
fn settling_leaves_what_was_not_sent_first_and_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), NO_LIMIT, 1 << 20).unwrap();
    for payload in payloads(10) {
        spool.append(&payload, 1).unwrap();
    }
    let read: Vec<Frame> = (0..6).filter_map(|_| spool.next()).collect();
    for frame in &read[..4] {
        spool.acknowledge(frame.spool_file.unwrap());
    }
    spool.settle(&read[4..]).unwrap();
    drop(spool);
    let mut spool = Spool::open(dir.path(), NO_LIMIT, 1 << 20).unwrap();
    assert_eq!(spool.events(), 6);
    assert_eq!(sequences(&mut spool), (4..10).collect::<Vec<_>>());
}

#[test]
fn a_torn_tail_loses_only_itself_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), NO_LIMIT, 1 << 20).unwrap();
    for payload in payloads(5) {
        spool.append(&payload, 1).unwrap();
    }
    let path = dir.path().join(file_name(FIRST_NUMBER));
    let length = fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(length - 3).unwrap();
    assert_eq!(sequences(&mut spool), vec![0, 1, 2, 3]);
    assert_eq!(spool.take_lost_events(), 1);
    // The next run does not expect it either.
    assert_eq!(count_events(&path), 4);
}

#[test]
fn flipped_bits_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), NO_LIMIT, 1 << 20).unwrap();
    for payload in payloads(3) {
        spool.append(&payload, 1).unwrap();
    }
    let path = dir.path().join(file_name(FIRST_NUMBER));
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(sequences(&mut spool), vec![0, 1]);
    assert_eq!(spool.take_lost_events(), 1);
}

#[test]
fn room_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let one = payloads(1).remove(0);
    let mut spool = Spool::open(dir.path(), one.len() as u64 * 3, 1 << 20).unwrap();
    let mut kept = 0;
    while spool.has_room(one.len()) {
        spool.append(&one, 1).unwrap();
        kept += 1;
        assert!(kept < 10, "the limit holds");
    }
    assert_eq!(kept, 2);
    assert!(spool.bytes() <= spool.bytes_max());
}

#[test]
fn a_directory_has_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let first = Spool::open(dir.path(), 1 << 20, 1 << 20).unwrap();
    let error = Spool::open(dir.path(), 1 << 20, 1 << 20).err().unwrap().to_string();
    assert!(error.contains("another agent uses this directory"), "{error}");
    drop(first);
    assert!(Spool::open(dir.path(), 1 << 20, 1 << 20).is_ok());
}
