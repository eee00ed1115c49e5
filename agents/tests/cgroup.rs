//! The cgroup collector on this machine's real groups, and on recorded files of the v2 layout.

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::cgroup::TestGroup;
use support::{metric, until};
use tapio_agents::attribution::{Attribution, Hierarchies};
use tapio_agents::collectors::cgroup::{CgroupConfig, Sampler};
use tapio_runtime::clock::{Clock, ManualClock};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::payload::{MetricData, MetricKind, Payload};

const MIB: f64 = 1_048_576.0;

struct Machine {
    sampler: Sampler,
    clock: ManualClock,
}

impl Machine {
    fn new(trees: &Hierarchies, config: CgroupConfig) -> Self {
        let clock = ManualClock::new(1_700_000_000_000_000_000);
        let attribution = Attribution::new("c", "n", Some(trees.clone()), None, clock.shared());
        Self { sampler: Sampler::new(config, trees.clone(), attribution), clock }
    }

    fn tick(&mut self) -> Vec<UnifiedEvent> {
        let clock = self.clock.clone();
        self.sampler.tick(clock.monotonic(), &|| UnixNanos(clock.now_unix_nanos()))
    }

    /// Lets so much time pass and samples.
    fn after(&mut self, wait: Duration) -> Vec<UnifiedEvent> {
        self.clock.advance(wait);
        self.tick()
    }
}

/// Metrics of one group by name, attributes behind the name.
fn of_group(events: &[UnifiedEvent], path: &str) -> HashMap<String, MetricData> {
    let own = events.iter().filter(|event| event.entity.cgroup == path);
    own.map(|event| {
        let Payload::Metric(metric) = &event.payload else { panic!("{event:?}") };
        let label = |key| tapio_schemas::attribute::find(&metric.attributes, key).map(|v| format!("/{v}"));
        let label = label("event").or_else(|| label("direction")).unwrap_or_default();
        (format!("{}{label}", metric.name), (**metric).clone())
    })
    .collect()
}

#[tokio::test]
async fn memory_and_processes_of_a_real_group() {
    let group = TestGroup::new("memory");
    group.limit_memory(128 << 20);
    if group.has("pids") {
        group.write("pids", "pids.max", 50);
    }
    // Forty mebibytes of its own, and thirty of a file in the page cache, read twice so that it is charged.
    let script = "
import tempfile, threading
kept = bytearray(40 << 20)
for at in range(0, len(kept), 4096): kept[at] = 1
cached = tempfile.NamedTemporaryFile(dir='/var/tmp')
cached.write(b'x' * (30 << 20)); cached.flush()
for _ in range(3): threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
print('up', flush=True); input()
";
    let mut child = group.python(script);
    assert_eq!(child.line(), "up");
    let mut machine = Machine::new(&group.trees, CgroupConfig::default());
    let metrics = of_group(&machine.tick(), &group.path());

    let usage = &metrics["container.memory.usage"];
    let raw = &metrics["container.memory.raw_usage"];
    assert_eq!((usage.unit.as_str(), usage.kind), ("By", MetricKind::Gauge));
    assert_eq!((usage.limit, raw.limit), (128.0 * MIB, 128.0 * MIB));
    assert!((40.0 * MIB..70.0 * MIB).contains(&usage.value), "{} MiB", usage.value / MIB);
    assert!(raw.value > 70.0 * MIB, "{} MiB with page cache", raw.value / MIB);
    assert!(raw.value - usage.value > 20.0 * MIB, "the page cache is not in the working set");
    let kills = &metrics["container.memory.events/oom_kill"];
    assert_eq!((kills.value, kills.kind, kills.monotonic), (0.0, MetricKind::CumulativeSum, true));
    if group.has("pids") {
        let pids = &metrics["container.pids.count"];
        assert_eq!((pids.value, pids.limit), (4.0, 50.0));
    }
    assert!(metrics["container.cpu.time"].value > 0.0);
    assert!(!metrics.contains_key("container.cpu.periods"), "no quota, no periods");
    for (file, name) in
        [("memory.pressure", "container.memory.pressure"), ("io.pressure", "container.io.pressure")]
    {
        let offered =
            group.trees.unified.as_ref().is_some_and(|tree| {
                Path::new(&format!("{}{}/{file}", tree.display(), group.path())).exists()
            });
        assert_eq!(metrics.contains_key(name), offered, "{name}");
    }
}

