"""The rules. Each takes a Repo and yields one line per violation: where, what, what to do."""

from dataclasses import dataclass
from typing import Callable

from . import crates, documents, sources


@dataclass(frozen=True)
class Rule:
    """A name for messages and the self-test, and the function that looks for violations."""

    name: str
    check: Callable


RULES = (
    Rule("dependency-direction", crates.dependency_direction),
    Rule("foreign-crate", crates.foreign_crates),
    Rule("sled-only-in-store", crates.sled_only_in_store),
    Rule("version-at-root", crates.versions_at_root),
    Rule("unused-version", crates.unused_versions),
    Rule("unused-dependency", crates.unused_dependencies),
    Rule("file-size", sources.file_size),
    Rule("do-send", sources.do_send),
    Rule("unbounded-queue", sources.unbounded_queue),
    Rule("sleep-in-test", sources.sleep_in_test),
    Rule("ignored-test", sources.ignored_test),
    Rule("retried-test", sources.retried_test),
    Rule("wall-clock", sources.wall_clock),
    Rule("unsafe-island", sources.unsafe_island),
    Rule("cited-path", documents.cited_path),
    Rule("foreign-words", documents.foreign_words),
)
