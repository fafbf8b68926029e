"""Where the members of an uncompressed tar archive lie, so that they can be read without unpacking.

Python's tarfile reads each header; walking from one to the next is done here. tarfile takes a damaged header behind
the first one for the end of the archive and says nothing, and follows chains of extended headers however long.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from clipdistill.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = tarfile.BLOCKSIZE
# Of an extended header; it holds a name and little else.
_MOST = 2**20

# What compressed files begin with, and at which byte: a tar archive begins with a name, which may be BZh.
_COMPRESSED = (
    (0, b"\x1f\x8b", "gzip"),
    (4, b"1AY&SY", "bzip2"),
    (0, b"\xfd7zXZ", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
)


class BrokenShardError(DataError):
    """An archive that is cut off or damaged; its text says where."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive.

    Attributes:
        name: as the archive says it; bytes that are not UTF-8 are escaped as in names of files.
        offset: byte of the archive where its content begins.
        size: bytes of its content.
        plain: whether it is a file, and not a link, a device or one with holes.
    """

    name: str
    offset: int
    size: int
    plain: bool


def compression_of(stream: BinaryIO) -> str | None:
    """Name of the compression that a file begins as, or None."""
    stream.seek(0)
    start = stream.read(16)
    return next((name for place, magic, name in _COMPRESSED if start[place:].startswith(magic)), None)


def members(stream: BinaryIO) -> Iterator[Member]:
    """Walk through an archive; folders are passed over.

    Args:
        stream: the archive, not compressed.

    Yields:
        Members in their order, each wholly there.

    Raises:
        BrokenShardError: it is cut off or damaged, or something stands behind its end.
    """
    length = stream.seek(0, 2)
    place = 0
    said: dict[str, str] = {}
    while (header := _header(stream, place)) is not None:
        begin, size = place + _BLOCK, _size(header, said, place)
        place = begin + -(-size // _BLOCK) * _BLOCK
        if begin + size > length:
            raise BrokenShardError(f"is cut off within {header.name!r} (byte {length})")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            said |= _extended(header, _content(stream, begin, size))
            continue
        if header.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, tarfile.DIRTYPE):
            plain = header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and "holes" not in said
            yield Member(said.get("path", header.name), begin, size, plain)
        if header.type != tarfile.GNUTYPE_LONGLINK:
            said = {}
    _require_zeros(stream, place)


def _header(stream: BinaryIO, place: int) -> tarfile.TarInfo | None:
    """Read a header; None for the block of zeros that ends an archive."""
    stream.seek(place)
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise BrokenShardError(f"is cut off: it ends at byte {place + len(block)} without the mark of its end")
    if not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise BrokenShardError(f"is damaged: no header of a member stands at byte {place} ({error})") from None


def _size(header: tarfile.TarInfo, said: dict[str, str], place: int) -> int:
    """Bytes of what follows a header: nothing behind a link, a folder or a device."""
    if header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        return 0
    text = said.get("size", str(header.size))
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise BrokenShardError(f"is damaged: the member at byte {place} has {text[:30]!r} bytes")
    return 0 if header.type == tarfile.DIRTYPE else int(text)


def _content(stream: BinaryIO, begin: int, size: int) -> bytes:
    if size > _MOST:
        raise BrokenShardError(f"has an extended header of {size} bytes at byte {begin}; no name is so long")
    stream.seek(begin)
    return stream.read(size)


def _extended(header: tarfile.TarInfo, content: bytes) -> dict[str, str]:
    """What an extended header says of the member behind it: path, size, and whether it has holes."""
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    said: dict[str, str] = {}
    begin, stop = 0, len(content.rstrip(b"\0"))
    while begin < stop:
        space = content.find(b" ", begin, begin + 9)
        digits = content[begin:space]
        end = begin + (int(digits) if space > 0 and digits.isdigit() else 0)
        key, equals, value = content[space + 1 : end].removesuffix(b"\n").partition(b"=")
        if not equals or end > stop:
            raise BrokenShardError(f"is damaged: the extended header {header.name!r} cannot be read")
        begin = end
        if key.startswith(b"GNU.sparse."):
            said["holes"] = "yes"
        elif key in (b"path", b"size"):
            said[key.decode()] = value.decode("utf-8", "surrogateescape")
    return said


def _require_zeros(stream: BinaryIO, place: int) -> None:
    """Refuse what stands behind the end: readers of tar pass over it in silence."""
    stream.seek(place)
    while block := stream.read(_MOST):
        if any(block):
            raise BrokenShardError(
                f"goes on behind its end (byte {place}): were archives joined, then by tar --concatenate alone"
            )