#[tokio::test]
async fn throttling_by_a_real_quota() {
    let group = TestGroup::new("throttle");
    assert!(group.has("cpu") || group.trees.unified.is_some());
    if group.has("cpu") {
        group.write("cpu", "cpu.cfs_period_us", 20_000);
        group.write("cpu", "cpu.cfs_quota_us", 4_000);
    } else {
        group.write("unified", "cpu.max", "4000 20000");
    }
    let mut child = group.python("print('up', flush=True)\nwhile True: pass");
    assert_eq!(child.line(), "up");
    let mut machine = Machine::new(&group.trees, CgroupConfig::default());
    let first = of_group(&machine.tick(), &group.path());
    let used = first["container.cpu.time"].value;
    // Its start was throttled too.
    let enough = first.get("container.cpu.throttled.periods").map_or(0.0, |m| m.value) + 20.0;
    let interval = CgroupConfig::default().interval.get();
    let last = until("twenty more throttled periods", || {
        let metrics = of_group(&machine.after(interval), &group.path());
        (metrics.get("container.cpu.throttled.periods")?.value >= enough).then_some(metrics)
    })
    .await;
    let value = |name: &str| last[name].value;
    assert!(value("container.cpu.periods") >= value("container.cpu.throttled.periods"));
    // How long each waits depends on what else the machine does.
    assert!(value("container.cpu.throttled.time") > 0.0, "{last:?}");
    assert!(value("container.cpu.time") > used);
    assert_eq!(last["container.cpu.time"].unit, "s");
}

#[tokio::test]
async fn a_group_of_the_cpu_tree_alone_tells_its_throttling() {
    // With one tree, or with cpu and cpuacct in one, there is no such group.
    let Some(group) = TestGroup::only_in("cpu", "cpu-alone") else { return };
    group.write("cpu", "cpu.cfs_period_us", 20_000);
    group.write("cpu", "cpu.cfs_quota_us", 4_000);
    let mut child = group.python("print('up', flush=True)\nwhile True: pass");
    assert_eq!(child.line(), "up");
    let mut machine = Machine::new(&group.trees, CgroupConfig::default());
    let interval = CgroupConfig::default().interval.get();
    let throttled = until("throttled periods", || {
        let metrics = of_group(&machine.after(interval), &group.path());
        (metrics.get("container.cpu.throttled.periods")?.value >= 5.0).then_some(metrics)
    })
    .await;
    assert!(!throttled.contains_key("container.memory.usage"), "{throttled:?}");
}

#[tokio::test]
async fn an_out_of_memory_kill_is_counted_by_the_group_itself() {
    let group = TestGroup::new("count");
    group.limit_memory(24 << 20);
    // The shell stays, so that the group is still inhabited when its child is killed.
    let script = "
import os, signal
child = os.fork()
if child == 0:
    kept = []
    while True: kept.append(bytearray(1 << 20))
print(os.waitpid(child, 0)[1], flush=True); input()
";
    let mut child = group.python(script);
    assert_eq!(child.line(), "9", "killed by SIGKILL");
    let mut machine = Machine::new(&group.trees, CgroupConfig::default());
    let metrics = of_group(&machine.tick(), &group.path());
    assert_eq!(metrics["container.memory.events/oom_kill"].value, 1.0);
    assert!(metrics["container.memory.events/max"].value > 0.0);
}

