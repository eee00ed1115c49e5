"""Proof that each rule can fail: a small good tree passes all, and each bad change to it is caught by its rule."""

from .repo import Crate, Repo
from .rules import RULES

GOOD_CRATES = [
    Crate("tapio-schemas", "schemas", (("serde", "normal"),)),
    Crate("tapio-runtime", "runtime", (("tapio-schemas", "normal"), ("async-nats", "normal"))),
    Crate("tapio-agents", "agents", (("tapio-runtime", "normal"), ("kube", "normal"))),
    Crate("tapio-correlator", "correlator", (("tapio-runtime", "normal"),)),
    Crate("tapio-storage", "storage-service", (("sled", "normal"),)),
]
FORBID = "#![forbid(unsafe_code)]\n"
GOOD_FILES = {
    "Cargo.toml": '[workspace.dependencies]\nserde = "1"\nasync-nats = "1"\nkube = "1"\nsled = "0.34"\ntapio-runtime = { path = "runtime" }\ntapio-schemas = { path = "schemas" }\n',
    "schemas/Cargo.toml": "[dependencies]\nserde.workspace = true\n",
    "schemas/src/lib.rs": FORBID + "use serde::Serialize;\n",
    "schemas/fuzz/Cargo.toml": '[dependencies]\nserde = "1"\n',
    "runtime/Cargo.toml": "[dependencies]\ntapio-schemas = { workspace = true }\nasync-nats.workspace = true\n",
    "runtime/src/lib.rs": FORBID + "use tapio_schemas as _; use async_nats as _;\n// do_send(in a comment)\n",
    "agents/Cargo.toml": "[dependencies]\ntapio-runtime.workspace = true\nkube.workspace = true\n",
    "agents/src/lib.rs": FORBID + 'use tapio_runtime as _; use kube as _;\nconst A: &str = "do_send(";\n',
    "correlator/Cargo.toml": "[dependencies]\ntapio-runtime.workspace = true\n",
    "correlator/src/lib.rs": FORBID
    + "use tapio_runtime as _;\n#[cfg(test)]\nmod tests {\n    fn now() { Instant::now(); a.do_send(1); clock.sleep(1); }\n}\n",
    "correlator/tests/wait.rs": "// check: allow sleep, the bus must be away for the time the test is about\nfn a() { thread::sleep(x) }\n",
    "agents/tests/child.rs": '#[test]\n#[ignore = "a child process of `b`"]\nfn a() {}\n#[test]\nfn b() { run("a") }\n',
    "storage-service/Cargo.toml": "[dependencies]\nsled.workspace = true\n",
    "storage-service/src/lib.rs": FORBID + "mod store; // sled:: is named in there\n",
    "storage-service/src/store/mod.rs": "use sled::Db;\n",
    "scripts/ratchet.txt": "",
    "docs/architecture.md": "`agents/src/lib.rs`, `storage-service/src/*/{mod,mod}.rs`, `target/x.rs`, `apps/v1`, [a](../Cargo.toml#x)\n",
}


def bad_file(path, text):
    return lambda files, crates: files.__setitem__(path, text)


def more(path, text):
    return lambda files, crates: files.__setitem__(path, files.get(path, "") + text)


def depends(crate_name, dependency, kind="normal"):
    def change(files, crates):
        i = next(i for i, crate in enumerate(crates) if crate.name == crate_name)
        old = crates[i]
        crates[i] = Crate(old.name, old.folder, old.dependencies + ((dependency, kind),))

    return change


