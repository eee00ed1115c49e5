"""A Rust file with comments and literals blanked out, and which of its lines are test code."""

import pathlib
import re

# In this order: a comment may hold a quote and a string may hold slashes; whichever begins first wins.
TOKEN = re.compile(
    r"""
      (?P<line>//[^\n]*)
    | (?P<block>/\*)
    | (?P<raw>\bb?c?r(?P<hashes>\#*)")
    | (?P<string>"(?:\\.|[^"\\])*")
    | (?P<char>'(?:\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.)|[^'\\\n])')
    """,
    re.VERBOSE | re.DOTALL,
)
TEST_MODULE = re.compile(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*([;{])")
TEST_ITEM = re.compile(r"#\[(?:cfg\(test\)|(?:\w+::)*test(?:\([^\]]*\))?)\]")
TEST_PATH = re.compile(r"(^|/)(tests|benches)/|(^|/)tests\.rs$|_tests?\.rs$")


class RustSource:
    """`code`: the text with comments and literals replaced by blanks, line numbers unchanged."""

    def __init__(self, path, text):
        self.path = path
        self.lines = text.splitlines()
        self.code = blank(text)
        self.all_test = bool(TEST_PATH.search(path))
        self._test_lines = None

    def find(self, pattern, in_tests):
        """Line numbers (from 1) where `pattern` is in the code, on test lines or on the others."""
        for match in re.finditer(pattern, self.code):
            line = self.code.count("\n", 0, match.start()) + 1
            if self.is_test(line) == in_tests:
                yield line

    def is_test(self, line):
        return self.all_test or line in self.test_lines()

    def test_lines(self):
        if self._test_lines is None:
            self._test_lines = set()
            for match in TEST_ITEM.finditer(self.code):
                first = self.code.count("\n", 0, match.start()) + 1
                last = self.code.count("\n", 0, end_of_item(self.code, match.end())) + 1
                self._test_lines.update(range(first, last + 1))
        return self._test_lines

    def test_modules(self):
        """Paths that a `#[cfg(test)] mod name;` here may stand for."""
        path = pathlib.PurePosixPath(self.path)
        own = path.parent if path.name in ("lib.rs", "main.rs", "mod.rs") else path.parent / path.stem
        for match in TEST_MODULE.finditer(self.code):
            if match.group(2) == ";":
                yield str(own / f"{match.group(1)}.rs")
                yield str(own / match.group(1) / "mod.rs")

    def has_marker(self, line, marker):
        """Whether the line, or a comment right above it, holds `marker` followed by a reason."""
        pattern = re.compile(re.escape(marker) + r"\s*\S.{8,}")
        above = line - 1
        while above >= 1 and self.lines[above - 1].lstrip().startswith("//"):
            above -= 1
        return any(pattern.search(self.lines[i - 1]) for i in range(above + 1, line + 1))


def end_of_item(code, start):
    """Where the item that begins after its attribute ends: at its `;`, or at the brace that closes it."""
    depth = 0
    for i in range(start, len(code)):
        if code[i] in "{([":
            depth += 1
        elif code[i] in "})]":
            depth -= 1
            if depth <= 0 and code[i] == "}":
                return i
        elif code[i] == ";" and depth == 0:
            return i
    return len(code)


def blank(text):
    """Replaces comments, strings and characters by blanks of the same shape."""
    out, position = [], 0
    while match := TOKEN.search(text, position):
        end = literal_end(text, match)
        out.append(text[position : match.start()])
        out.append(re.sub(r"[^\n]", " ", text[match.start() : end]))
        position = end
    out.append(text[position:])
    return "".join(out)


def literal_end(text, match):
    if match.lastgroup == "block" or match.group("block"):
        return block_comment_end(text, match.end())
    if match.group("raw"):
        closing = '"' + match.group("hashes")
        end = text.find(closing, match.end())
        return len(text) if end < 0 else end + len(closing)
    return match.end()


def block_comment_end(text, position):
    """Block comments nest in Rust."""
    depth = 1
    for match in re.compile(r"/\*|\*/").finditer(text, position):
        depth += 1 if match.group() == "/*" else -1
        if depth == 0:
            return match.end()
    return len(text)