#[tokio::test]
async fn a_group_is_found_left_and_forgotten() {
    let group = TestGroup::new("life");
    let config = CgroupConfig::default();
    let (search, interval) = (config.discover_interval.get(), config.interval.get());
    let mut machine = Machine::new(&group.trees, config);
    let sampled = |events: &[UnifiedEvent]| events.iter().any(|event| event.entity.cgroup == group.path());
    assert!(!sampled(&machine.tick()), "without processes");
    let mut child = group.python("print('up', flush=True); input()");
    assert_eq!(child.line(), "up");
    assert!(sampled(&machine.after(search)));
    assert!(!sampled(&machine.after(Duration::from_secs(1))), "not due yet");
    assert!(sampled(&machine.after(interval)));
    drop(child);
    assert!(sampled(&machine.after(interval)), "what happened at the end is still read");
    assert!(!sampled(&machine.after(Duration::from_secs(60))));
}

#[tokio::test]
async fn bytes_of_a_real_device() {
    use std::os::unix::fs::MetadataExt;
    let group = TestGroup::new("io");
    if group.has("blkio") {
        // A v1 group counts only where there is a limit; this one limits nothing.
        let device = fs::metadata("/var/tmp").unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        group.write("blkio", "blkio.throttle.write_bps_device", format!("{major}:{minor} 10737418240"));
    }
    // Written past the cache, so that the device is asked by this very process.
    let script = "
import mmap, os, tempfile
name = tempfile.mktemp(dir='/var/tmp')
file = os.open(name, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 1 << 20); page.write(b'x' * (1 << 20))
for _ in range(3): os.write(file, page)
os.fsync(file); os.unlink(name); print('done', flush=True); input()
";
    let mut child = group.python(script);
    assert_eq!(child.line(), "done");
    let mut machine = Machine::new(&group.trees, CgroupConfig::default());
    let metrics = of_group(&machine.tick(), &group.path());
    let written = &metrics["container.io.bytes/write"];
    assert!(written.value >= 3.0 * MIB, "{metrics:?}");
    assert_eq!(written.unit, "By");
}

/// A container of a pod on a v2 machine, with the files as a kernel writes them.
struct V2 {
    root: tempfile::TempDir,
}

const POD: &str = "/kubepods.slice/kubepods-pod0f4e2d3c_1b2a_4c5d_8e9f_a0b1c2d3e4f5.slice";

