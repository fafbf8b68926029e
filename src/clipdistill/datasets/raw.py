"""What a reader returns: image paths and labels of each split, before any image is opened.

One rule holds for all readers: an image that something is wrong with is not in its split, and there is a
`Problem` that says why. Whether problems stop the stage is for `format` to decide.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipdistill.errors import DataError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipdistill.datasets.table import ClassName, Labels, Split

ProblemKind = Literal[
    "missing_image",
    "undecodable_image",
    "missing_annotation",
    "broken_annotation",
    "unknown_class",
    "duplicate_id",
    "outside_root",
    "bad_name",
    "empty_caption",
    "no_candidates",
    "missing_mask",
    "broken_mask",
    "broken_shard",
    "empty_split",
]

# Kind of a problem, and what is wrong.
Refusal = tuple[ProblemKind, str]

# COCO's largest has 0.4 GiB; whole in memory, a file takes several times its size.
_MAX_BYTES = 2 * 2**30

# Problems that an error lists.
_SHOWN = 10

# DVC can put its cache in place of files as links (`cache.type symlink`); their targets are named by content.
_DVC_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image is not in its split.

    Attributes:
        kind: sort of problem.
        split: where the image would be.
        where: image id, or path relative to the root.
        detail: what is wrong, and what to do where that is not plain.
    """

    kind: ProblemKind
    split: Split
    where: str
    detail: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "detail", printable(self.detail))

    def __str__(self) -> str:
        return f"{self.kind}: {self.split} {self.where}: {self.detail}"


@dataclass(frozen=True, slots=True, eq=False)
class RawSplit:
    """The N images of a split, in any order.

    Attributes:
        ids: unique.
        paths: POSIX paths below the image root.
        labels: int8 [N, C]: 1 present, 0 absent, -1 unknown or left out.
        open_labels: int8 [N, L], the same of the open vocabulary; None where its labels are classes, so that columns
            of `labels` say it all.
    """

    ids: list[str]
    paths: list[str]
    labels: Labels
    open_labels: Labels | None = None

    def take(self, rows: Sequence[int]) -> RawSplit:
        """Select rows, in the order given."""
        index = list(rows)
        return RawSplit(
            [self.ids[row] for row in index],
            [self.paths[row] for row in index],
            self.labels[index],
            None if self.open_labels is None else self.open_labels[index],
        )


@dataclass(frozen=True, slots=True, eq=False)
class RawDataset:
    """A data set as its files tell it.

    Attributes:
        image_root: folder to which the paths are relative.
        classes: in column order.
        splits: by name; no id is in both.
        problems: one for each image that is not in its split.
        notes: counts worth keeping with the metrics (JSON values).
        open_classes: labels of the open vocabulary in column order, the seen ones first; empty where a reader leaves
            it to `read_raw` to choose them from the classes.
    """

    image_root: Path
    classes: list[ClassName]
    splits: dict[Split, RawSplit]
    problems: list[Problem]
    notes: dict[str, Any] = field(default_factory=dict)
    open_classes: list[ClassName] = field(default_factory=list)


class Fence:
    """A folder that names from annotations may not leave.

    Args:
        folder: the folder.
        missing: kind of the problem when there is no such file.
    """

    def __init__(self, folder: Path, missing: ProblemKind = "missing_image") -> None:
        self.folder = folder
        self._missing = missing
        self._inside = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118 - Path drops the last separator

    def check(self, name: str) -> Refusal | None:
        """Tell whether a file may be opened; it is not opened here.

        Args:
            name: path relative to the folder, as an annotation gives it.

        Returns:
            None where it is a file below the folder, else the kind of problem and its text.
        """
        if refusal := self.check_name(name):
            return refusal
        path = self.folder / name
        try:
            real = os.path.realpath(path, strict=True)
        except OSError as error:
            return self._missing, f"{path} cannot be found ({error.strerror})"
        if not f"{real}/".startswith(self._inside) and not _DVC_OBJECT.search(real):
            cure = "copy the file, or let the parameters' root or image root be the folder that really holds it"
            return "outside_root", f"a symbolic link leads out of {self.folder}; {cure}"
        return None if Path(real).is_file() else (self._missing, f"{path} is not a file")

    def check_name(self, name: str) -> Refusal | None:
        """Tell whether a name is one of a file below the folder, whatever is there."""
        try:
            name.encode()
        except UnicodeEncodeError:
            return "bad_name", "the name is not valid UTF-8; rename the file"
        if "\0" in name:
            return "bad_name", "the name holds a zero byte"
        if name.startswith(("/", "\\")) or "://" in name or ".." in re.split(r"[/\\]", name):
            return "outside_root", f"the path is not one below {self.folder}"
        return None


