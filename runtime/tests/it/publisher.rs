use bytes::Bytes;
use tapio_runtime::bus::{BusError, Headers, Outgoing, TrySubmitError};
use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::names;

use crate::{in_time, server_and_bus};

fn outgoing(number: u64) -> Outgoing {
    Outgoing {
        subject: names::events_subject("c", (number % 64) as u16),
        msg_id: Some(format!("n-{number}")),
        headers: Headers::new(),
        payload: Bytes::from(number.to_le_bytes().to_vec()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_come_in_order_and_the_stream_keeps_the_order() {
    const COUNT: u64 = 5_000;
    let (_server, bus) = server_and_bus().await;
    let (mut publisher, mut reports) = bus.publisher(64, Shutdown::new());
    let submitting = std::thread::spawn(move || {
        for number in 0..COUNT {
            assert_eq!(publisher.submit_blocking(outgoing(number)).unwrap(), number);
        }
    });
    for number in 0..COUNT {
        let report = in_time(reports.next()).await.unwrap();
        let ack = report.result.unwrap();
        assert_eq!((report.ticket, ack.sequence, ack.duplicate), (number, number + 1, false));
    }
    assert!(in_time(reports.next()).await.is_none());
    submitting.join().unwrap();
    assert_eq!(bus.stream_state(names::STREAM_EVENTS).await.unwrap().messages, COUNT);
}

#[tokio::test]
async fn a_bad_message_fails_alone() {
    let (_server, bus) = server_and_bus().await;
    let (mut publisher, mut reports) = bus.publisher(4, Shutdown::new());
    publisher.submit(outgoing(0)).await.unwrap();
    publisher.submit(Outgoing { subject: "a b".into(), ..outgoing(1) }).await.unwrap();
    publisher.submit(outgoing(2)).await.unwrap();
    drop(publisher);
    assert!(in_time(reports.next()).await.unwrap().result.is_ok());
    let refused = in_time(reports.next()).await.unwrap();
    assert_eq!(refused.ticket, 1);
    assert!(matches!(refused.result, Err(BusError::Subject { .. })));
    assert!(in_time(reports.next()).await.unwrap().result.is_ok());
    assert!(in_time(reports.next()).await.is_none());
}

#[tokio::test]
async fn unread_reports_fill_the_window_and_a_shutdown_reports_the_rest() {
    let (mut server, bus) = server_and_bus().await;
    let shutdown = Shutdown::new();
    let (mut publisher, mut reports) = bus.publisher(4, shutdown.clone());
    server.kill();
    let mut state = bus.watch_state();
    let away = tapio_runtime::bus::ConnectionState::Reconnecting;
    in_time(state.wait_for(|state| *state == away)).await.unwrap();
    let mut submitted = 0;
    loop {
        match publisher.try_submit(outgoing(submitted)) {
            Ok(ticket) => assert_eq!(ticket, submitted),
            Err(TrySubmitError::Full(back)) => {
                assert_eq!(back, outgoing(submitted));
                break;
            }
            Err(TrySubmitError::Closed(_)) => panic!("closed"),
        }
        submitted += 1;
        assert!(submitted < 20, "the window bounds what is taken");
        tokio::task::yield_now().await;
    }
    assert_eq!(publisher.outstanding() as u64, submitted);
    shutdown.trigger();
    for ticket in 0..submitted {
        let report = in_time(reports.next()).await.unwrap();
        assert_eq!(report.ticket, ticket);
        assert!(matches!(report.result, Err(BusError::Cancelled { .. })), "{report:?}");
    }
    assert!(in_time(reports.next()).await.is_none());
    assert!(matches!(publisher.submit(outgoing(99)).await, Err(BusError::Closed)));
    assert_eq!(publisher.outstanding(), 0);
}
