"""Proof that each invariant of the manifests can fail: one bad change each to the rendered base."""

import copy

from .manifests import INVARIANTS, Manifests, labels, name, pod


def find(documents, kind, wanted):
    return next(d for d in documents if d["kind"] == kind and name(d).startswith(wanted))


def agent(documents):
    return find(documents, "DaemonSet", "tapio-agent")


def cluster_agent(documents):
    return find(documents, "Deployment", "tapio-cluster-agent")


def variable(workload, wanted):
    return next(v for v in container(workload)["env"] if v["name"] == wanted)


def storage(documents):
    return find(documents, "StatefulSet", "tapio-storage")


def container(workload):
    return pod(workload)["containers"][0]


def security(workload):
    return container(workload)["securityContext"]


def volume(workload, wanted):
    return next(v for v in pod(workload)["volumes"] if v["name"] == wanted)


def mount(workload, wanted):
    return next(v for v in container(workload)["volumeMounts"] if v["name"] == wanted)


def rules(documents):
    return find(documents, "ClusterRole", "tapio-agent")["rules"]


def config(documents, old, new):
    data = find(documents, "ConfigMap", "tapio-config")["data"]
    assert old in data["tapio.yaml"], f"the configuration has no {old}"
    data["tapio.yaml"] = data["tapio.yaml"].replace(old, new)


def policy(documents, wanted):
    return find(documents, "NetworkPolicy", wanted)["spec"]


