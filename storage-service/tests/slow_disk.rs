//! A slow disk under the store: findings wait in their stream, that is told, and all of them are stored in the end. A control group
//! gives the service a few bytes a second of a real file system on a loop device.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::trouble::{large, make_known, troubles, until, word};
use common::{PATIENCE, config, connect, json};
use rustix::fs::{major, minor};
use tapio_runtime::bus::{Bus, BusConfig, Headers, OrderedConfig};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::SignalKind;
use tapio_schemas::names::{STREAM_EVENTS, STREAM_INSIGHTS};
use tapio_schemas::proto::v1::ListFindingsRequest;
use tapio_schemas::status::Word;
use tapio_storage::{StorageParts, StorageService};

const CGROUPS: &str = "/sys/fs/cgroup";
const DISK_BYTES: u64 = 1 << 30;
const SLOW_BYTES_PER_S: u64 = 400 << 10;
/// Findings while the disk is fast.
const FEW: u64 = 20;
/// Findings while it is slow.
const MANY: u64 = 500;

/// Runs a program to its end; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output();
    let done = done.unwrap_or_else(|error| panic!("{program} (of util-linux or e2fsprogs): {error}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?} (needs root): {said}");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// A disk of its own, so that nobody else waits for it, and a control group that says how fast its processes write to it.
struct SlowDisk {
    dir: PathBuf,
    device: String,
    group: PathBuf,
    is_v1: bool,
}

impl SlowDisk {
    fn mount(below: &Path) -> Self {
        let (image, dir) = (below.join("image"), below.join("disk"));
        fs::create_dir(&dir).unwrap();
        fs::File::create(&image).and_then(|file| file.set_len(DISK_BYTES)).unwrap();
        let v1 = Path::new(CGROUPS).join("blkio");
        let is_v1 = v1.is_dir();
        let root = if is_v1 { v1 } else { PathBuf::from(CGROUPS) };
        if !is_v1 {
            // It may be passed on already.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+io");
        }
        let group = root.join(format!("tapio-test-slow-disk-{}", std::process::id()));
        fs::create_dir(&group).unwrap_or_else(|error| panic!("{} (needs root): {error}", group.display()));
        let image = image.to_str().unwrap();
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image]);
        let device = run("losetup", &["--find", "--show", image]);
        let disk = Self { dir, device, group, is_v1 };
        run("mount", &[&disk.device, disk.dir.to_str().unwrap()]);
        disk
    }

    fn slow(&self) {
        self.limit(&SLOW_BYTES_PER_S.to_string());
    }

    fn fast(&self) {
        self.limit(if self.is_v1 { "0" } else { "max" });
    }

    fn limit(&self, rate: &str) {
        let number = fs::metadata(&self.device).unwrap().rdev();
        let (file, key) =
            if self.is_v1 { ("blkio.throttle.write_bps_device", "") } else { ("io.max", "wbps=") };
        let (limit, line) =
            (self.group.join(file), format!("{}:{} {key}{rate}", major(number), minor(number)));
        fs::write(&limit, &line).unwrap_or_else(|error| panic!("{line} to {}: {error}", limit.display()));
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
        let deadline = Instant::now() + Duration::from_secs(2);
        // A process that was just killed may still be leaving.
        while fs::remove_dir(&self.group).is_err() && Instant::now() < deadline {
            // check: allow sleep, the kernel tells no one when a group becomes empty
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The service in a process of the group.
struct Service(Child);

impl Service {
    fn start(disk: &SlowDisk, nats: &str) -> Self {
        let join = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", disk.group.display());
        let child = Command::new("sh")
            .args(["-ec", &join, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child_serves", "--ignored", "--nocapture"])
            .env("STORAGE_TEST_DIR", disk.dir.join("findings"))
            .env("STORAGE_TEST_NATS", nats)
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("sh runs"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child process of the test below"]
async fn child_serves() {
    let of = |name: &str| std::env::var(name).expect("set by the parent test");
    let metrics = Metrics::new();
    let bus = Bus::connect(&BusConfig::with_url(of("STORAGE_TEST_NATS")), &metrics).await.unwrap();
    bus.ensure_streams().await.unwrap();
    let clock = SystemClock::shared();
    let health = Health::new(clock.clone());
    let parts = StorageParts { bus: bus.clone(), clock, health, metrics };
    let handle = StorageService::start(config(Path::new(&of("STORAGE_TEST_DIR"))), parts).await.unwrap();
    let address = handle.grpc_addr().to_string();
    bus.kv().await.unwrap().put("test.address", address.into()).await.unwrap();
    std::future::pending::<()>().await;
}

async fn publish(bus: &Bus, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let finding = large(number);
        let (subject, id) = (finding.subject(), finding.message_id());
        bus.publish_within(PATIENCE, &subject, Some(&id), Headers::new(), json(&finding)).await.unwrap();
    }
}

/// Titles of all findings, and what the answers lack.
async fn answers(address: SocketAddr) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut client = connect(address).await;
    let (mut titles, mut gaps) = (BTreeSet::new(), BTreeSet::new());
    let mut request = ListFindingsRequest { page_size: 1000, ..ListFindingsRequest::default() };
    loop {
        let page = client.list_findings(request.clone()).await.unwrap().into_inner();
        titles.extend(page.findings.into_iter().map(|finding| finding.title));
        gaps.extend(page.gaps);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return (titles, gaps);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_wait_in_the_stream_while_the_disk_is_slow_and_that_is_told() {
    let nats = NatsServer::start().unwrap();
    let bus = nats.bus().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = SlowDisk::mount(dir.path());
    let _service = Service::start(&disk, &nats.url());
    let address =
        until("the service", async || bus.kv().await.unwrap().get("test.address").await.unwrap()).await;
    let address = std::str::from_utf8(&address.value).unwrap().parse().unwrap();
    let mut events = bus.ordered_consumer(OrderedConfig::new(STREAM_EVENTS)).await.unwrap();
    make_known(&bus, "prod").await;
    publish(&bus, 0..FEW).await;
    until("the first findings", async || word(&bus).await.filter(|word| word.stored == FEW)).await;

    let all: BTreeSet<_> = (0..FEW + MANY).map(|number| format!("finding {number}")).collect();
    disk.slow();
    publish(&bus, FEW..FEW + MANY).await;
    let kept = bus.stream_state(STREAM_INSIGHTS).await.unwrap();
    assert_eq!(kept.messages, FEW + MANY, "the stream takes all of them");
    let (event, kind, says) = until("the trouble", async || troubles(&mut events).await.pop()).await;
    let entity = event.entity.subject().to_string();
    assert!(kind == SignalKind::TapioLag && entity.starts_with("Tapio storage on "), "{kind:?} {entity}");
    assert!(says.contains(" findings wait to be stored, the oldest for "), "{says}");
    let slow = word(&bus).await.expect("it speaks while it is slow");
    assert!(slow.stored < FEW + MANY && slow.failed.is_none(), "slow, and nothing else: {slow:?}");
    // Answers come, with what is stored, and say what they lack.
    let (some, gaps) = answers(address).await;
    assert!((FEW as usize..all.len()).contains(&some.len()) && some.is_subset(&all), "{some:?}");
    assert!(gaps.iter().any(|gap| gap.ends_with(" findings wait to be stored")), "{gaps:?} {slow:?}");

    disk.fast();
    let last = until("the rest", async || {
        word(&bus)
            .await
            .filter(|word| word.stored == FEW + MANY && (word.behind, word.waits_seconds) == (0, 0))
    })
    .await;
    assert_eq!(last.troubles(), [], "what is over is not told any more");
    let refused: u64 = last.refused.iter().map(|dropped| dropped.count).sum();
    assert_eq!(last.received, last.stored + last.retried + refused, "{last:?}");
    assert_eq!(answers(address).await, (all, BTreeSet::new()));
}