impl V2 {
    fn new() -> Self {
        let v2 = Self { root: tempfile::tempdir().unwrap() };
        fs::write(v2.root.path().join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
        let files = [
            ("cgroup.procs", "4711\n4712\n"),
            ("memory.current", "52428800\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nhigh 3\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("memory.stat", "anon 41943040\nfile 10485760\ninactive_anon 41943040\ninactive_file 4194304\n"),
            (
                "memory.pressure",
                "some avg10=1.50 avg60=0.75 avg300=0.20 total=123456\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=99\n",
            ),
            (
                "cpu.stat",
                "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 100\nnr_throttled 40\nthrottled_usec 1500000\nnr_bursts 0\nburst_usec 0\n",
            ),
            (
                "cpu.pressure",
                "some avg10=25.00 avg60=10.00 avg300=2.00 total=5000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
            ("pids.current", "7\n"),
            ("pids.max", "100\n"),
            ("io.stat", "253:0 rbytes=4096 wbytes=1048576 rios=1 wios=16 dbytes=0 dios=0\n"),
        ];
        for (file, text) in files {
            v2.write(file, text);
        }
        // The pod has a limit although the container has none.
        fs::write(format!("{}{POD}/memory.max", v2.root.path().display()), "67108864\n").unwrap();
        v2
    }

    fn path() -> String {
        format!("{POD}/cri-containerd-{}.scope", "ab".repeat(32))
    }

    fn write(&self, file: &str, text: &str) {
        let dir = format!("{}{}", self.root.path().display(), Self::path());
        fs::create_dir_all(&dir).unwrap();
        fs::write(Path::new(&dir).join(file), text).unwrap();
    }

    fn machine(&self) -> Machine {
        Machine::new(&Hierarchies::discover(self.root.path()).unwrap(), CgroupConfig::default())
    }
}

#[test]
fn the_v2_layout_gives_the_same_metrics() {
    let v2 = V2::new();
    let events = v2.machine().tick();
    let metrics = of_group(&events, &V2::path());
    let value = |name: &str| metrics.get(name).unwrap_or_else(|| panic!("{name} in {metrics:?}")).value;
    assert_eq!(value("container.memory.usage"), 52_428_800.0 - 4_194_304.0);
    assert_eq!(metrics["container.memory.usage"].limit, 67_108_864.0, "the pod's limit");
    assert_eq!(value("container.memory.raw_usage"), 52_428_800.0);
    for (event, count) in [("oom_kill", 1.0), ("oom", 2.0), ("max", 12.0), ("high", 3.0)] {
        assert_eq!(value(&format!("container.memory.events/{event}")), count);
    }
    assert_eq!(value("container.memory.pressure"), 1.5);
    assert_eq!(value("container.cpu.pressure"), 25.0);
    assert_eq!(metrics["container.cpu.pressure"].attributes[0].value.as_f64(), Some(5.0));
    assert!(!metrics.contains_key("container.io.pressure"), "absent, not zero");
    assert_eq!(value("container.cpu.time"), 2.5);
    assert_eq!(value("container.cpu.periods"), 100.0);
    assert_eq!(value("container.cpu.throttled.periods"), 40.0);
    assert_eq!(value("container.cpu.throttled.time"), 1.5);
    assert_eq!((value("container.pids.count"), metrics["container.pids.count"].limit), (7.0, 100.0));
    assert_eq!(value("container.io.bytes/read"), 4096.0);
    assert_eq!(value("container.io.bytes/write"), 1_048_576.0);
    let entity = &events[0].entity;
    assert_eq!(entity.container_id, "ab".repeat(32));
    assert_eq!(entity.pod_uid, "0f4e2d3c-1b2a-4c5d-8e9f-a0b1c2d3e4f5");
    let ids: std::collections::HashSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), events.len(), "each event has an id of its own");
    assert!(events.iter().all(|event| Arc::ptr_eq(&event.entity, entity)), "one entity, shared");
}

#[test]
fn a_group_that_grows_towards_its_limit_is_read_every_second() {
    const SECOND: Duration = Duration::from_secs(1);
    let v2 = V2::new();
    let mut machine = v2.machine();
    let sampled =
        |events: Vec<UnifiedEvent>| events.iter().any(|e| metric(e, "container.memory.usage").is_some());
    assert!(sampled(machine.tick()));
    let count = |machine: &mut Machine, seconds: u32, mut used: u64, step: u64| {
        (0..seconds)
            .filter(|_| {
                used += step;
                v2.write("memory.current", &format!("{used}\n"));
                sampled(machine.after(SECOND))
            })
            .count()
    };
    assert_eq!(count(&mut machine, 20, 52_428_800, 0), 4, "every five seconds while it rests");
    let fast = count(&mut machine, 20, 52_428_800, 100_000);
    assert!(fast >= 15, "{fast} of 20 while it grows");
    assert!(count(&mut machine, 30, 52_428_800, 0) >= 25, "growth comes in steps");
    assert_eq!(count(&mut machine, 20, 52_428_800, 0), 4, "at rest again");
}

#[test]
fn the_number_of_groups_is_bounded_and_containers_come_first() {
    let v2 = V2::new();
    for n in 0..10 {
        let dir = v2.root.path().join(format!("plain-{n}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cgroup.procs"), "1\n").unwrap();
        fs::write(dir.join("memory.current"), "1\n").unwrap();
    }
    let config = CgroupConfig { groups_max: 3, open_files_max: 5, ..CgroupConfig::default() };
    let mut machine = Machine::new(&Hierarchies::discover(v2.root.path()).unwrap(), config);
    let events = machine.tick();
    assert_eq!((machine.sampler.groups(), machine.sampler.left_out()), (3, 8));
    assert!(events.iter().any(|event| event.entity.cgroup == V2::path()));
    // With fewer files kept open than there are, the next reading is as complete as the first.
    let again = machine.after(CgroupConfig::default().interval.get());
    assert_eq!(again.len(), events.len());
}