LONG = "//\n" * 501
# (rule, what the change is, the change)
CASES = [
    ("dependency-direction", "a service on a service", depends("tapio-correlator", "tapio-storage")),
    ("dependency-direction", "a service on a service in tests", depends("tapio-agents", "tapio-correlator", "dev")),
    ("dependency-direction", "schemas on runtime", depends("tapio-schemas", "tapio-runtime")),
    ("dependency-direction", "an unknown member", lambda f, c: (c.append(Crate("extra", "extra", ())), f.update({"extra/Cargo.toml": ""}))),
    ("foreign-crate", "sled in the correlator", depends("tapio-correlator", "sled")),
    ("foreign-crate", "async-nats in agents' tests", depends("tapio-agents", "async-nats", "dev")),
    ("foreign-crate", "kube in storage", depends("tapio-storage", "kube")),
    ("foreign-crate", "aya in runtime", depends("tapio-runtime", "aya")),
    ("sled-only-in-store", "sled beside the store", more("storage-service/src/lib.rs", "fn f(db: sled::Db) {}\n")),
    ("sled-only-in-store", "sled in a test", bad_file("storage-service/tests/a.rs", "use sled::Db;\n")),
    ("version-at-root", "a bare version", more("agents/Cargo.toml", 'serde = "1"\n')),
    ("version-at-root", "a version in a table", more("agents/Cargo.toml", '[dev-dependencies]\nserde = { version = "1" }\n')),
    ("version-at-root", "a path", more("agents/Cargo.toml", '[dependencies.serde]\npath = "../x"\n')),
    ("unused-version", "a version nobody uses", more("Cargo.toml", 'rand = "1"\n')),
    ("unused-dependency", "a dependency nobody names", more("schemas/Cargo.toml", "kube.workspace = true\n")),
    ("file-size", "a long file", bad_file("agents/src/long.rs", LONG)),
    ("file-size", "a long script", bad_file("scripts/long", "#!/bin/sh\n" + LONG)),
    ("file-size", "a listed file that grew", lambda f, c: f.update({"agents/src/l.rs": LONG * 2, "scripts/ratchet.txt": "agents/src/l.rs 900"})),
    ("file-size", "a listed file that shrank", lambda f, c: f.update({"agents/src/l.rs": LONG, "scripts/ratchet.txt": "agents/src/l.rs 900"})),
    ("file-size", "a listed file that is fine now", more("scripts/ratchet.txt", "agents/src/lib.rs 900")),
    ("file-size", "a listed file that is gone", more("scripts/ratchet.txt", "agents/src/gone.rs 900")),
    ("do-send", "outside tests", more("correlator/src/lib.rs", "fn f() { a.do_send(1) }\n")),
    ("unbounded-queue", "tokio", more("agents/src/lib.rs", "fn f() { mpsc::unbounded_channel(); }\n")),
    ("unbounded-queue", "std", more("agents/src/lib.rs", "fn f() { mpsc::channel::<u8>(); }\n")),
    ("sleep-in-test", "in a test file", bad_file("agents/tests/a.rs", "fn a() { std::thread::sleep(x) }\n")),
    ("sleep-in-test", "in a test module", more("agents/src/lib.rs", "#[cfg(test)]\nmod tests {\n async fn a() { tokio::time::sleep(x).await }\n}\n")),
    ("sleep-in-test", "in a test module's file", lambda f, c: f.update({"agents/src/lib.rs": f["agents/src/lib.rs"] + "#[cfg(test)]\nmod checks;\n", "agents/src/checks.rs": "use tokio::time::sleep;\n"})),
    ("sleep-in-test", "imported by name", bad_file("agents/tests/a.rs", "fn a() { sleep(x).await }\n")),
    ("sleep-in-test", "allowed without a reason", bad_file("agents/tests/a.rs", "// check: allow sleep,\nfn a() { thread::sleep(x) }\n")),
    ("ignored-test", "plain", bad_file("agents/tests/a.rs", "#[test]\n#[ignore]\nfn a() {}\n")),
    ("ignored-test", "with a reason", bad_file("agents/tests/a.rs", '#[ignore = "root"]\nfn a() {}\n')),
    ("ignored-test", "a child that nobody starts", bad_file("agents/tests/a.rs", '#[ignore = "child process of b"]\nfn a() {}\nfn b() {}\n')),
    ("ignored-test", "on a condition", bad_file("agents/tests/a.rs", "#[cfg_attr(not(root), ignore)]\nfn a() {}\n")),
    ("retried-test", "nextest", bad_file(".config/nextest.toml", "[profile.default]\nretries = 2\n")),
    ("wall-clock", "in the correlator", more("correlator/src/lib.rs", "fn f() { SystemTime::now(); }\n")),
    ("unsafe-island", "no note", more("agents/src/lib.rs", "fn f() { unsafe { g() } }\n")),
    ("unsafe-island", "no forbid", bad_file("agents/src/lib.rs", "use tapio_runtime as _; use kube as _;\n")),
    ("cited-path", "a file that is not there", more("docs/architecture.md", "`agents/src/none.rs`\n")),
    ("cited-path", "a folder that is not there", more("docs/architecture.md", "`agents/none/`\n")),
    ("cited-path", "an unknown top folder", bad_file("README.md", "see `agent/src/lib.rs`\n")),
    ("cited-path", "one of two", more("docs/architecture.md", "`agents/src/{lib,none}.rs`\n")),
    ("cited-path", "a link", bad_file("README.md", "[a](docs/none.md)\n")),
    ("foreign-words", "a folder beside the checkout", bad_file("README.md", "see ../" + "shared/x\n")),
    ("foreign-words", "a machine path", bad_file("a.txt", "in /" + "root/x\n")),
    ("foreign-words", "a home folder", bad_file("a.txt", "in /" + "home/someone/x\n")),
    ("foreign-words", "a registry host", bad_file("a.txt", "from https://pypi" + ".org/simple\n")),
]


def violations(change):
    files, crates = dict(GOOD_FILES), list(GOOD_CRATES)
    change(files, crates)
    repo = Repo(files, crates)
    return {rule.name: list(rule.check(repo)) for rule in RULES}


def run():
    """Returns the exit code."""
    problems = [f"the good tree fails {name}: {text}" for name, texts in violations(lambda f, c: None).items() for text in texts]
    problems += [f"rule {rule.name} has no case" for rule in RULES if rule.name not in {case[0] for case in CASES}]
    for name, what, change in CASES:
        if not violations(change)[name]:
            problems.append(f"rule {name} does not see: {what}")
    for problem in problems:
        print(f"check --self-test: {problem}")
    print(f"check --self-test: {len(CASES)} bad trees, {len(RULES)} rules: {'failed' if problems else 'ok'}")
    return 1 if problems else 0
