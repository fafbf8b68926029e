"""Captioned images in shards of webdataset: tar archives whose members `key.jpg` and `key.txt` are a pair."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from clipdistill.datasets.captions import shards
from clipdistill.datasets.captions.pairs import Pair, RawCaptions, read_caption
from clipdistill.datasets.images import SUFFIXES
from clipdistill.datasets.raw import Fence, Problem, ProblemKind, Refusal
from clipdistill.errors import DataError, ParamsError

if TYPE_CHECKING:
    from clipdistill.datasets.captions.shards import Member
    from clipdistill.datasets.table import Split
    from clipdistill.params import CaptionParams

# Of a member that holds a caption.
_MOST = 2**20


def read(params: CaptionParams, split: Split) -> RawCaptions:
    """Find the pairs in all shards of a split; nothing is unpacked.

    Args:
        params: `root` holds the shards that the pattern `train` or `val` matches, for example train/*.tar.
        split: which of them.

    Returns:
        The pairs; an id is the shard's path, a slash and the key: what stands before the first dot of a member's
        name. Of a shard that is cut off the pairs before the cut are there. `key.txt` goes before the `caption` of
        `key.json`.

    Raises:
        DataError: no shard matches, or one is compressed or cannot be read.
        ParamsError: the pattern leaves `root`, or `images` is set.
    """
    if params.images:
        raise ParamsError("ttd.captions.images: the images of webdataset lie in its shards; leave it empty")
    root = Path(params.root)
    found = RawCaptions(root, [], [], {"shards": 0, "other_members": 0})
    fence = Fence(root, "broken_shard")
    for name in _shards(root, params.train if split == "train" else params.val, split):
        found.notes["shards"] += 1
        if refusal := fence.check(name):
            found.problems.append(Problem(refusal[0], split, name, refusal[1]))
        else:
            _read_shard(fence, name, split, found)
    return found


def _shards(root: Path, pattern: str, split: Split) -> list[str]:
    """Paths of the shards below the root, sorted."""
    if pattern.startswith(("/", "\\")) or ".." in pattern.split("/"):
        raise ParamsError(f"ttd.captions.{split}: {pattern!r} is no pattern of files below ttd.captions.root")
    try:
        names = sorted({path.relative_to(root).as_posix() for path in root.glob(pattern) if not path.is_dir()})
    except (OSError, ValueError) as error:
        raise DataError(f"{root} cannot be searched for {pattern!r} ({error})") from None
    if not names:
        raise DataError(
            f"{root} holds no file {pattern!r}: ttd.captions.{split} is the pattern of the shards below "
            "ttd.captions.root, for example train/*.tar, with * and ? as in a shell and without braces"
        )
    return names


@dataclass(slots=True)
class _Sample:
    """What a shard has of one key.

    Attributes:
        image: member that is the image.
        captions: members that may hold the caption, by suffix.
        others: suffixes of further members.
        faults: what is wrong with members that were not taken.
    """

    image: Member | None = None
    captions: dict[str, Member] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    faults: list[Refusal] = field(default_factory=list)

    def is_named_oddly(self) -> bool:
        """Whether an image has a further dot in its name: `v1.2.jpg` is of the key v1."""
        return any(PurePosixPath(suffix).suffix in SUFFIXES for suffix in self.others)


def _read_shard(fence: Fence, name: str, split: Split, found: RawCaptions) -> None:
    path = fence.folder / name
    try:
        with path.open("rb") as stream:
            if kind := shards.compression_of(stream):
                raise DataError(
                    f"{path} is compressed ({kind}), so that no image can be read where it lies: unpack the archive "
                    "itself, for example by gunzip, and leave its members in the .tar"
                )
            for key, sample in _samples(stream, fence, name, split, found).items():
                found.notes["other_members"] += len(sample.others)
                _take(f"{name}/{key}", name, split, sample, stream, found)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): get it again") from None


def _samples(stream: BinaryIO, fence: Fence, name: str, split: Split, found: RawCaptions) -> dict[str, _Sample]:
    """Members of a shard by key, up to where it is broken."""
    samples: dict[str, _Sample] = {}
    try:
        for member in shards.members(stream):
            _sort_in(member, fence, samples)
    except shards.BrokenShardError as error:
        detail = f"the shard {error}; get it again, or go on with what stands before"
        found.problems.append(Problem("broken_shard", split, name, detail))
    return samples


def _sort_in(member: Member, fence: Fence, samples: dict[str, _Sample]) -> None:
    """Put a member to those of its key."""
    name = member.name.removeprefix("./")
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    suffix = suffix.lower()
    is_image = f".{suffix}" in SUFFIXES
    sample = samples.setdefault(folder + slash + stem, _Sample())
    if not stem or not (is_image or suffix in ("txt", "json")):
        sample.others.append(suffix)
    elif refusal := fence.check_name(name):
        sample.faults.append((refusal[0], f"member {name!r}: {refusal[1]}"))
    elif not member.plain:
        kind: ProblemKind = "missing_image" if is_image else "missing_annotation"
        sample.faults.append((kind, f"member {name!r} is a link, a device or a file with holes; none is followed"))
    elif suffix in sample.captions or (is_image and sample.image):
        sample.faults.append(("duplicate_id", f"member {name!r} is a second one of its key; the first counts"))
    elif is_image:
        sample.image = member
    else:
        sample.captions[suffix] = member


def _take(pair_id: str, shard: str, split: Split, sample: _Sample, stream: BinaryIO, found: RawCaptions) -> None:
    """Make a pair of the members of a key, or a problem; what is not of a pair at all is neither."""
    if not sample.image and not sample.captions and not sample.faults and not sample.is_named_oddly():
        return
    caption = _caption(sample, stream)
    refusals = list(sample.faults)
    if sample.image and isinstance(caption, str):
        found.pairs.append(Pair(pair_id, shard, caption, offset=sample.image.offset, size=sample.image.size))
    elif not refusals:
        refusals.append(_lacking(sample) if isinstance(caption, str) or not sample.image else caption)
    found.problems.extend(Problem(kind, split, pair_id, text) for kind, text in refusals)


def _lacking(sample: _Sample) -> Refusal:
    has = ", ".join(sorted({*sample.captions, *sample.others}))
    return "missing_image", f"the key has {has} and no image; a key ends at the first dot of a member's name"


def _caption(sample: _Sample, stream: BinaryIO) -> str | Refusal:
    """The caption of a key, or what is wrong with it."""
    suffix = next((suffix for suffix in ("txt", "json") if suffix in sample.captions), None)
    if suffix is None:
        return "missing_annotation", "the key has neither .txt nor .json"
    member = sample.captions[suffix]
    if member.size > _MOST:
        return "broken_annotation", f"member {member.name!r} has {member.size} bytes; no caption is so long"
    stream.seek(member.offset)
    try:
        content = stream.read(member.size).decode("utf-8-sig")
        value = json.loads(content) if suffix == "json" else content
    except (ValueError, RecursionError) as error:
        return "broken_annotation", f"member {member.name!r} cannot be read ({error})"
    if suffix == "txt":
        return read_caption(value)
    if not isinstance(value, dict) or "caption" not in value:
        return "missing_annotation", f"member {member.name!r} has no 'caption'"
    return read_caption(value["caption"])
