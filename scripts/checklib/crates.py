"""Which crate may use which, and where versions are written."""

import re

SERVICES = ("tapio-agents", "tapio-correlator", "tapio-storage", "tapio-loadtest")
# schemas <- runtime <- services <- tapio; bpf <- agents. tapio may ask bpf what the kernel can do (doctor).
ALLOWED = {
    "tapio-schemas": set(),
    "tapio-bpf": set(),
    "tapio-runtime": {"tapio-schemas"},
    "tapio-agents": {"tapio-schemas", "tapio-runtime", "tapio-bpf"},
    "tapio-correlator": {"tapio-schemas", "tapio-runtime"},
    "tapio-storage": {"tapio-schemas", "tapio-runtime"},
    "tapio-loadtest": {"tapio-schemas", "tapio-runtime"},
    "tapio": {"tapio-schemas", "tapio-runtime", "tapio-bpf", *SERVICES},
}
# Crates that one part of the workspace owns.
OWNERS = {
    "sled": {"tapio-storage"},
    "aya": {"tapio-bpf", "tapio-agents"},
    "aya-obj": {"tapio-bpf"},
    "kube": {"tapio-agents", "tapio"},
    "k8s-openapi": {"tapio-agents", "tapio"},
    # The load test measures what NATS does without us: loadtest/src/ceiling.rs.
    "async-nats": {"tapio-runtime", "tapio-loadtest"},
    "ringbuf": {"tapio-runtime"},
}
STORE = "storage-service/src/store"
# Used by generated code only, which is not in the tree.
GENERATED = {("tapio-schemas", name) for name in ("prost", "prost-types", "tonic", "tonic-prost")}

SECTION = re.compile(r"^\[+(.+?)\]+\s*$")
DEPENDENCIES = re.compile(r"(?:^|\.)(?:dev-|build-)?dependencies(?:\.(?P<name>[\w-]+))?$")
ENTRY = re.compile(r"^(?P<name>[\w-]+)(?P<dotted>\.workspace)?\s*=\s*(?P<value>.*)$")


def dependency_direction(repo):
    """DESIGN of the workspace: services meet in subjects and protos, never in code. Holds for tests too."""
    members = {crate.name for crate in repo.crates}
    for crate in repo.crates:
        if crate.name not in ALLOWED:
            yield f"{crate.folder}/Cargo.toml: {crate.name} has no place in the dependency direction, give it one in scripts/checklib/crates.py"
            continue
        for name, kind in crate.dependencies:
            if name in members and name not in ALLOWED[crate.name]:
                yield f"{crate.folder}/Cargo.toml: {crate.name} may not depend on {name} ({kind})"


def foreign_crates(repo):
    for crate in repo.crates:
        for name, kind in crate.dependencies:
            if crate.name not in OWNERS.get(name, {crate.name}):
                owners = ", ".join(sorted(OWNERS[name]))
                yield f"{crate.folder}/Cargo.toml: {name} ({kind}) belongs to {owners} only"


def sled_only_in_store(repo):
    for path, source in repo.rust.items():
        if not path.startswith((STORE + "/", STORE + ".rs")):
            for in_tests in (False, True):
                for line in source.find(r"\bsled::|\buse\s+sled\b|\bextern\s+crate\s+sled\b", in_tests):
                    yield f"{path}:{line}: only {STORE} names sled"


def manifest_entries(text):
    """(line number, section, dependency name, value) of each dependency in a Cargo.toml; enough TOML for our own files."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split(" #")[0].strip()
        if heading := SECTION.match(line):
            section = heading.group(1)
            continue
        where, entry = DEPENDENCIES.search(section), ENTRY.match(line)
        if where and entry:
            if where.group("name"):  # [dependencies.name] with keys of its own
                yield number, section, where.group("name"), f"{entry.group('name')} = {entry.group('value')}"
            else:
                value = "workspace = " + entry.group("value") if entry.group("dotted") else entry.group("value")
                yield number, section, entry.group("name"), value


def member_manifests(repo):
    for crate in repo.crates:
        yield crate, f"{crate.folder}/Cargo.toml", repo.files[f"{crate.folder}/Cargo.toml"]


def versions_at_root(repo):
    for _, path, text in member_manifests(repo):
        for number, section, name, value in manifest_entries(text):
            own_table = section.endswith("." + name)
            named = re.search(r"\b(version|git|path)\s*=", value)
            if named or value.startswith('"') or (not own_table and not re.search(r"\bworkspace\s*=\s*true", value)):
                yield f"{path}:{number}: {name} must be '{name}.workspace = true', its version belongs in the root Cargo.toml"


def unused_versions(repo):
    used = {name for _, _, text in member_manifests(repo) for _, _, name, _ in manifest_entries(text)}
    for number, section, name, _ in manifest_entries(repo.files["Cargo.toml"]):
        if section == "workspace.dependencies" and name not in used:
            yield f"Cargo.toml:{number}: no member uses {name}, remove it"


def unused_dependencies(repo):
    """A dependency whose name is nowhere in the crate's sources. Feature-only dependencies would be named here too."""
    for crate, path, text in member_manifests(repo):
        code = "\n".join(source.code for _, source in repo.crate_sources(crate))
        for number, _, name, _ in manifest_entries(text):
            if (crate.name, name) not in GENERATED and not re.search(rf"\b{name.replace('-', '_')}\b", code):
                yield f"{path}:{number}: {crate.name} never names {name}, remove it"
