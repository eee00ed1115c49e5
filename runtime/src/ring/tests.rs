use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock::{ManualClock, SystemClock};

fn pair<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    ring("test", capacity, SystemClock::shared(), &Metrics::new())
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn full_gives_back_and_closed_drains() {
    let (mut sender, mut receiver) = pair(2);
    sender.try_send(1).unwrap();
    sender.try_send(2).unwrap();
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!(sender.send_timeout(3, Duration::from_millis(5)), Err(TrySendError::Full(3)));
    assert_eq!((sender.depth(), receiver.depth()), (2, 2));
    sender.close();
    assert_eq!(receiver.recv().unwrap().value, 1);
    assert_eq!(receiver.try_recv().unwrap().value, 2);
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
    assert_eq!(receiver.recv_timeout(PATIENCE), Err(RecvTimeoutError::Closed));
    assert!(receiver.recv().is_none());
}

#[test]
fn a_gone_receiver_gives_every_item_back() {
    let (mut sender, receiver) = pair(1);
    sender.send("kept").unwrap();
    let blocked = thread::spawn(move || sender.send("returned").unwrap_err().0);
    drop(receiver);
    assert_eq!(blocked.join().unwrap(), "returned");
}

#[test]
fn empty_ring_times_out_and_a_send_wakes_the_receiver() {
    let (mut sender, mut receiver) = pair(1);
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    let timeout = receiver.recv_timeout(Duration::from_millis(5));
    assert_eq!(timeout, Err(RecvTimeoutError::Timeout));
    let waiting = thread::spawn(move || receiver.recv_timeout(PATIENCE).map(|item| item.value));
    sender.send(7).unwrap();
    assert_eq!(waiting.join().unwrap(), Ok(7));
}

#[test]
fn items_carry_when_they_entered_and_metrics_tell_the_rest() {
    let metrics = Metrics::new();
    let clock = ManualClock::new(0);
    let (mut sender, mut receiver) = ring("stage", 4, clock.shared(), &metrics);
    clock.advance(Duration::from_nanos(5));
    sender.send('a').unwrap();
    sender.send('b').unwrap();
    assert_eq!(receiver.recv().unwrap(), Item { value: 'a', enqueued_nanos: 5 });
    let text = metrics.encode();
    assert!(text.contains("tapio_ring_depth{ring=\"stage\"} 1"), "{text}");
    assert!(text.contains("tapio_ring_sent_total{ring=\"stage\"} 2"), "{text}");
    drop((sender, receiver));
    let (mut sender, _receiver) = ring("stage", 4, clock.shared(), &metrics);
    sender.send('c').unwrap();
    let text = metrics.encode();
    assert!(text.contains("tapio_ring_sent_total{ring=\"stage\"} 3"), "{text}");
    assert!(text.contains("tapio_ring_received_total{ring=\"stage\"} 1"), "{text}");
    assert!(text.contains("tapio_ring_discarded_total{ring=\"stage\"} 1"), "{text}");
}

#[test]
fn blocked_time_is_counted() {
    let metrics = Metrics::new();
    let clock = ManualClock::new(0);
    let (mut sender, mut receiver) = ring("slow", 1, clock.shared(), &metrics);
    sender.send(1).unwrap();
    let sending = thread::spawn(move || sender.send(2).map(|()| sender));
    while !receiver.shared.not_full.is_waited_on() {
        thread::yield_now();
    }
    clock.advance(Duration::from_nanos(77));
    assert_eq!(receiver.recv().unwrap().value, 1);
    let _sender = sending.join().unwrap().unwrap();
    let text = metrics.encode();
    let series = "tapio_ring_send_blocked_nanoseconds_total{ring=\"slow\"} 77";
    assert!(text.contains(series), "{text}");
}

#[test]
fn a_million_items_cross_in_order() {
    for capacity in [1, 2, 1024] {
        let count = if capacity == 1 { 100_000u64 } else { 1_000_000 };
        let (mut sender, mut receiver) = pair(capacity);
        let sending = thread::spawn(move || (0..count).try_for_each(|n| sender.send(n)));
        let mut expected = 0;
        while let Some(item) = receiver.recv() {
            assert_eq!(item.value, expected);
            expected += 1;
        }
        assert_eq!(expected, count, "capacity {capacity}");
        sending.join().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_and_threads_mix() {
    let (mut sender, mut middle_in) = pair(3);
    let (mut middle_out, mut receiver) = pair(3);
    let task = tokio::spawn(async move {
        while let Some(item) = middle_in.recv_async().await {
            middle_out.send_async(item.value).await.unwrap();
        }
    });
    let sending = thread::spawn(move || (0..20_000u32).try_for_each(|n| sender.send(n)));
    let receiving = thread::spawn(move || {
        let mut got = Vec::new();
        while let Some(item) = receiver.recv() {
            got.push(item.value);
        }
        got
    });
    task.await.unwrap();
    sending.join().unwrap().unwrap();
    assert_eq!(receiving.join().unwrap(), (0..20_000).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any mix of sends and receives with any capacity: nothing lost, nothing doubled, in order.
    #[test]
    fn behaves_like_a_bounded_queue(
        capacity in 1usize..9,
        steps in proptest::collection::vec((any::<bool>(), 1usize..5), 0..200),
    ) {
        let (mut sender, mut receiver) = pair(capacity);
        let mut model = std::collections::VecDeque::new();
        let mut next = 0u32;
        for (is_send, count) in steps {
            if is_send {
                for _ in 0..count {
                    match sender.try_send(next) {
                        Ok(()) => model.push_back(next),
                        Err(error) => {
                            prop_assert_eq!(model.len(), capacity);
                            prop_assert_eq!(error, TrySendError::Full(next));
                        }
                    }
                    next += 1;
                }
            } else {
                let mut got = Vec::new();
                let received = receiver.recv_batch(&mut got, count);
                prop_assert_eq!(received, count.min(model.len()));
                for item in got {
                    prop_assert_eq!(Some(item.value), model.pop_front());
                }
            }
            prop_assert_eq!(sender.depth(), model.len());
        }
        drop(sender);
        while let Some(item) = receiver.recv() {
            prop_assert_eq!(Some(item.value), model.pop_front());
        }
        prop_assert!(model.is_empty());
    }
}
