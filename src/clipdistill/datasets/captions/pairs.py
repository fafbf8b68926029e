"""What a reader of captions returns: captions, and where their images lie, before any image is opened.

The rule of the other readers holds: a pair that something is wrong with is not among the pairs, and there is a
`Problem` that says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipdistill.datasets.raw import Problem, Refusal

_LONGEST = 10_000
_NOTHING = frozenset({"nan", "none", "null", "n/a", "<na>"})


@dataclass(frozen=True, slots=True)
class Pair:
    """A caption and its image.

    Attributes:
        id: unique.
        path: POSIX path below the image root, of the image or of the shard that holds it.
        caption: text, not blank.
        shown: words that the image shows, lower-cased; None where the source does not know them.
        mask: POSIX path below the image root of a mask of what the shown words are; '' where there is none.
        offset: byte of the file where the image begins.
        size: bytes of the image; None: the file's own.
    """

    id: str
    path: str
    caption: str
    shown: frozenset[str] | None = None
    mask: str = ""
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RawCaptions:
    """The pairs of a split as the files tell them, in any order.

    Attributes:
        image_root: folder to which the paths are relative.
        pairs: `shown` is known of all or of none.
        problems: one for each pair that is not among them, or for a file that is broken.
        notes: counts worth keeping with the metrics (JSON values).
    """

    image_root: Path
    pairs: list[Pair]
    problems: list[Problem]
    notes: dict[str, Any] = field(default_factory=dict)


def read_caption(value: object) -> str | Refusal:
    """Take a caption from a file.

    Args:
        value: what stands there.

    Returns:
        The text without white space around it; or the kind of problem and its text.
    """
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124 - NaN alone differs from itself
        return "empty_caption", "there is no caption"
    if not isinstance(value, str):
        return "broken_annotation", f"the caption is a {type(value).__name__}, no text"
    caption = value.strip()
    # What programs write where they have none.
    if not caption or caption.lower() in _NOTHING:
        return "empty_caption", f"the caption is {caption!r}" if caption else "the caption is blank"
    if len(caption) > _LONGEST:
        return "broken_annotation", f"the caption has {len(caption)} characters; no more than {_LONGEST} are read"
    try:
        caption.encode()
    except UnicodeEncodeError:
        return "broken_annotation", "the caption holds half a character; write it again as UTF-8"
    return caption
