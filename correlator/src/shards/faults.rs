//! What a message of Kubernetes says is wrong, in one word: patterns tell causes apart by it.
//!
//! The texts are those of the API server, the scheduler, the kubelet and containerd. Reasons and fields come first; a text
//! is read only where one reason stands for different faults. The word stays with a deviation: later events of the same
//! deviation often say less than the first.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use smol_str::SmolStr;
use tapio_schemas::SignalKind;
use tapio_schemas::entity::{Entity, EntityRef, kinds};

/// (words of which one is in the message, fault); the first that fits.
type Faults = &'static [(&'static [&'static str], &'static str)];

const IMAGE: Faults = &[
    (&["toomanyrequests", "429 Too Many Requests", "rate limit"], "rate_limited"),
    (&["x509:", "certificate"], "certificate"),
    (
        &[
            "unauthorized",
            "authentication required",
            "access denied",
            "insufficient_scope",
            "no basic auth",
            "failed to authorize",
            "401 Unauthorized",
            "403 Forbidden",
        ],
        "unauthorized",
    ),
    (&["no match for platform", "no matching manifest"], "platform"),
    (&["InvalidImageName", "couldn't parse image", "invalid reference format"], "invalid_name"),
    (&["ErrImageNeverPull", "pull policy of Never"], "never_pulled"),
    (&["not found", "manifest unknown", "does not exist"], "not_found"),
    (
        &[
            "no such host",
            "i/o timeout",
            "connection refused",
            "dial tcp",
            "handshake timeout",
            "deadline exceeded",
            "unreachable",
            "server misbehaving",
        ],
        "unreachable",
    ),
];

const CREATE: Faults = &[
    (&["x509:"], "certificate"),
    (&["failed calling webhook"], "webhook"),
    (&["violates PodSecurity"], "pod_security"),
    (&["exceeded quota", "failed quota"], "quota"),
    (&["usage per Container is", "usage per Pod is", "limit to request ratio"], "limit_range"),
    (&["denied the request"], "denied"),
    (&["error looking up service account", "serviceaccount \""], "service_account"),
    (&["no PriorityClass with name"], "priority_class"),
    (&["exec format error"], "platform"),
    (&["executable file not found", "no such file or directory", "permission denied"], "command"),
];

const MOUNT: Faults = &[
    (&["Multi-Attach error"], "multi_attach"),
    (&["AttachVolume"], "attach"),
    (&["timed out waiting for the condition"], "slow"),
    (&["configmap \"", "secret \""], "absent"),
];

const CONFIG: Faults = &[(&["couldn't find key"], "key_absent"), (&["not found"], "absent")];

const SANDBOX: Faults = &[
    (&["no IP addresses available", "failed to assign an IP", "failed to allocate for range"], "addresses"),
    (&["containerd.sock", "crio.sock", "failed to reserve sandbox name"], "runtime"),
    (&["network", "cni"], "network"),
];

const NODE: Faults = &[
    (&["PLEG is not healthy"], "pleg"),
    (&["node is shutting down"], "shutdown"),
    (&["cni plugin not initialized", "NetworkPluginNotReady", "network is not ready"], "network"),
    (&["container runtime", "runtime is down", "containerd.sock"], "runtime"),
    (&["stopped posting node status"], "silent"),
];

const EVICTED: Faults = &[
    (&["resource: memory"], "memory"),
    (&["ephemeral-storage", "ephemeral local storage", "inodes", "emptyDir"], "disk"),
    (&["resource: pids"], "pids"),
    (&["node shutdown", "Node is shutting", "NodeShutdown"], "shutdown"),
    (&["reempt"], "preempted"),
    (&["taint"], "taint"),
];

