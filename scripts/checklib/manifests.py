"""What must hold of the rendered manifests. Each invariant takes Manifests and yields one line per violation."""

import re

import yaml

NAMESPACE = "tapio"
NODE_AGENT = "tapio-agent"
CLUSTER_AGENT = "tapio-cluster-agent"
AGENT_MEMORY_MIB = 128
AGENT_CAPABILITIES = {"BPF", "PERFMON"}
# Where the node agent may write on its host: the spool.
AGENT_WRITABLE = "/var/lib/tapio"
# Roles that every cluster has.
BUILT_IN_ROLES = {"system:monitoring"}
# What cannot be seen from a pod that stands for no node.
OF_THE_NODE = ("EBPF", "CGROUP", "OTLP", "NETWORK", "SYSTEMD", "FILESYSTEM", "POD_LOGS")
READ_VERBS = {"get", "list", "watch"}
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
CLUSTER_WIDE = ("Namespace", "ClusterRole", "ClusterRoleBinding")
MIB = {"Mi": 1, "Gi": 1024}


class Manifests:
    """The rendered documents, by kind."""

    def __init__(self, documents):
        self.documents = documents
        self.workloads = [document for document in documents if document["kind"] in WORKLOADS]

    def of(self, *kinds):
        return [document for document in self.documents if document["kind"] in kinds]

    def names(self, kind):
        return {name(document) for document in self.of(kind)}

    def containers(self):
        for workload in self.workloads:
            for container in pod(workload).get("initContainers", []) + pod(workload)["containers"]:
                yield workload, container

    def selected(self, selector):
        """Workloads whose pods a label selector takes; the empty one takes all."""
        return [workload for workload in self.workloads if matches(selector, labels(workload))]


def name(document):
    return document["metadata"]["name"]


def pod(workload):
    return workload["spec"]["template"]["spec"]


def labels(workload):
    return workload["spec"]["template"]["metadata"].get("labels", {})


def matches(selector, have):
    wanted = selector.get("matchLabels", {})
    if any(have.get(key) != value for key, value in wanted.items()):
        return False
    return all(have.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []) if e["operator"] == "In")


def port_names(workload):
    return {port["name"] for container in pod(workload)["containers"] for port in container.get("ports", [])}


def port_numbers(workload):
    return {port["containerPort"] for container in pod(workload)["containers"] for port in container.get("ports", [])}


def mebibytes(quantity):
    number, unit = re.fullmatch(r"(\d+)(\D+)", str(quantity)).groups()
    return int(number) * MIB[unit]


def is_node_agent(workload):
    return workload["kind"] == "DaemonSet" and name(workload) == NODE_AGENT


def namespaces(m):
    if m.names("Namespace") != {NAMESPACE}:
        yield f"the namespaces are {sorted(m.names('Namespace'))}, not {NAMESPACE} alone"
    for document in m.documents:
        if document["kind"] not in CLUSTER_WIDE and document["metadata"].get("namespace") != NAMESPACE:
            yield f"{document['kind']} {name(document)} is not in namespace {NAMESPACE}"


def pinned_images(m):
    for workload, container in m.containers():
        image = container["image"]
        tag = image.rsplit("/", 1)[-1].partition(":")[2]
        if not tag or tag == "latest":
            yield f"{name(workload)}: image {image} has no fixed tag"


def container_security(m):
    for workload, container in m.containers():
        context = container.get("securityContext", {})
        capabilities = context.get("capabilities", {})
        where = f"{name(workload)}/{container['name']}"
        allowed = AGENT_CAPABILITIES if is_node_agent(workload) else set()
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: privileged, or may gain privileges"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: its root file system is writable"
        if capabilities.get("drop") != ["ALL"] or not set(capabilities.get("add", [])) <= allowed:
            yield f"{where}: capabilities {capabilities}, allowed are {sorted(allowed)}"


def pod_security(m):
    for workload in m.workloads:
        spec, where = pod(workload), name(workload)
        context = spec.get("securityContext", {})
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: no seccomp profile"
        if spec.get("hostNetwork") or spec.get("hostIPC"):
            yield f"{where}: shares the network or IPC of its host"
        if is_node_agent(workload):
            continue
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{where}: may run as root"
        if spec.get("hostPID") or any("hostPath" in volume for volume in spec.get("volumes", [])):
            yield f"{where}: only the node agent looks at its host"


def host_mounts_read_only(m):
    for workload, container in m.containers():
        paths = {v["name"]: v["hostPath"]["path"] for v in pod(workload).get("volumes", []) if "hostPath" in v}
        for mount in container.get("volumeMounts", []):
            path = paths.get(mount["name"])
            if path and path != AGENT_WRITABLE and mount.get("readOnly") is not True:
                yield f"{name(workload)}: the host's {path} is mounted writable"


