//! A real file system that fills up, as the file system collector tells it.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tapio_agents::collectors::filesystem::{FilesystemConfig, Sampler};
use tapio_agents::node::NodeAgent;
use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::attribute::find;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::Source;

const MIB: u64 = 1 << 20;

/// A file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, bytes: u64, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        let done =
            mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}{options}"), "tmpfs"]).arg(at).status();
        assert!(done.expect("mount runs").success(), "a file system of its own needs root");
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The mounts of this process: those of the test, whatever `/proc/1` is.
fn config() -> FilesystemConfig {
    FilesystemConfig { process: "/proc/self".into(), ..FilesystemConfig::default() }
}

fn sampler(config: &FilesystemConfig) -> Sampler {
    let node = EntityRef { cluster: "c".into(), node: "n".into(), ..EntityRef::default() };
    Sampler::new(config, Arc::new(node.sealed()))
}

fn sample(sampler: &mut Sampler) -> Vec<UnifiedEvent> {
    sampler.sample(UnixNanos(SystemClock::shared().now_unix_nanos()))
}

/// Value and limit of one state of one file system.
fn told(events: &[UnifiedEvent], point: &Path, state: &str) -> Option<(u64, u64)> {
    events.iter().find_map(|event| {
        let metric = support::metric(event, "system.filesystem.usage")?;
        let is = |key: &str, value: &str| {
            find(&metric.attributes, key).and_then(|v| v.as_text()).is_some_and(|text| text == value)
        };
        let here =
            is("system.filesystem.mountpoint", point.to_str()?) && is("system.filesystem.state", state);
        here.then_some((metric.value as u64, metric.limit as u64))
    })
}

#[test]
fn what_is_written_is_told_as_used_and_what_is_left_as_free() {
    support::require_root();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&dir.path().join("with space"), 64 * MIB, "");
    let mut sampler = sampler(&config());
    let before = sample(&mut sampler);
    assert_eq!(told(&before, &disk.0, "used"), Some((0, 64 * MIB)));
    assert_eq!(told(&before, &disk.0, "free"), Some((64 * MIB, 64 * MIB)));
    std::fs::write(disk.0.join("data"), vec![1u8; 48 * MIB as usize]).unwrap();
    let after = sample(&mut sampler);
    assert_eq!(told(&after, &disk.0, "used"), Some((48 * MIB, 64 * MIB)));
    assert_eq!(told(&after, &disk.0, "reserved"), Some((0, 64 * MIB)));
    let written = std::fs::write(disk.0.join("more"), vec![1u8; 48 * MIB as usize]);
    assert!(written.is_err(), "it is full");
    assert_eq!(told(&sample(&mut sampler), &disk.0, "free"), Some((0, 64 * MIB)));
}

#[test]
fn a_mount_that_is_read_only_or_mounted_again_is_not_told() {
    support::require_root();
    let dir = tempfile::tempdir().unwrap();
    let read_only = Disk::mount(&dir.path().join("ro"), MIB, ",ro");
    let first = Disk::mount(&dir.path().join("a"), MIB, "");
    let again = dir.path().join("longer-name");
    std::fs::create_dir_all(&again).unwrap();
    let bound = Command::new("mount").arg("--bind").arg(&first.0).arg(&again).status().unwrap();
    assert!(bound.success());
    let again = Disk(again);
    let events = sample(&mut sampler(&config()));
    assert_eq!(told(&events, &first.0, "used"), Some((0, MIB)));
    assert_eq!(told(&events, &again.0, "used"), None);
    assert_eq!(told(&events, &read_only.0, "used"), None);
    let mut narrow = sampler(&FilesystemConfig { mounts_max: 1, ..config() });
    let few = sample(&mut narrow);
    assert_eq!(few.len(), 3, "three states of one file system");
    assert!(narrow.left_out() >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_publishes_them_as_the_nodes() {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = support::bare("filesystem");
    config.filesystem.enabled = true;
    let agent = support::start(&nats, config).await;
    let bus = nats.bus().await.unwrap();
    let is_usage = |event: &UnifiedEvent| support::metric(event, "system.filesystem.usage").is_some();
    let mut stream = support::Stream::open(&bus, "filesystem").await;
    let events = stream.events_until("usage", |events| events.iter().any(is_usage)).await;
    let event = events.iter().find(|event| is_usage(event)).unwrap();
    assert_eq!((event.source, event.entity.node.as_str()), (Source::Filesystem, support::NODE));
    assert_eq!(agent.degraded(), vec![]);
    support::drain(agent).await;
}

/// A process by hand: its list of mounts, and its root as it is seen from here.
fn seen_through(dir: &Path, mounts: &str) -> FilesystemConfig {
    let process = dir.join("process");
    std::fs::create_dir_all(&process).unwrap();
    std::fs::write(process.join("mountinfo"), mounts).unwrap();
    FilesystemConfig { process, root: dir.join("host"), ..FilesystemConfig::default() }
}

/// `major:minor` of what is there.
fn device(path: &Path) -> String {
    let device = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path).unwrap());
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

#[test]
fn the_machines_mounts_are_seen_below_the_configured_root_where_they_are_directories() {
    support::require_root();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&dir.path().join("host/data"), MIB, "");
    std::fs::write(dir.path().join("host/f"), "a file that was mounted").unwrap();
    std::fs::create_dir(dir.path().join("host/gone")).unwrap();
    let device = device(&disk.0);
    // The file is the shortest name of the device; what is no longer mounted shows another device.
    let list = format!(
        "1 0 {device} / /f rw - tmpfs tmpfs rw\n2 0 {device} / /data rw - tmpfs tmpfs rw\n\
         3 0 999:9 / /gone rw - tmpfs tmpfs rw\n"
    );
    let mut sampler = sampler(&seen_through(dir.path(), &list));
    let events = sample(&mut sampler);
    assert_eq!(told(&events, Path::new("/data"), "used"), Some((0, MIB)));
    assert_eq!((events.len(), sampler.blind()), (3, None), "three states of one file system");
}

