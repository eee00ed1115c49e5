use super::*;
use std::path::PathBuf;
use tapio_runtime::clock::ManualClock;
use tapio_schemas::entity::kinds;

const ID: &str = "4f0c1f6b8b6f4c6fa2c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f60718293a4b5c6d";
const UID: &str = "0f4e2d3c-1b2a-4c5d-8e9f-a0b1c2d3e4f5";

/// A hybrid layout in ordinary directories: inode numbers are as good as the kernel's.
struct Machine {
    root: tempfile::TempDir,
    clock: ManualClock,
}

impl Machine {
    fn hybrid() -> Self {
        let root = tempfile::tempdir().unwrap();
        for (dir, file) in [("memory", "cgroup.procs"), ("unified", "cgroup.controllers")] {
            fs::create_dir(root.path().join(dir)).unwrap();
            fs::write(root.path().join(dir).join(file), "").unwrap();
        }
        Self { root, clock: ManualClock::new(0) }
    }

    fn dir(&self, tree: &str, path: &str) -> PathBuf {
        self.root.path().join(tree).join(path.trim_start_matches('/'))
    }

    fn make(&self, tree: &str, path: &str) -> u64 {
        let dir = self.dir(tree, path);
        fs::create_dir_all(&dir).unwrap();
        fs::metadata(dir).unwrap().ino()
    }

    fn id(&self, tree: &str, path: &str) -> u64 {
        fs::metadata(self.dir(tree, path)).unwrap().ino()
    }

    fn attribution(&self, pods: Option<Arc<dyn PodLookup>>) -> Arc<Attribution> {
        let trees = Hierarchies::discover(self.root.path()).unwrap();
        Attribution::new("c", "n1", Some(trees), pods, self.clock.shared())
    }
}

#[derive(Default)]
struct Pods(Mutex<Option<PodIdentity>>);

impl PodLookup for Pods {
    fn find(&self, container_id: &str, pod_uid: &str) -> Option<PodIdentity> {
        let pod = self.0.lock().unwrap().clone()?;
        (container_id == ID || pod_uid == pod.pod_uid).then_some(pod)
    }
}

fn api_pod() -> PodIdentity {
    PodIdentity {
        namespace: "shop".into(),
        pod: "api-1".into(),
        pod_uid: UID.into(),
        container: "app".into(),
        workload_kind: kinds::DEPLOYMENT.into(),
        workload: "api".into(),
    }
}

#[test]
fn memory_names_the_owner_unless_it_is_the_root() {
    let machine = Machine::hybrid();
    let memory = machine.make("memory", "/leaky");
    let unified = machine.make("unified", "/system.slice/ssh.service");
    let attribution = machine.attribution(None);
    let ids = |memory, unified| CgroupIds { memory: Some(memory), unified: Some(unified) };
    let (memory_root, unified_root) = (machine.id("memory", "/"), machine.id("unified", "/"));
    let leaky = attribution.resolve(ids(memory, unified_root), None);
    assert_eq!(leaky.subject().to_string(), "Cgroup /leaky on n1");
    assert_ne!(leaky.lineage, 0);
    let ssh = attribution.resolve(ids(memory_root, unified), None);
    assert_eq!(ssh.subject().to_string(), "SystemdUnit ssh.service on n1");
    let root = attribution.resolve(ids(memory_root, unified_root), None);
    assert_eq!(root.subject().kind, kinds::NODE);
    assert!(Arc::ptr_eq(&leaky, &attribution.resolve_path("/leaky")), "one value for all events");
}

#[test]
fn a_group_is_found_when_it_is_new_and_known_after_it_is_gone() {
    let machine = Machine::hybrid();
    let attribution = machine.attribution(None);
    machine.clock.advance(WALK_INTERVAL_MIN);
    let id = machine.make("memory", "/short");
    let ids = CgroupIds { memory: Some(id), unified: None };
    assert_eq!(attribution.resolve(ids, None).cgroup, "/short");
    fs::remove_dir(machine.dir("memory", "/short")).unwrap();
    machine.clock.advance(Duration::from_secs(590));
    attribution.refresh();
    assert_eq!(attribution.resolve(ids, None).cgroup, "/short");
}

#[test]
fn unknown_ids_do_not_walk_for_ever() {
    let machine = Machine::hybrid();
    let attribution = machine.attribution(None);
    machine.clock.advance(WALK_INTERVAL_MIN);
    let unknown = CgroupIds { memory: Some(u64::MAX), unified: None };
    assert_eq!(attribution.resolve(unknown, None).subject().kind, kinds::NODE);
    let walked = attribution.lock().last_walk;
    for _ in 0..10 {
        machine.clock.advance(Duration::from_millis(10));
        attribution.resolve(unknown, None);
    }
    assert_eq!(attribution.lock().last_walk, walked);
}

#[test]
fn a_container_gets_its_workload_as_soon_as_the_pod_is_known() {
    let machine = Machine::hybrid();
    let id = machine.make("memory", &format!("/kubepods/burstable/pod{UID}/{ID}"));
    let pods = Arc::new(Pods::default());
    let attribution = machine.attribution(Some(pods.clone()));
    let ids = CgroupIds { memory: Some(id), unified: None };
    let before = attribution.resolve(ids, None);
    assert_eq!((before.pod_uid.as_str(), before.container_id.as_str()), (UID, ID));
    assert_eq!(before.workload, "");
    *pods.0.lock().unwrap() = Some(api_pod());
    machine.clock.advance(RETRY_POD);
    let after = attribution.resolve(ids, None);
    assert_eq!(after.subject().to_string(), "shop/Container api-1/app");
    assert_eq!(after.owner().to_string(), "shop/Deployment api");
    // Telemetry of the same container meets it in one lineage.
    let telemetry = EntityRef { container_id: ID.into(), service: "api".into(), ..Default::default() };
    let completed = attribution.complete(&Arc::new(telemetry.sealed()));
    assert_eq!(completed.lineage, after.lineage);
    assert_eq!((completed.cluster.as_str(), completed.service.as_str()), ("c", "api"));
}

#[test]
fn a_live_process_tells_its_group_without_a_walk() {
    // This test's own process, on the machine's real trees.
    let trees = Hierarchies::discover(Path::new(CGROUP_ROOT)).unwrap();
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = |controller: &str| {
        let line = text.lines().find(|l| l.split(':').nth(1) == Some(controller));
        line.and_then(|l| l.splitn(3, ':').nth(2)).map(str::to_owned)
    };
    let path = own("memory").or_else(|| own("")).unwrap();
    let tree = trees.memory_tree().unwrap().to_owned();
    let id = fs::metadata(format!("{}{path}", tree.display())).unwrap().ino();
    let attribution = Attribution::new("c", "n", Some(trees), None, ManualClock::new(0).shared());
    *attribution.lock() = State { last_walk: Some(Duration::ZERO), ..State::default() };
    let ids = CgroupIds { memory: Some(id), unified: None };
    let entity = attribution.resolve(ids, Some(std::process::id()));
    assert_eq!(entity.cgroup, if path == "/" { "" } else { path.as_str() });
}
