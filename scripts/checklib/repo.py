"""What the rules look at: the texts of the tracked files and what cargo says about the workspace."""

import json
import os
import pathlib
import subprocess
from dataclasses import dataclass, field

from .rust_source import RustSource

TEXT_BYTES_MAX = 2 << 20
"""Larger files are recordings and other data; no rule reads them."""


@dataclass(frozen=True)
class Crate:
    """A workspace member: package name, folder in the repo, and (name, kind) of what it depends on."""

    name: str
    folder: str
    dependencies: tuple


@dataclass
class Repo:
    """`files`: repo path -> text (empty for data). `crates`: the workspace members."""

    files: dict
    crates: list = field(default_factory=list)

    def __post_init__(self):
        self.rust = {path: RustSource(path, text) for path, text in self.files.items() if path.endswith(".rs")}
        test_files = set().union(*(source.test_modules() for source in self.rust.values())) if self.rust else set()
        for path in test_files & set(self.rust):
            self.rust[path].all_test = True
        folders = {str(parent) for path in self.files for parent in pathlib.PurePosixPath(path).parents}
        self.paths = set(self.files) | (folders - {"."})

    def crate_sources(self, crate):
        """The Rust sources of a crate, without those of a package inside its folder (a fuzz package)."""
        inner = [
            path[: -len("Cargo.toml")]
            for path in self.files
            if path.startswith(crate.folder + "/") and path.endswith("/Cargo.toml") and path != crate.folder + "/Cargo.toml"
        ]
        for path, source in self.rust.items():
            if path.startswith(crate.folder + "/") and not path.startswith(tuple(inner)):
                yield path, source


def load(root):
    """Reads the checkout at `root`: tracked files and new ones that are not ignored."""
    names = run(root, ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).split("\0")
    files = {}
    for name in filter(None, names):
        path = root / name
        if path.is_file() and not path.is_symlink():
            files[name] = read_text(path)
    metadata = json.loads(run(root, ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"]))
    return Repo(files, [crate_of(root, package) for package in metadata["packages"]])


def read_text(path):
    if path.stat().st_size > TEXT_BYTES_MAX:
        return ""
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8", errors="replace")


def crate_of(root, package):
    folder = os.path.relpath(os.path.dirname(package["manifest_path"]), root).replace(os.sep, "/")
    dependencies = tuple((d["name"], d["kind"] or "normal") for d in package["dependencies"])
    return Crate(package["name"], folder, dependencies)


def run(root, command):
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise SystemExit(f"check: {command[0]} is not installed, run scripts/setup") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"check: '{' '.join(command)}' failed: {error.stderr.strip()}") from error
    return result.stdout