def path_id(path: str) -> str:
    """Image id where a layout has none: the path without its suffix."""
    return re.sub(r"\.[^./]+$", "", path)


def admit(fence: Fence, split: Split, ids: Sequence[str], names: Sequence[str], problems: list[Problem]) -> list[int]:
    """Find the images that may be opened; each of the others becomes a problem.

    Args:
        fence: guard of the image root.
        split: the split they belong to.
        ids: image ids [N]; where one stands twice, the first is taken.
        names: paths below the image root [N].
        problems: list to add to.

    Returns:
        Rows that are admitted, ascending.
    """
    seen: set[str] = set()
    rows = []
    for row, (image_id, name) in enumerate(zip(ids, names, strict=True)):
        if image_id in seen:
            problems.append(Problem("duplicate_id", split, image_id, f"listed more than once ({name})"))
        elif refusal := fence.check(name):
            problems.append(Problem(refusal[0], split, image_id, refusal[1]))
        else:
            rows.append(row)
        seen.add(image_id)
    return rows


def assemble(
    image_root: Path,
    classes: list[ClassName],
    splits: Mapping[Split, RawSplit],
    problems: Sequence[Problem],
    notes: Mapping[str, Any] | None = None,
    open_classes: Sequence[ClassName] = (),
) -> RawDataset:
    """Put a data set together; an image of both splits is a leak and stays in `val` alone.

    Args:
        image_root: folder to which the paths are relative.
        classes: in column order.
        splits: both splits.
        problems: what the reader found.
        notes: counts worth keeping.
        open_classes: labels of the open vocabulary, where the splits have labels of their own for them.

    Returns:
        The data set.
    """
    held_out = set(splits["val"].ids)
    train = splits["train"]
    rows = [row for row, image_id in enumerate(train.ids) if image_id not in held_out]
    leaks = [
        Problem("duplicate_id", "train", image_id, "also in the evaluation split; scores on it would mean nothing")
        for image_id in train.ids
        if image_id in held_out
    ]
    parts: dict[Split, RawSplit] = {"train": train.take(rows) if leaks else train, "val": splits["val"]}
    return RawDataset(image_root, classes, parts, [*problems, *leaks], dict(notes or {}), list(open_classes))


def judge(problems: Sequence[Problem], leave_out: bool, what: str, cure: str, empty_cure: str) -> None:
    """Stop where problems are to stop, and always where a split has nothing left.

    Args:
        problems: all that were met.
        leave_out: whether to go on without what they are about.
        what: what they were met in, behind their number.
        cure: what to do about them.
        empty_cure: what to do where a split has nothing left.

    Raises:
        DataError: it has to stop; counts of each kind, the first problems, and the cure.
    """
    kinds = Counter(problem.kind for problem in problems)
    if not problems or (leave_out and not kinds["empty_split"]):
        return
    lines = [f"{len(problems)} problem(s) in {what}"]
    lines += [f"  {count} {kind}" for kind, count in sorted(kinds.items())]
    lines += [f"  {problem}" for problem in sorted(problems, key=lambda item: item.kind != "empty_split")[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    lines.append(empty_cure if kinds["empty_split"] else cure)
    raise DataError("\n".join(lines))


def read_text(path: Path, cure: str) -> str:
    """Read a text file of a raw data set: UTF-8, with or without a byte order mark, any line ends.

    Args:
        path: file.
        cure: what to do where it is missing.

    Raises:
        DataError: missing, unreadable, of more than 2 GiB, or not UTF-8.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise DataError(
                f"{path} has {size / 2**30:.1f} GiB, and no more than {_MAX_BYTES // 2**30} are read: leave out what "
                "labels do not need, such as outlines, or take a part of the data set"
            )
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing: {cure}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {cure}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def read_lines(path: Path, cure: str) -> list[str]:
    """Read a list: its lines without surrounding white space, blank ones left out.

    Args:
        path: file.
        cure: what to do where it is missing.

    Raises:
        DataError: missing, unreadable, or not UTF-8.
    """
    return [stripped for line in read_text(path, cure).split("\n") if (stripped := line.strip())]