/// Words of a program or of the kernel that leave nothing open.
const LOG: Faults = &[
    (&["too many open files", "Too many open files"], "open_files"),
    (&["nf_conntrack: table full"], "conntrack"),
    (&["neighbor table overflow", "neighbour table overflow"], "neighbours"),
    (
        &[
            "fork: Resource temporarily unavailable",
            "fork: retry: Resource temporarily unavailable",
            "pthread_create failed",
            "unable to create new native thread",
            "can't start new thread",
            "fork rejected by pids controller",
        ],
        "processes",
    ),
    // Words of the kernel: a program that may not write says much the same of a file system that is meant to be so.
    (&["Remounting filesystem read-only"], "read_only"),
    (
        &[
            "Buffer I/O error on dev",
            "I/O error, dev ",
            "critical medium error, dev ",
            "EXT4-fs error (device",
            "metadata I/O error in",
            "BTRFS error (device",
        ],
        "disk_error",
    ),
    // Of a pool of the caller, then of databases that take no more.
    (
        &[
            "connection pool exhausted",
            "Connection is not available, request timed out",
            "QueuePool limit of size",
            "Timeout waiting for connection from pool",
            "remaining connection slots are reserved",
            "too many clients already",
            "Too many connections",
            "max number of clients reached",
        ],
        "connections",
    ),
    (&["No space left on device", "no space left on device"], "no_space"),
    (&["certificate is not yet valid", "token used before issued", "Token used before issued"], "clock"),
];

const FORBIDDEN: Faults = &[(&["is forbidden: User \""], "rbac")];

/// No address of its own is left to connect from, or one to listen on is not there.
const NO_ADDRESS: Faults =
    &[(&["cannot assign requested address", "Cannot assign requested address", "EADDRNOTAVAIL"], "ports")];
/// Who says so of an address to listen on.
const LISTENING: [&str; 4] = ["bind", "Bind", "listen", "Listen"];

/// It was so, and is not. `can no longer write: …` and `recovered from panic: …` tell of what just happened.
const IN_THE_PAST: [&str; 6] = [
    "recovered from: ",
    "Recovered from: ",
    "resolved: ",
    "Resolved: ",
    "has been resolved",
    "is no longer the case",
];

/// What is read of a line: what is wrong stands at its beginning, and a dump of memory may follow.
const READ_BYTES_MAX: usize = 1024;

/// The words of all faults of log lines, and the fault of each.
struct Words {
    search: AhoCorasick,
    faults: Vec<&'static str>,
}

static WORDS: LazyLock<Words> = LazyLock::new(|| {
    let all = [LOG, FORBIDDEN, NO_ADDRESS].concat();
    let each = || all.iter().flat_map(|(words, fault)| words.iter().map(|word| (*word, *fault)));
    #[expect(clippy::expect_used, reason = "the words are constants, and a test reads a line by them")]
    let search = AhoCorasick::new(each().map(|(word, _)| word)).expect("a few short words");
    Words { search, faults: each().map(|(_, fault)| fault).collect() }
});

/// What a log line says is wrong; `None` when its words leave it open. Where several fit, the first of the lists counts.
pub fn of_log(of: &EntityRef, body: &str) -> Option<&'static str> {
    let end = body.floor_char_boundary(READ_BYTES_MAX);
    let text = &body[..end];
    let first = WORDS.search.find_overlapping_iter(text).map(|found| found.pattern().as_usize()).min();
    match first.map(|at| WORDS.faults[at]) {
        Some(_) if IN_THE_PAST.iter().any(|word| text.contains(word)) => None,
        Some("no_space") if is_of_shared_memory(text) => Some("shared_memory"),
        Some("ports") if is_of_a_listener(text) => None,
        Some(fault) => Some(fault),
        None => (is_of_a_machine(of) && is_hung_task(text)).then_some("hung_task"),
    }
}

/// `listen tcp 10.0.0.9:80: bind: cannot assign requested address`: the address is not there. Java calls what fails when
/// it connects a `BindException` too.
fn is_of_a_listener(text: &str) -> bool {
    LISTENING.iter().any(|word| text.contains(word)) && !text.contains("connect")
}

/// `could not resize shared memory segment "/PostgreSQL.1" to 8388608 bytes: No space left on device`: no disk is full.
fn is_of_shared_memory(text: &str) -> bool {
    text.contains("shared memory") || text.contains("/dev/shm")
}

/// The kernel's own lines are those of a machine; a workload's or a unit's are not, whatever they say.
pub fn is_of_a_machine(of: &EntityRef) -> bool {
    [&of.workload, &of.pod, &of.container, &of.service, &of.unit, &of.object]
        .iter()
        .all(|name| name.is_empty())
}

