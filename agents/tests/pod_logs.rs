//! The last lines of containers, from files as a kubelet leaves them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tapio_agents::collectors::kubernetes::ends::FailedContainer;
use tapio_agents::collectors::pod_logs::events;
use tapio_agents::collectors::pod_logs::files::{BYTES_MAX, Life, Unread, last_bytes};
use tapio_schemas::entity::EntityRef;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, Source};
use tapio_schemas::payload::Payload;

const UID: &str = "8b4f3c0e-2f6a-4f0e-9d0b-1c2d3e4f5a6b";

fn life(number: u32) -> Life<'static> {
    Life { namespace: "shop", pod: "api-1", uid: UID, container: "app", number }
}

/// The directory of the logs, and the one of the container.
fn directories() -> (tempfile::TempDir, PathBuf) {
    let logs = tempfile::tempdir().unwrap();
    let container = logs.path().join(format!("shop_api-1_{UID}/app"));
    fs::create_dir_all(&container).unwrap();
    (logs, container)
}

fn entry(text: &str) -> String {
    format!("2030-01-01T10:00:00.123456789Z stderr F {text}\n")
}

fn text(logs: &Path, number: u32) -> Result<String, Unread> {
    last_bytes(logs, life(number)).map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn of_several_lives_the_one_that_ended_is_read() {
    let (logs, container) = directories();
    fs::write(container.join("0.log"), entry("the first")).unwrap();
    fs::write(container.join("1.log"), entry("the second")).unwrap();
    assert_eq!(text(logs.path(), 0), Ok(entry("the first")));
    assert_eq!(text(logs.path(), 1), Ok(entry("the second")));
    assert!(matches!(text(logs.path(), 2), Err(Unread::Absent(_))));
}

#[test]
fn a_log_that_was_just_rotated_goes_on_in_the_file_before() {
    let (logs, container) = directories();
    fs::write(container.join("0.log.20300101-090000"), entry("long ago")).unwrap();
    fs::write(container.join("0.log.20300101-095959"), entry("panic: no database")).unwrap();
    fs::write(container.join("0.log.20300101-093000.gz"), "packed").unwrap();
    fs::write(container.join("0.log.20300101-099999.tmp"), "half packed").unwrap();
    // Between the renaming of the full file and the making of the next one.
    assert_eq!(text(logs.path(), 0), Ok(entry("panic: no database")));
    fs::write(container.join("0.log"), entry("goroutine 1")).unwrap();
    assert_eq!(text(logs.path(), 0), Ok(entry("panic: no database") + &entry("goroutine 1")));
    // A full file needs nothing before it.
    fs::write(container.join("0.log"), entry("a line").repeat(BYTES_MAX / 20)).unwrap();
    assert!(!text(logs.path(), 0).unwrap().contains("panic"));
}

#[test]
fn of_a_long_log_the_end_is_read_from_the_beginning_of_an_entry() {
    let (logs, container) = directories();
    let whole: String = (0..20_000).map(|number| entry(&format!("line {number}"))).collect();
    fs::write(container.join("0.log"), &whole).unwrap();
    let end = text(logs.path(), 0).unwrap();
    assert!(end.len() <= BYTES_MAX && end.len() > BYTES_MAX - 100, "{}", end.len());
    assert!(whole.ends_with(&end) && end.starts_with("2030-"), "{}", &end[..40]);
    // One entry that is longer than what is read has no beginning there.
    fs::write(container.join("0.log"), entry(&"x".repeat(2 * BYTES_MAX))).unwrap();
    assert!(matches!(text(logs.path(), 0), Err(Unread::Absent(_))));
}

#[test]
fn links_lead_nowhere_and_pipes_are_not_waited_for() {
    let (logs, container) = directories();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("shadow");
    fs::write(&secret, "root:secret").unwrap();
    let refused = |number| matches!(text(logs.path(), number), Err(Unread::NotPlain(_)));
    symlink(&secret, container.join("0.log")).unwrap();
    assert!(refused(0), "a link to a file");
    fs::write(container.join("real"), entry("x")).unwrap();
    symlink("real", container.join("1.log")).unwrap();
    assert!(refused(1), "a link that stays within is none the less one");
    let pipe = container.join("2.log");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refused(2), "a pipe");
    fs::create_dir(container.join("3.log")).unwrap();
    assert!(refused(3), "a directory");
    symlink(&secret, container.join("4.log.20300101-100000")).unwrap();
    assert!(refused(4), "a link in place of a rotated file");
    // The directory of the container, and that of the pod.
    fs::write(outside.path().join("0.log"), entry("outside")).unwrap();
    symlink(outside.path(), logs.path().join(format!("shop_api-1_{UID}/linked"))).unwrap();
    assert!(matches!(
        last_bytes(logs.path(), Life { container: "linked", ..life(0) }),
        Err(Unread::NotPlain(_))
    ));
    let pod = outside.path().join("pod");
    fs::create_dir_all(pod.join("app")).unwrap();
    fs::write(pod.join("app/0.log"), entry("outside")).unwrap();
    symlink(&pod, logs.path().join(format!("shop_other_{UID}"))).unwrap();
    assert!(matches!(last_bytes(logs.path(), Life { pod: "other", ..life(0) }), Err(Unread::NotPlain(_))));
    for name in ["..", "a/b", "", "a b"] {
        assert!(last_bytes(logs.path(), Life { container: name, ..life(0) }).is_err(), "{name:?}");
    }
}

#[test]
fn what_was_said_is_told_once_as_a_whole_and_line_by_line_without_secrets() {
    let entity = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        pod: "api-1".into(),
        pod_uid: UID.into(),
        container: "app".into(),
        node: "n1".into(),
        ..EntityRef::default()
    };
    let at = UnixNanos(1_900_000_000_000_000_000);
    let failed = FailedContainer { entity: Arc::new(entity.sealed()), uid: UID.into(), life: 3, at };
    let log = entry("starting")
        + &entry("retrying")
        + &entry("retrying")
        + "2030-01-01T10:00:01Z stdout P dial postgres://app:\n2030-01-01T10:00:01Z stdout F hunter2@db failed\n";
    let told = events(&failed, log.as_bytes(), at.plus(5));
    let said = |kind| {
        let of_kind = told.iter().filter(move |event| event.kind == kind);
        let body = |event: &tapio_schemas::UnifiedEvent| match &event.payload {
            Payload::Log(log) => log.body.to_string(),
            other => panic!("{other:?}"),
        };
        of_kind.map(body).collect::<Vec<_>>()
    };
    let masked = "dial postgres://app:***@db failed";
    assert_eq!(said(EventKind::ContainerSaid), [format!("starting\nretrying\nretrying\n{masked}")]);
    assert_eq!(said(EventKind::Log), ["starting", "retrying", masked]);
    for event in &told {
        assert_eq!((event.source, event.timestamp, event.observed_at), (Source::Cri, at.plus(5), at.plus(5)));
        assert_eq!(event.entity.container, "app");
    }
    let ids = |events: &[tapio_schemas::UnifiedEvent]| events.iter().map(|e| e.id).collect::<Vec<_>>();
    assert_eq!(ids(&events(&failed, log.as_bytes(), at.plus(5))), ids(&told), "told again it is the same");
    let next = FailedContainer { life: 4, ..failed.clone() };
    assert!(ids(&events(&next, log.as_bytes(), at.plus(5))).iter().all(|id| !ids(&told).contains(id)));
    assert!(events(&failed, b"", at).is_empty());
}