# (invariant, what the change is, the change)
CASES = [
    ("namespaces", "a document elsewhere", lambda d: storage(d)["metadata"].update(namespace="default")),
    ("pinned-images", "no tag", lambda d: container(storage(d)).update(image="tapio")),
    ("pinned-images", "latest", lambda d: container(storage(d)).update(image="host:5000/tapio:latest")),
    ("container-security", "privileged", lambda d: security(agent(d)).update(privileged=True)),
    ("container-security", "may gain privileges", lambda d: security(storage(d)).pop("allowPrivilegeEscalation")),
    ("container-security", "writable root", lambda d: security(storage(d)).update(readOnlyRootFilesystem=False)),
    ("container-security", "another capability", lambda d: security(agent(d))["capabilities"]["add"].append("SYS_ADMIN")),
    ("container-security", "a capability elsewhere", lambda d: security(storage(d))["capabilities"].update(add=["BPF"])),
    ("pod-security", "root", lambda d: pod(storage(d))["securityContext"].pop("runAsNonRoot")),
    ("pod-security", "no seccomp", lambda d: pod(agent(d))["securityContext"].pop("seccompProfile")),
    ("pod-security", "host network", lambda d: pod(agent(d)).update(hostNetwork=True)),
    ("pod-security", "host processes", lambda d: pod(storage(d)).update(hostPID=True)),
    ("host-mounts-read-only", "writable cgroups", lambda d: mount(agent(d), "cgroup").pop("readOnly")),
    ("no-service-links", "the default", lambda d: pod(storage(d)).pop("enableServiceLinks")),
    ("memory-limits", "no limit", lambda d: container(storage(d))["resources"].pop("limits")),
    ("memory-limits", "an agent over budget", lambda d: container(agent(d))["resources"]["limits"].update(memory="1Gi")),
    ("probes", "no liveness", lambda d: container(storage(d)).pop("livenessProbe")),
    ("probes", "an unknown port", lambda d: container(storage(d))["readinessProbe"]["httpGet"].update(port="web")),
    ("mounts", "an unknown volume", lambda d: mount(storage(d), "config").update(name="none")),
    ("mounts", "an unknown config map", lambda d: volume(storage(d), "config")["configMap"].update(name="none")),
    ("selectors", "pods with other labels", lambda d: labels(storage(d)).update({"app.kubernetes.io/name": "x"})),
    ("selectors", "pods of two workloads", lambda d: labels(agent(d)).update({"app.kubernetes.io/name": "nats"})),
    ("selectors", "a service of nothing", lambda d: find(d, "Service", "tapio-otlp")["spec"]["selector"].update(a="b")),
    ("selectors", "a service without its port", lambda d: container(agent(d))["ports"].pop(0)),
    ("selectors", "no governing service", lambda d: storage(d)["spec"].update(serviceName="none")),
    ("selectors", "a budget of nothing", lambda d: find(d, "PodDisruptionBudget", "nats")["spec"]["selector"]["matchLabels"].update(a="b")),
    ("network-policies", "no default", lambda d: d.remove(find(d, "NetworkPolicy", "default-deny"))),
    ("network-policies", "a policy of nothing", lambda d: policy(d, "otlp")["podSelector"]["matchLabels"].update(a="b")),
    ("network-policies", "an unknown port", lambda d: policy(d, "nats")["ingress"][0]["ports"][0].update(port="x")),
    ("network-policies", "peers that are not there", lambda d: policy(d, "nats")["ingress"][0]["from"][0]["podSelector"]["matchLabels"].update(a="b")),
    ("rbac-reads-only", "a write", lambda d: rules(d)[0]["verbs"].append("delete")),
    ("rbac-reads-only", "any lease", lambda d: find(d, "Role", "tapio-cluster-agent")["rules"][0].pop("resourceNames")),
    ("rbac-reads-only", "more than a lease", lambda d: find(d, "Role", "tapio-cluster-agent")["rules"][0].update(resources=["pods"])),
    ("rbac-reads-only", "secrets", lambda d: rules(d)[0]["resources"].append("secrets")),
    ("rbac-reads-only", "everything", lambda d: rules(d)[0].update(apiGroups=["*"])),
    ("rbac-bound", "no such account", lambda d: find(d, "ClusterRoleBinding", "tapio-agent")["subjects"][0].update(name="x")),
    ("rbac-bound", "no such role", lambda d: find(d, "ClusterRoleBinding", "tapio-agent")["roleRef"].update(name="x")),
    ("rbac-bound", "a token for storage", lambda d: pod(storage(d)).update(automountServiceAccountToken=True)),
    ("collectors-fit", "disks of no machine", lambda d: variable(cluster_agent(d), "TAPIO_AGENT__FILESYSTEM__ENABLED").update(value="true")),
    ("collectors-fit", "disks that are not seen", lambda d: variable(agent(d), "TAPIO_AGENT__FILESYSTEM__ROOT").update(value="/")),
    ("collectors-fit", "disks that come later", lambda d: mount(agent(d), "host").pop("mountPropagation")),
    ("scrape-is-allowed", "no metrics of the API server", lambda d: d.remove(find(d, "ClusterRoleBinding", "tapio-cluster-agent-monitoring"))),
    ("scrape-is-allowed", "none of kubelets", lambda d: find(d, "ClusterRole", "tapio-cluster-agent-metrics")["rules"][0].update(resources=["nodes"])),
    ("config-fits", "another NATS", lambda d: config(d, "nats://nats:4222", "nats://bus:4222")),
    ("config-fits", "loopback", lambda d: config(d, "0.0.0.0:4317", "127.0.0.1:4317")),
    ("config-fits", "another port", lambda d: config(d, "0.0.0.0:50051", "0.0.0.0:50052")),
]


def run(documents):
    """Returns the exit code."""
    problems = [f"invariant {each} has no case" for each in INVARIANTS if each not in {case[0] for case in CASES}]
    for invariant, what, change in CASES:
        changed = copy.deepcopy(documents)
        change(changed)
        if not list(INVARIANTS[invariant](Manifests(changed))):
            problems.append(f"invariant {invariant} does not see: {what}")
    for problem in problems:
        print(f"check-kustomize --self-test: {problem}")
    print(f"check-kustomize --self-test: {len(CASES)} bad renderings: {'failed' if problems else 'ok'}")
    return 1 if problems else 0