/// `INFO: task jbd2/vda1-8:412 blocked for more than 120 seconds.`; newer kernels add what it is blocked in.
fn is_hung_task(text: &str) -> bool {
    let Some((before, after)) = text.split_once(" for more than ") else { return false };
    let task = before.split_once("task ").and_then(|(_, task)| task.split_once(" blocked"));
    let pid = task.and_then(|(name, _)| name.rsplit_once(':')).map_or("", |(_, pid)| pid);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = after.split_once(" seconds").map_or("", |(seconds, _)| seconds);
    is_number(pid) && is_number(seconds)
}

/// `… is forbidden: User "system:serviceaccount:shop:api" cannot list resource …` → ServiceAccount api of shop.
pub fn account_named(message: &str) -> Option<Entity> {
    let user = quoted_after(message, "is forbidden: User")?;
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    Some(Entity::namespaced("ServiceAccount", namespace, name))
}

const PROBE: Faults = &[
    (&["is forbidden: User \""], "rbac"),
    (&["RBAC: access denied"], "mesh_denied"),
    (&["not yet valid", "used before issued"], "clock"),
    (&["no such host"], "name_unknown"),
    (&[":53: ", "server misbehaving", "name resolution"], "dns"),
    (&["x509:", "certificate"], "certificate"),
    (
        &["password authentication failed", "NOAUTH", "Access denied for user", "authentication failed"],
        "credentials",
    ),
    (&["i/o timeout", "deadline exceeded", "unreachable"], "timeout"),
    (&["connection refused"], "refused"),
];

/// What the message says is wrong; `None` when it says nothing known.
pub fn fault(kind: SignalKind, reason: &str, message: &str) -> Option<&'static str> {
    let faults = match kind {
        SignalKind::ImagePullFailed => IMAGE,
        SignalKind::ContainerCrashed if message.contains("is forbidden: User \"") => FORBIDDEN,
        SignalKind::CreateFailed | SignalKind::ContainerCrashed => CREATE,
        SignalKind::K8sWarning => FORBIDDEN,
        SignalKind::MountFailed => MOUNT,
        SignalKind::ConfigMissing => CONFIG,
        SignalKind::SandboxFailed => SANDBOX,
        SignalKind::NodeNotReady => NODE,
        SignalKind::Evicted => EVICTED,
        SignalKind::ProbeFailed => PROBE,
        SignalKind::Unschedulable => return blocking_rule(message),
        _ => return None,
    };
    let says = |word: &&str| message.contains(word) || reason == *word;
    faults.iter().find(|(words, _)| words.iter().any(says)).map(|(_, fault)| *fault)
}

/// Rules of the scheduler; where two exclude equally many machines, the earlier one is told.
const RULES: Faults = &[
    (&["persistentvolumeclaim \""], "claim_absent"),
    (&["volume node affinity conflict", "unbound immediate", "volume count", "bind"], "volume"),
    (&["free ports"], "ports"),
    (&["anti-affinity"], "anti_affinity"),
    (&["topology spread"], "spread"),
    // Servers before 1.21 say the last one.
    (&["affinity/selector", "node selector", "affinity rules", "match Pod's node affinity"], "affinity"),
    (&["Insufficient", "Too many pods"], "insufficient"),
    // Servers before 1.23 say the second one.
    (&["untolerated taint", "had taint {"], "taint"),
    (&["were unschedulable"], "cordoned"),
];

/// `0/4 nodes are available: 1 node(s) had untolerated taint {…}, 3 Insufficient cpu. preemption: …` → `insufficient`: the
/// rule that excludes most machines.
fn blocking_rule(message: &str) -> Option<&'static str> {
    let rules = message.split_once("available: ").map_or(message, |(_, rest)| rest);
    let rules = rules.split(" preemption:").next().unwrap_or_default();
    let mut best: Option<(u64, usize)> = None;
    for part in rules.split(", ") {
        let digits = part.trim_start().split(' ').next().unwrap_or_default();
        let count = digits.parse::<u64>().unwrap_or(1);
        let rule = RULES.iter().position(|(words, _)| words.iter().any(|w| part.contains(w)));
        if let Some(rule) = rule
            && best.is_none_or(|(most, first)| count > most || (count == most && rule < first))
        {
            best = Some((count, rule));
        }
    }
    best.map(|(_, rule)| RULES[rule].1)
}

/// The Service whose cluster name (`name.namespace.svc…`) a message has.
pub fn service_named(message: &str) -> Option<Entity> {
    let at = message.find(".svc")?;
    let host = message[..at].rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.')).next()?;
    let (name, namespace) = host.split_once('.')?;
    let sound = !name.is_empty() && !namespace.is_empty() && !namespace.contains('.');
    sound.then(|| Entity::namespaced(kinds::SERVICE, namespace, name))
}