def no_service_links(m):
    """TAPIO_STORAGE_SERVICE_HOST and the like would be read as unknown configuration keys: exit 64."""
    for workload in m.workloads:
        if pod(workload).get("enableServiceLinks") is not False:
            yield f"{name(workload)}: enableServiceLinks must be false"


def memory_limits(m):
    for workload, container in m.containers():
        limit = container.get("resources", {}).get("limits", {}).get("memory")
        if limit is None or "memory" not in container["resources"].get("requests", {}):
            yield f"{name(workload)}: no memory request and limit"
        elif is_node_agent(workload) and mebibytes(limit) > AGENT_MEMORY_MIB:
            yield f"{name(workload)}: memory limit {limit} is over the budget of {AGENT_MEMORY_MIB} MiB"


def probes(m):
    for workload, container in m.containers():
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            action = container.get(probe, {}).get("httpGet")
            if not action:
                yield f"{name(workload)}: no {probe}"
            elif action["port"] not in {port["name"] for port in container.get("ports", [])}:
                yield f"{name(workload)}: {probe} asks port {action['port']}, which the container does not name"


def mounts(m):
    configs = m.names("ConfigMap")
    for workload, container in m.containers():
        volumes = {volume["name"] for volume in pod(workload).get("volumes", [])}
        volumes |= {name(claim) for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{name(workload)}: mounts {mount['name']}, which is no volume of the pod"
    for workload in m.workloads:
        for volume in pod(workload).get("volumes", []):
            source = volume.get("configMap", {})
            # An optional one is the user's own.
            if source and not source.get("optional") and source["name"] not in configs:
                yield f"{name(workload)}: config map {volume['configMap']['name']} is not rendered"


def selectors(m):
    for workload in m.workloads:
        selector = workload["spec"]["selector"]
        if not selector.get("matchLabels") or not matches(selector, labels(workload)):
            yield f"{workload['kind']} {name(workload)}: selector does not match its own pods"
        if m.selected(selector) != [workload]:
            yield f"{workload['kind']} {name(workload)}: selector takes pods of others too"
        service = workload["spec"].get("serviceName")
        if workload["kind"] == "StatefulSet" and service not in m.names("Service"):
            yield f"StatefulSet {name(workload)}: there is no service {service}"
    for service in m.of("Service"):
        targets = m.selected({"matchLabels": service["spec"]["selector"]})
        if not targets:
            yield f"Service {name(service)} selects nothing"
        for port in service["spec"]["ports"]:
            if any(port["targetPort"] not in port_names(target) for target in targets):
                yield f"Service {name(service)}: its pods have no port {port['targetPort']}"
    for budget in m.of("PodDisruptionBudget"):
        if not m.selected(budget["spec"]["selector"]):
            yield f"PodDisruptionBudget {name(budget)} selects nothing"


def network_policies(m):
    policies = m.of("NetworkPolicy")
    if not any(p["spec"]["podSelector"] == {} and not p["spec"].get("ingress") for p in policies):
        yield "no policy denies what no other allows"
    for policy in policies:
        targets = m.selected(policy["spec"]["podSelector"])
        if not targets:
            yield f"NetworkPolicy {name(policy)} selects nothing"
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if any(port["port"] not in port_names(target) for target in targets):
                    yield f"NetworkPolicy {name(policy)}: not all of its pods have a port {port['port']}"
            for peer in rule.get("from", []):
                if "podSelector" in peer and not m.selected(peer["podSelector"]):
                    yield f"NetworkPolicy {name(policy)}: lets in pods that are not there"


def is_own_lease(role, rule):
    """Who watches is decided by a lease of the own namespace: made, and then written by name."""
    if role["kind"] != "Role" or role["metadata"].get("namespace") != NAMESPACE or rule["resources"] != ["leases"]:
        return False
    verbs = set(rule["verbs"])
    return verbs == {"create"} or (verbs <= {"get", "update"} and bool(rule.get("resourceNames")))


def rbac_reads_only(m):
    for role in m.of("Role", "ClusterRole"):
        for rule in role.get("rules", []):
            if not set(rule["verbs"]) <= READ_VERBS and not is_own_lease(role, rule):
                yield f"{role['kind']} {name(role)}: verbs {rule['verbs']} are more than reading"
            if {"secrets", "*"} & set(rule.get("resources", [])) or "*" in rule["apiGroups"]:
                yield f"{role['kind']} {name(role)}: reads secrets, or everything"


def rbac_bound(m):
    for binding in m.of("RoleBinding", "ClusterRoleBinding"):
        if binding["roleRef"]["name"] not in m.names(binding["roleRef"]["kind"]) | BUILT_IN_ROLES:
            yield f"{name(binding)}: there is no role {binding['roleRef']['name']}"
        for subject in binding["subjects"]:
            if subject["name"] not in m.names("ServiceAccount") or subject.get("namespace") != NAMESPACE:
                yield f"{name(binding)}: there is no service account {subject['name']} in {subject.get('namespace')}"
    bound = {s["name"] for b in m.of("RoleBinding", "ClusterRoleBinding") for s in b["subjects"]}
    for workload in m.workloads:
        token = pod(workload).get("automountServiceAccountToken")
        if token is not (pod(workload).get("serviceAccountName") in bound):
            yield f"{name(workload)}: a token of the API server goes to those who read it and to nobody else"


def environment(container):
    return {variable["name"]: variable.get("value") for variable in container.get("env", [])}


def collectors_fit(m):
    """An agent whose node is its pod's name tells nothing of a machine; one that stands for a node sees its disks."""
    for workload, container in m.containers():
        env = environment(container)
        if env.get("TAPIO_AGENT__KUBERNETES__SCOPE") == "cluster":
            for collector in OF_THE_NODE:
                if env.get(f"TAPIO_AGENT__{collector}__ENABLED") != "false":
                    yield f"{name(workload)}: collector {collector.lower()} is on, and its node is none"
        if is_node_agent(workload):
            root = env.get("TAPIO_AGENT__FILESYSTEM__ROOT")
            paths = {v["name"]: v["hostPath"]["path"] for v in pod(workload).get("volumes", []) if "hostPath" in v}
            seen = [v for v in container["volumeMounts"] if v["mountPath"] == root and paths.get(v["name"]) == "/"]
            if not seen or seen[0].get("mountPropagation") != "HostToContainer":
                yield f"{name(workload)}: the host's file systems are not seen below filesystem.root ({root})"


def scrape_is_allowed(m):
    """`{role: api_server}` asks /metrics and /readyz, targets of kubelets nodes/metrics."""
    bound = [b for b in m.of("ClusterRoleBinding") if any(s["name"] == CLUSTER_AGENT for s in b["subjects"])]
    roles = {b["roleRef"]["name"] for b in bound}
    if "system:monitoring" not in roles:
        yield f"{CLUSTER_AGENT} may not ask the API server for its metrics: system:monitoring is not bound"
    rules = [rule for role in m.of("ClusterRole") if name(role) in roles for rule in role["rules"]]
    if not any("nodes/metrics" in rule["resources"] and "get" in rule["verbs"] for rule in rules):
        yield f"{CLUSTER_AGENT} may not get nodes/metrics"


def config_fits(m):
    """The configuration speaks of services and ports that are there, and listens where the pods say."""
    (config,) = [d for d in m.of("ConfigMap") if name(d).startswith("tapio-config")] or [{"data": {"tapio.yaml": "{}"}}]
    settings = yaml.safe_load(config["data"]["tapio.yaml"])
    services = {f"nats://{name(s)}:{p['port']}" for s in m.of("Service") for p in s["spec"]["ports"]}
    for url in settings.get("bus", {}).get("urls", ["none"]):
        if url not in services:
            yield f"bus.urls: there is no service for {url}"
    otlp = settings.get("agent", {}).get("otlp", {})
    for workload, key, address in (
        ("tapio-agent", "agent.otlp.grpc_listen", otlp.get("grpc_listen")),
        ("tapio-agent", "agent.otlp.http_listen", otlp.get("http_listen")),
        ("tapio-storage", "storage.listen", settings.get("storage", {}).get("listen")),
        ("tapio-correlator", "telemetry.listen", settings.get("telemetry", {}).get("listen")),
    ):
        host, _, port = str(address).rpartition(":")
        ports = set().union(*(port_numbers(w) for w in m.workloads if name(w) == workload))
        if host != "0.0.0.0" or not port.isdigit() or int(port) not in ports:
            yield f"{key}: {address} is not a port of {workload} on all addresses"


INVARIANTS = {
    check.__name__.replace("_", "-"): check
    for check in (
        namespaces,
        pinned_images,
        container_security,
        pod_security,
        host_mounts_read_only,
        no_service_links,
        memory_limits,
        probes,
        mounts,
        selectors,
        network_policies,
        rbac_reads_only,
        rbac_bound,
        collectors_fit,
        scrape_is_allowed,
        config_fits,
    )
}
