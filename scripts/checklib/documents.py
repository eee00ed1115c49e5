"""What the pages cite exists; nothing in the tree names the machine it was written on."""

import fnmatch
import posixpath
import re

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"^\.?[\w.*{},-]+(?:/[\w.*{},-]+)*/?$")
WITH_SUFFIX = re.compile(r"\.(?:rs|c|h|proto|ya?ml|toml|md|py|sh|jsonl|json)$")
# Folders of a person's checkout that are made, not tracked.
MADE = ("target", ".tools")
MACHINE_PATHS = re.compile(r"\.\./shared\b|(?<![\w.])/(?:work|root)/|(?<![\w.])/home/[a-z]")
REGISTRY_HOSTS = re.compile(r"\b(?:pypi[.]org|pythonhosted[.]org|deb[.]debian[.]org|npmjs[.](?:org|com)|(?:index|static)[.]crates[.]io)\b")
NOT_OURS = ("Cargo.lock", "LICENSE")


def pages(repo):
    for path, text in repo.files.items():
        if path == "README.md" or (path.startswith("docs/") and path.endswith(".md")):
            yield path, FENCE.sub(lambda m: re.sub(r"[^\n]", "", m.group()), text)


def braces(pattern):
    """`a/{b,c}.rs` -> `a/b.rs`, `a/c.rs`."""
    group = re.search(r"\{([^{}]*)\}", pattern)
    if not group:
        return [pattern]
    head, tail = pattern[: group.start()], pattern[group.end() :]
    return [path for part in group.group(1).split(",") for path in braces(head + part + tail)]


def exists(repo, path):
    path = posixpath.normpath(path)
    if "*" in path:
        return any(fnmatch.fnmatchcase(known, path) for known in repo.paths)
    return path in repo.paths


def looks_like_path(repo, text):
    """A span is a path of ours when it begins with something at the top of the repo, or has a folder and a file suffix."""
    if not PATH.match(text) or text.startswith(MADE):
        return False
    top = text.split("/")[0]
    if "/" not in text:
        return bool(WITH_SUFFIX.search(text)) and text[0].isupper()  # Cargo.toml, README.md
    return top in repo.paths or bool(WITH_SUFFIX.search(text))


def cited_path(repo):
    for page, text in pages(repo):
        folder = posixpath.dirname(page)
        for number, line in enumerate(text.splitlines(), 1):
            for span in SPAN.findall(line):
                cited = re.sub(r":\d+(-\d+)?$", "", span)
                if looks_like_path(repo, cited):
                    for path in braces(cited):
                        if not exists(repo, path) and not exists(repo, posixpath.join(folder, path)):
                            yield f"{page}:{number}: `{path}` does not exist"
            for link in LINK.findall(line):
                target = link.split("#")[0]
                if target and "://" not in target and not target.startswith("mailto:"):
                    if not exists(repo, posixpath.join(folder, target)):
                        yield f"{page}:{number}: link to {target} leads nowhere"


def foreign_words(repo):
    for path, text in repo.files.items():
        if path in NOT_OURS:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            for pattern, what in ((MACHINE_PATHS, "a path of one machine"), (REGISTRY_HOSTS, "the host of a registry")):
                if found := pattern.search(line):
                    yield f"{path}:{number}: '{found.group()}' is {what}, keep it out of the tree"