/// The Service behind a name that was looked up in vain: `lookup pilot on 10.0.0.10:53: no such host`. One word is a Service
/// of the same namespace, two are name and namespace.
pub fn service_looked_up(namespace: &str, message: &str) -> Option<Entity> {
    let (_, rest) = message.split_once("lookup ")?;
    let host = rest.split([' ', ':', ',']).next()?.trim_end_matches('.');
    let (name, namespace) = host.split_once('.').unwrap_or((host, namespace));
    let sound = !name.is_empty() && !namespace.is_empty() && !namespace.contains('.');
    (sound && message.contains("no such host")).then(|| Entity::namespaced(kinds::SERVICE, namespace, name))
}

/// The object that a message says is not there: `configmap "x" not found` → ConfigMap x of that namespace; `no PriorityClass
/// with name x was found` → PriorityClass x.
pub fn absent_object(namespace: &str, message: &str) -> Option<Entity> {
    const KINDS: [(&str, &str); 4] = [
        ("configmap \"", "ConfigMap"),
        ("secret \"", "Secret"),
        ("serviceaccount \"", "ServiceAccount"),
        ("persistentvolumeclaim \"", "PersistentVolumeClaim"),
    ];
    if let Some((_, rest)) = message.split_once("no PriorityClass with name ") {
        let name = rest.split_whitespace().next()?;
        return Some(Entity::new("PriorityClass", "", name, ""));
    }
    KINDS.iter().find_map(|(words, kind)| {
        let (_, rest) = message.split_once(words)?;
        let (name, after) = rest.split_once('"')?;
        after.starts_with(" not found").then(|| Entity::namespaced(kind, namespace, name))
    })
}