#[test]
fn what_is_kept_in_memory_does_not_push_out_disks() {
    support::require_root();
    let dir = tempfile::tempdir().unwrap();
    let shared = Disk::mount(&dir.path().join("host/shm"), MIB, "");
    let disk = dir.path().join("host/var/lib/volume");
    std::fs::create_dir_all(&disk).unwrap();
    let (of_memory, of_disk) = (device(&shared.0), device(&disk));
    let list = format!(
        "1 0 {of_memory} / /shm rw - tmpfs tmpfs rw\n2 0 {of_disk} / /var/lib/volume rw - ext4 /dev/sdb rw\n"
    );
    let narrow = FilesystemConfig { mounts_max: 1, ..seen_through(dir.path(), &list) };
    let mut sampler = sampler(&narrow);
    let events = sample(&mut sampler);
    assert!(told(&events, Path::new("/var/lib/volume"), "used").is_some(), "{events:?}");
    assert_eq!((told(&events, Path::new("/shm"), "used"), sampler.left_out()), (None, 1));
}

#[test]
fn who_does_not_see_the_machine_says_so_unless_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut elsewhere = sampler(&seen_through(dir.path(), "999999999 0 8:1 / / rw - ext4 /dev/sda1 rw\n"));
    sample(&mut elsewhere);
    let reason = elsewhere.blind().expect("there is no such root").to_owned();
    assert!(reason.contains("host: No such file") && reason.contains("filesystem.root"), "{reason}");
    // The root may come later, with the mounts of the pod.
    std::fs::create_dir(dir.path().join("host")).unwrap();
    sample(&mut elsewhere);
    assert_eq!(elsewhere.blind(), None);
    // A process whose root may not be entered, with the very mounts of this one: nothing is missing.
    let own = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut same = sampler(&seen_through(other.path(), &own));
    sample(&mut same);
    assert_eq!(same.blind(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_seen_or_left_out_is_told_and_counted() {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = support::bare("filesystem-blind");
    config.filesystem = FilesystemConfig {
        enabled: true,
        process: "/nowhere".into(),
        mounts_max: 0,
        ..FilesystemConfig::default()
    };
    let parts = support::parts(&nats).await;
    let metrics = parts.metrics.clone();
    let agent = NodeAgent::start(config, parts).await.expect("the agent starts");
    support::until("the sample", || {
        let text = metrics.encode();
        let mut counts = text.lines().filter(|line| line.contains("filesystem_left_out_total "));
        counts.any(|line| !line.ends_with(" 0")).then_some(())
    })
    .await;
    let degraded = agent.degraded();
    assert!(degraded[0].0 == "filesystem" && degraded[0].1.contains("/nowhere/mountinfo"), "{degraded:?}");
    support::drain(agent).await;
}
