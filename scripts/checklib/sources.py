"""File sizes and banned calls."""

import re

LINES_MAX = 500
SIZED = (".rs", ".c", ".h", ".py", ".sh", ".proto")
RATCHET = "scripts/ratchet.txt"
SLEEP = r"\b(?:thread|time)::sleep(?:_ms|_until)?\b|(?<![.\w])sleep(?:_ms|_until)?\s*\("
SLEEP_ALLOWED = "check: allow sleep,"
CLOCK = r"\b(?:SystemTime|Instant|Timestamp|Zoned|Utc|Local)::now\s*\("
UNBOUNDED = r"\bunbounded_channel\b|\b(?:mpsc|channel)::unbounded\b|\bmpsc::channel\s*(?:::\s*<[^>]*>)?\s*\(\s*\)"


def is_sized(path, text):
    return path.endswith(SIZED) or (path.startswith("scripts/") and text.startswith("#!"))


def file_size(repo):
    """At most LINES_MAX lines. The ratchet lists the exceptions with their size, which may only shrink."""
    allowed = {}
    for number, line in enumerate(repo.files.get(RATCHET, "").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            path, lines = line.rsplit(" ", 1)
            allowed[path] = int(lines)
            if path not in repo.files:
                yield f"{RATCHET}:{number}: {path} is gone, remove the entry"
    for path, text in repo.files.items():
        if not is_sized(path, text):
            continue
        lines = len(text.splitlines())
        if path not in allowed:
            if lines > LINES_MAX:
                yield f"{path}: {lines} lines, at most {LINES_MAX}: split it by job"
        elif lines > allowed[path]:
            yield f"{path}: grew from {allowed[path]} to {lines} lines: split it"
        elif lines <= LINES_MAX:
            yield f"{RATCHET}: {path} has {lines} lines now, remove the entry"
        elif lines < allowed[path]:
            yield f"{RATCHET}: {path} has {lines} lines now, write that instead of {allowed[path]}"


def do_send(repo):
    """`do_send` ignores the capacity of the mailbox."""
    for path, source in repo.rust.items():
        for line in source.find(r"\bdo_send\s*\(", in_tests=False):
            yield f"{path}:{line}: do_send ignores the mailbox capacity, use try_send and count what it refuses"


def unbounded_queue(repo):
    for path, source in repo.rust.items():
        for line in source.find(UNBOUNDED, in_tests=False):
            yield f"{path}:{line}: a queue without a limit, give it one (std: sync_channel)"


def sleep_in_test(repo):
    """A test waits for a condition. Where time itself is the input, a comment 'check: allow sleep, <reason>' says so."""
    for path, source in repo.rust.items():
        for line in source.find(SLEEP, in_tests=True):
            if not source.has_marker(line, SLEEP_ALLOWED):
                yield f"{path}:{line}: a test sleeps, wait for a condition, or say why not: '// {SLEEP_ALLOWED} <reason>'"


def ignored_test(repo):
    for path, source in repo.rust.items():
        for in_tests in (False, True):
            for line in source.find(r"#\[(?:cfg_attr\([^\]]*\b)?ignore\b", in_tests):
                if not is_child_process(source, line):
                    yield f"{path}:{line}: an ignored test tells nothing, mend or delete it"


def is_child_process(source, line):
    """Another test of the file runs this one as a process of its own, by name, and says so in the reason."""
    if not re.search(r'ignore = "[^"]*child process of ', source.lines[line - 1]):
        return False
    function = re.search(r"\bfn\s+(\w+)", "\n".join(source.lines[line:]))
    return bool(function) and f'"{function.group(1)}"' in "\n".join(source.lines)


def retried_test(repo):
    for number, line in enumerate(repo.files.get(".config/nextest.toml", "").splitlines(), 1):
        if re.match(r"\s*retries\s*=", line) and not re.match(r"\s*retries\s*=\s*0\b", line):
            yield f".config/nextest.toml:{number}: tests are never retried"


def wall_clock(repo):
    """The correlator runs on event time; the clock is given to it."""
    for path, source in repo.rust.items():
        if path.startswith("correlator/src/"):
            for line in source.find(CLOCK, in_tests=False):
                yield f"{path}:{line}: reads the wall clock, take the time as an argument or from the injected clock"


def unsafe_island(repo):
    """`forbid(unsafe_code)` where there is none; a `// SAFETY:` note above each use where there is some."""
    for crate in repo.crates:
        uses = 0
        for path, source in repo.crate_sources(crate):
            for in_tests in (False, True):
                for line in source.find(r"\bunsafe\s*(?:\{|impl\b|extern\b)", in_tests):
                    uses += path.startswith(crate.folder + "/src/")
                    if not has_safety_note(source.lines, line):
                        yield f"{path}:{line}: unsafe without a '// SAFETY:' note right above"
        root = f"{crate.folder}/src/lib.rs"
        if root in repo.rust and not uses and not re.search(r"#!\[forbid\(.*unsafe_code", repo.rust[root].code):
            yield f"{root}: no unsafe in this crate, say #![forbid(unsafe_code)]"


def has_safety_note(lines, line):
    """On the line, or in the comment above it; the statement may begin a few lines earlier."""
    return any("SAFETY:" in text for text in lines[max(0, line - 8) : line])