/// `namespace/Kind/name` → the entity.
pub fn entity_of(path: &str) -> Option<Entity> {
    let mut parts = path.splitn(3, '/');
    let (namespace, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
    (!kind.is_empty() && !name.is_empty()).then(|| Entity::new(kind, namespace, name, ""))
}

/// The name in quotes after some words: `violates PodSecurity "restricted:latest"` → `restricted:latest`.
pub fn quoted_after(message: &str, words: &str) -> Option<SmolStr> {
    let (_, rest) = message.split_once(words)?;
    let name = rest.trim_start().strip_prefix('"')?.split('"').next()?;
    (!name.is_empty()).then(|| SmolStr::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        let image = |message| fault(SignalKind::ImagePullFailed, "", message);
        assert_eq!(image("failed to resolve reference \"r.io/a:2\": r.io/a:2: not found"), Some("not_found"));
        assert_eq!(image("pull access denied, repository does not exist"), Some("unauthorized"));
        assert_eq!(image("dial tcp: lookup r.io: no such host"), Some("unreachable"));
        assert_eq!(image("Back-off pulling image"), None);
        assert_eq!(fault(SignalKind::ImagePullFailed, "ErrImageNeverPull", ""), Some("never_pulled"));
        let refused =
            "Error creating: pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\": x";
        assert_eq!(fault(SignalKind::CreateFailed, "", refused), Some("pod_security"));
        assert_eq!(quoted_after(refused, "violates PodSecurity").as_deref(), Some("restricted:latest"));
    }

    #[test]
    fn what_was_wrong_and_is_not_is_no_fault() {
        let pod = EntityRef { pod: "p".into(), ..EntityRef::default() };
        for line in [
            "recovered from: accept4: too many open files",
            "pool: connection pool exhausted is no longer the case, 12 free",
            "alert Resolved: write /data: no space left on device",
        ] {
            assert_eq!(of_log(&pod, line), None, "{line}");
        }
        assert_eq!(of_log(&pod, "accept4: too many open files"), Some("open_files"));
        let recovered = "http: recovered from panic: accept4: too many open files";
        assert_eq!(
            of_log(&pod, recovered),
            Some("open_files"),
            "the program goes on, and it has just happened"
        );
        let stopped = "can no longer write /data/wal: no space left on device";
        assert_eq!(of_log(&pod, stopped), Some("no_space"));
    }

    #[test]
    fn the_rule_that_excludes_most_machines_is_told() {
        let rule = |message| fault(SignalKind::Unschedulable, "", message);
        let mixed = "0/4 nodes are available: 1 node(s) had untolerated taint {a: b}, 3 Insufficient cpu. preemption: 0/4 \
                     nodes are available: 1 Preemption is not helpful";
        assert_eq!(rule(mixed), Some("insufficient"));
        assert_eq!(rule("0/3 nodes are available: 3 node(s) had untolerated taint {gpu: }."), Some("taint"));
        let old = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had taint {gpu: }, that the pod didn't tolerate.";
        assert_eq!(rule(old), Some("taint"));
        assert_eq!(
            rule("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity."),
            Some("affinity")
        );
        let claim = "0/3 nodes are available: persistentvolumeclaim \"data\" not found.";
        assert_eq!(rule(claim), Some("claim_absent"));
        assert_eq!(absent_object("shop", claim).unwrap().kind, "PersistentVolumeClaim");
        let class = "Error creating: pods \"a\" is forbidden: no PriorityClass with name urgent was found";
        assert_eq!(fault(SignalKind::CreateFailed, "FailedCreate", class), Some("priority_class"));
        assert_eq!(absent_object("shop", class), Some(Entity::new("PriorityClass", "", "urgent", "")));
        assert_eq!(rule("no nodes"), None);
    }

    #[test]
    fn lines_are_read_by_the_words_that_leave_nothing_open() {
        let node = EntityRef { node: "n1".into(), ..EntityRef::default() };
        let pod = EntityRef { pod: "api-1".into(), ..node.clone() };
        let hung = "INFO: task jbd2/vda1-8:412 blocked for more than 120 seconds.";
        assert_eq!(of_log(&node, hung), Some("hung_task"));
        let waits = "INFO: task dd:7 blocked in I/O wait for more than 245 seconds.";
        assert_eq!(of_log(&node, waits), Some("hung_task"));
        assert_eq!(of_log(&pod, hung), None);
        for others in [
            "client blocked for more than 30 s",
            "task export blocked for more than 30 seconds",
            "worker task 7:1 blocked for more than a few seconds",
        ] {
            assert_eq!(of_log(&node, others), None, "{others}");
        }
        let no_port = "dial tcp 10.96.4.4:5432: connect: cannot assign requested address";
        assert_eq!(of_log(&pod, no_port), Some("ports"));
        let java = "java.net.BindException: Cannot assign requested address (connect failed)";
        assert_eq!(of_log(&pod, java), Some("ports"));
        for absent in [
            "listen tcp 10.0.0.9:80: bind: cannot assign requested address",
            "Error: listen EADDRNOTAVAIL: address not available 10.1.1.1:80",
            "nginx: [emerg] bind() to 10.0.0.9:80 failed (99: Cannot assign requested address)",
            "java.net.BindException: Cannot assign requested address (Bind failed)",
        ] {
            assert_eq!(of_log(&pod, absent), None, "{absent}");
        }
        for (line, fault) in [
            ("blk_update_request: I/O error, dev sda, sector 2048 op 0x0:(READ)", "disk_error"),
            ("EXT4-fs (sda1): Remounting filesystem read-only", "read_only"),
            ("FATAL: sorry, too many clients already", "connections"),
            ("write /var/log/x: no space left on device", "no_space"),
            ("could not resize shared memory segment \"/P.1\": No space left on device", "shared_memory"),
        ] {
            assert_eq!(of_log(&node, line), Some(fault), "{line}");
        }
        assert_eq!(of_log(&pod, "open /etc/x: read-only file system"), None);
        // Only the beginning is read, and cut at a character.
        assert_eq!(of_log(&pod, &format!("{}too many open files", "é".repeat(600))), None);
        assert_eq!(of_log(&pod, &format!("{}too many open files", "é".repeat(400))), Some("open_files"));
    }

    #[test]
    fn names_of_services_are_read_from_messages() {
        let found = service_named("Get \"http://api.shop.svc.cluster.local:80\": i/o timeout").unwrap();
        assert_eq!((found.namespace.as_str(), found.name.as_str()), ("shop", "api"));
        assert_eq!(service_named("Get http://10.0.0.1"), None);
        assert_eq!(service_named("a.svc"), None);
        assert_eq!(entity_of("shop/Deployment/api").unwrap().name, "api");
        assert_eq!(entity_of("api"), None);
    }
}
