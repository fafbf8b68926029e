"""Tar archives that are read where they lie: the same members as tarfile finds, and no damage in silence."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from caption_layouts import header, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdistill.datasets.captions.shards import BrokenShardError, Member, compression_of, members

LONG = "folder/" * 20 + "name.jpg"
FORMS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def found(content: bytes) -> list[Member]:
    return list(members(io.BytesIO(content)))


def shard(tmp_path: Path, contents: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    return write_shard(tmp_path / "a.tar", contents, form).read_bytes()


NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60)


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(st.lists(NAMES, min_size=1, max_size=5).map("/".join), st.binary(max_size=1500)),
    st.sampled_from(FORMS[1:]),
)
def test_members_are_those_that_tarfile_finds(contents: dict[str, bytes], form: int) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        archive.addfile(header("folder", type=tarfile.DIRTYPE))
        for name, content in contents.items():
            archive.addfile(header(name, size=len(content)), io.BytesIO(content))
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        expected = [Member(m.name, m.offset_data, m.size, True) for m in archive if m.isreg()]
    # tarfile takes slashes off the ends of names.
    assert [Member(m.name.rstrip("/"), m.offset, m.size, m.plain) for m in found(stream.getvalue())] == expected
    assert [stream.getvalue()[m.offset : m.offset + m.size] for m in expected] == list(contents.values())


@pytest.mark.parametrize("form", FORMS)
def test_long_names_of_every_form(form: int, tmp_path: Path) -> None:
    content = shard(tmp_path, {LONG: b"one", "\u00fc.txt": b"two"}, form)
    assert [(m.name, content[m.offset : m.offset + m.size]) for m in found(content)] == [
        (LONG, b"one"), ("\u00fc.txt", b"two")
    ]  # fmt: skip


def test_links_devices_and_files_with_holes_are_not_plain(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind in {
            "a": tarfile.SYMTYPE,
            "b": tarfile.LNKTYPE,
            "c": tarfile.CHRTYPE,
            "d": tarfile.FIFOTYPE,
        }.items():
            archive.addfile(header(name, type=kind, linkname="/etc/passwd"))
        archive.addfile(header("e", size=3, pax_headers={"GNU.sparse.major": "1"}), io.BytesIO(b"abc"))
        archive.addfile(header("f", size=3), io.BytesIO(b"abc"))
    assert [(m.name, m.plain) for m in found(stream.getvalue())] == [(name, name == "f") for name in "abcdef"]


def test_a_shard_that_is_cut_off_anywhere_says_so_and_gives_what_is_whole(tmp_path: Path) -> None:
    whole = shard(tmp_path, {"a.jpg": b"x" * 700, "b.jpg": b"y" * 10, "c.jpg": b""})
    good = found(whole)
    for length in range(0, good[-1].offset + 512, 41):
        with pytest.raises(BrokenShardError, match="is cut off"):
            found(whole[:length])
        for member in members_before(whole[:length]):
            assert member in good
            assert member.offset + member.size <= length


def members_before(content: bytes) -> list[Member]:
    got: list[Member] = []
    try:
        for member in members(io.BytesIO(content)):
            got.append(member)  # noqa: PERF402 - what came before the error counts
    except BrokenShardError:
        pass
    return got


def test_a_damaged_header_in_the_middle_does_not_end_the_archive_in_silence(tmp_path: Path) -> None:
    whole = bytearray(shard(tmp_path, {"a.jpg": b"x", "b.jpg": b"y", "c.jpg": b"z"}))
    whole[1024 + 3] ^= 1
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        assert archive.getnames() == ["a.jpg"], "tarfile is silent, so shards has its reason"
    with pytest.raises(BrokenShardError, match="no header of a member stands at byte 1024"):
        found(bytes(whole))
    assert [m.name for m in members_before(bytes(whole))] == ["a.jpg"]


def test_joined_archives_are_noticed(tmp_path: Path) -> None:
    whole = shard(tmp_path, {"a.jpg": b"x"})
    assert len(found(whole + bytes(4096))) == 1
    with pytest.raises(BrokenShardError, match="goes on behind its end"):
        found(whole + whole)


def block(**changes: object) -> bytes:
    return header("a.jpg", **changes).tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is cut off: it ends at byte 0"),
        (b"\xff" * 512, "no header of a member stands at byte 0"),
        (block(size=-5), "has '-5' bytes"),
        (block(size=2**60), "is cut off within 'a.jpg'"),
        (block(size=2**40, type=tarfile.XHDTYPE), "is cut off within"),
        (block(size=2**21, type=tarfile.XHDTYPE) + bytes(2**21), "no name is so long"),
        (block(size=2**21, type=tarfile.GNUTYPE_LONGNAME) + bytes(2**21), "no name is so long"),
        (block(size=4, type=tarfile.XHDTYPE) + b"9 a=".ljust(512, b"\0"), "extended header 'a.jpg' cannot be read"),
        (block(size=512, type=tarfile.XHDTYPE) + b"0 a=".ljust(512, b"x"), "extended header 'a.jpg' cannot be read"),
        (block(size=9, type=tarfile.XHDTYPE) + b"9 size=x\n".ljust(512, b"\0") + block(), "has 'x' bytes"),
        (block(size=11, type=tarfile.XHDTYPE) + b"11 size=-9\n".ljust(512, b"\0") + block(), "has '-9' bytes"),
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(BrokenShardError, match=message):
        found(content)


def test_many_extended_headers_take_no_time_and_no_depth() -> None:
    empty = block(size=0, type=tarfile.XHDTYPE)
    records = b"5 a=\n" * 20_000
    long = block(size=len(records), type=tarfile.XHDTYPE) + records.ljust(-(-len(records) // 512) * 512, b"\0")
    assert [m.name for m in found(empty * 5_000 + long + block(size=0) + bytes(1024))] == ["a.jpg"]


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compression_is_known(mode: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{mode}") as archive:
        archive.addfile(header("a"))
    assert compression_of(stream) is not None
    assert compression_of(io.BytesIO(b"\x28\xb5\x2f\xfd....")) == "zstd"
    assert compression_of(io.BytesIO(shard(tmp_path, {"BZhang/1.jpg": b""}))) is None
