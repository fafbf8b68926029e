"""Damaged files for the tests of readers: what disks, editors and hostile hands make of a good one."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdistill.errors import ClipdistillError

Damage = Callable[[bytes], bytes]

SOURCE = Path(__file__).resolve().parents[1] / "src"

_SECONDS = 20
_MEMORY = 3 * 2**30

# A text, and how often it stands there.
_SNIPPETS = [
    (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>', 1),
    (b"&b;", 1), (b"<object>", 1), (b"<a>", 5000), (b"[", 5000), (b'{"a":', 5000), (b"- ", 3000),
    (b"../../secret", 1), (b"/etc/passwd", 1), (b"file:///etc/passwd", 1),
    (b"\0", 1), (b"\xff\xfe", 1), (b"\xed\xa0\x80", 1), (b"\xef\xbb\xbf", 1), (b"\r", 1), (b"\n", 2), (b"\t", 1),
    (b'"', 1), (b"'", 1), (b",", 1), (b";", 1), (b"x", 200_000), (b"\xff", 8),
    (b"NaN", 1), (b"-Infinity", 1), (b"1e999", 1), (b"9", 5000), (b"2001-99-99", 1),
    (b"!!python/object/apply:os.system [true]", 1), (b"!!timestamp x", 1), (b"!!int x", 1), (b"!!bool x", 1),
    (b"&a [*a]", 1), (b"? [a]\n: b\n", 1), (b"<<: *a", 1), (b"PK\x03\x04", 1), (b"\x80\x02", 1),
]  # fmt: skip

_VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf"), "", "..", "../../secret",
    "/etc/passwd", "a\0b", "a\nb", "\ud800", "x" * 70_000, "__class__", [], [[]], {}, {"a": {"b": []}}, [None] * 3,
]  # fmt: skip


def damages(file: str) -> st.SearchStrategy[Damage]:
    """Ways to damage a file, by its suffix: its bytes, and the tree of values where it is one."""
    strategy = st.lists(_edits(), min_size=1, max_size=3).map(_in_turn)
    form = {".json": _json, ".yaml": _yaml}.get(Path(file).suffix)
    return strategy if form is None else strategy | _tree_edits(form)


def _in_turn(edits: list[Damage]) -> Damage:
    def apply(content: bytes) -> bytes:
        for edit in edits:
            content = edit(content)
        return content

    return apply


def _edits() -> st.SearchStrategy[Damage]:
    place = st.integers(0, 10_000)
    snippets = st.sampled_from(_SNIPPETS).map(lambda pair: pair[0] * pair[1])
    new = snippets | st.binary(min_size=1, max_size=12)
    return st.one_of(
        st.builds(_truncate, place),
        st.builds(_flip, place, st.integers(1, 255)),
        st.builds(_replace, place, st.integers(0, 40), new),
        st.builds(_repeat, place, st.integers(1, 200), st.integers(2, 40)),
        st.builds(lambda data: lambda _: data, st.binary(max_size=200) | snippets),
    )


def _truncate(place: int) -> Damage:
    return lambda content: content[: place % (len(content) + 1)]


def _flip(place: int, bits: int) -> Damage:
    def apply(content: bytes) -> bytes:
        at = place % max(1, len(content))
        return content[:at] + bytes(byte ^ bits for byte in content[at : at + 1]) + content[at + 1 :]

    return apply


def _replace(place: int, length: int, new: bytes) -> Damage:
    def apply(content: bytes) -> bytes:
        at = place % (len(content) + 1)
        return content[:at] + new + content[at + length :]

    return apply


def _repeat(place: int, length: int, times: int) -> Damage:
    def apply(content: bytes) -> bytes:
        at = place % max(1, len(content))
        return content[:at] + content[at : at + length] * times + content[at + length :]

    return apply


def _json(change: Callable[[Any], Any]) -> Damage:
    return lambda content: json.dumps(change(json.loads(content))).encode()


def _yaml(change: Callable[[Any], Any]) -> Damage:
    def apply(content: bytes) -> bytes:
        return yaml.safe_dump(change(yaml.safe_load(content)), sort_keys=False).encode("utf-8", "replace")

    return apply


def _tree_edits(form: Callable[[Callable[[Any], Any]], Damage]) -> st.SearchStrategy[Damage]:
    steps = st.lists(st.integers(0, 30), max_size=5)
    return st.builds(
        lambda steps, value, kind: form(lambda tree: _change(copy.deepcopy(tree), steps, value, kind)),
        steps,
        st.sampled_from(_VALUES),
        st.sampled_from(["set", "remove", "add", "wrap"]),
    )


def _change(tree: Any, steps: list[int], value: Any, kind: str) -> Any:  # noqa: ANN401 - any tree of values
    """Follow the steps down the tree, and change what is there."""
    if not steps or not isinstance(tree, dict | list) or not tree:
        return [tree] if kind == "wrap" else value
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = keys[steps[0] % len(keys)]
    if len(steps) > 1:
        tree[key] = _change(tree[key], steps[1:], value, kind)
    elif kind == "remove":
        del tree[key]
    elif kind == "add":
        tree = tree | {"surprise": value} if isinstance(tree, dict) else [*tree, tree[key], value]
    else:
        tree[key] = [tree[key]] if kind == "wrap" else value
    return tree


class _Watch:
    """What this process opens while it is on; an audit hook stays for the life of the process, and so there is one."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
            self.opened.append(os.fsdecode(arguments[0]))


_watch = functools.cache(_Watch)


def fuzz(root: Path, files: list[str], read: Callable[[], object], examples: int) -> None:
    """Damage files one at a time: whatever `read` meets, it returns or raises an error for people.

    Args:
        root: folder that nothing may be opened outside of.
        files: paths below it, of good files; good again afterwards.
        read: reads them, and checks what it returns.
        examples: number of damaged files, the same in every run; $CLIPDISTILL_FUZZ_SECONDS draws new ones for so long.
    """
    good = {file: (root / file).read_bytes() for file in files}
    with guarded(root):
        read()

    def once(case: tuple[str, Damage]) -> None:
        file, harm = case
        (root / file).write_bytes(harm(good[file]))
        try:
            with guarded(root), contextlib.suppress(ClipdistillError):
                read()
        finally:
            (root / file).write_bytes(good[file])

    cases = st.sampled_from(files).flatmap(lambda file: st.tuples(st.just(file), damages(file)))
    seconds = float(os.environ.get("CLIPDISTILL_FUZZ_SECONDS", "0"))
    until = time.monotonic() + seconds
    while True:
        rules = settings(max_examples=examples, deadline=None, database=None, derandomize=not seconds)
        rules(given(cases)(once))()
        if time.monotonic() >= until:
            return


@contextmanager
def guarded(root: Path) -> Iterator[None]:
    """Fail where a `with` block takes too long or too much memory, or opens a file that is not below the root.

    Modules may be imported: what lies where Python and its packages are installed may be opened.
    """
    watch = _watch()
    watch.opened.clear()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, limits[1]))
    watch.on = True
    try:
        yield
    finally:
        watch.on = False
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    code = {str(Path(place).resolve()) for place in (sys.prefix, sys.base_prefix, SOURCE, *sys.path) if place}
    outside = [name for name in watch.opened if not str(Path(name).resolve()).startswith((str(root.resolve()), *code))]
    assert outside == []


def _too_long(*_: object) -> None:
    raise AssertionError(f"reading a few small files took more than {_SECONDS} seconds")
