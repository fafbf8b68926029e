"""COCO's captions, and which of their words name what its instance annotations show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipdistill.datasets.captions.named import Names
from clipdistill.datasets.captions.pairs import Pair, RawCaptions, read_caption
from clipdistill.datasets.coco import Instances, entries, number, read_json, text
from clipdistill.datasets.raw import Fence, Problem, admit
from clipdistill.errors import DataError

if TYPE_CHECKING:
    from clipdistill.datasets.table import Split
    from clipdistill.params import CaptionParams

_KEPT = frozenset({"images", "annotations", "id", "file_name", "image_id", "caption"})


def read(params: CaptionParams, split: Split) -> RawCaptions:
    """Read the captions of a split.

    Args:
        params: `root` holds annotations/captions_{split}.json, where `train` and `val` name the splits (train2017);
            `images`, or else `root`, holds the folders {split} with the images.
        split: which of them.

    Returns:
        The pairs; an id is the image's number, 12 digits, and behind it that of the caption among those of the image,
        from 1. Where annotations/instances_{split}.json is there, the true words are those that name a category of
        which the image has any annotation.

    Raises:
        DataError: a file is missing or not of COCO's form.
    """
    name = params.train if split == "train" else params.val
    root, image_root = Path(params.root), Path(params.images or params.root)
    images, captions = _read_captions(root / "annotations" / f"captions_{name}.json", image_root / name, split)
    problems: list[Problem] = []
    ids = [f"{image:012d}" for image, _ in images]
    rows = admit(Fence(image_root / name), split, ids, [file for _, file in images], problems)
    files = dict(images[row] for row in rows)
    truth = None
    notes: dict[str, int] = {}
    if (root / "annotations" / f"instances_{name}.json").exists():
        instances = Instances(root, image_root, name)
        truth = _Truth(instances)
        notes["annotations_of_unlisted_images"] = instances.orphans
        files = {image: file for image, file in files.items() if truth.knows(image, split, problems)}
    pairs: list[Pair] = []
    told: Counter[int] = Counter()
    for image, value in captions:
        told[image] += 1
        if image not in files:
            continue
        caption, pair_id = read_caption(value), f"{image:012d}-{told[image]}"
        if isinstance(caption, str):
            shown = truth.shown(image, caption) if truth else None
            pairs.append(Pair(pair_id, f"{name}/{files[image]}", caption, shown))
        else:
            problems.append(Problem(caption[0], split, pair_id, caption[1]))
    listed = {image for image, _ in images}
    notes |= {
        "images_without_captions": len(listed - told.keys()),
        "captions_of_unlisted_images": sum(told[image] for image in told if image not in listed),
    }
    return RawCaptions(image_root, pairs, problems, notes)


def _read_captions(path: Path, folder: Path, split: Split) -> tuple[list[tuple[int, str]], list[tuple[int, object]]]:
    """Images with their file names, and captions with their images, both in the order of the file."""
    cure = (
        f"get the captions and the images of {folder.name!r} from the COCO site and unpack them so that {path} and the "
        f"folder {folder} exist; ttd.captions.{split} names the split, for example train2017 or val2017"
    )
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: {cure}")
    content = read_json(path, cure, _KEPT)
    try:
        images = [(number(image["id"]), text(image["file_name"])) for image in entries(content, "images")]
        return images, [(number(item["image_id"]), item["caption"]) for item in entries(content, "annotations")]
    except KeyError as error:
        raise DataError(f"{path}: an entry has no {error}; is it COCO's captions file?") from None
    except TypeError as error:
        raise DataError(f"{path} is not of COCO's form ({error})") from None


class _Truth:
    """What the instance annotations say of the images."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self._row = {image: row for row, image in enumerate(instances.ids)}
        self._names = Names(list(instances.categories.values()))

    def knows(self, image: int, split: Split, problems: list[Problem]) -> bool:
        """Tell whether all objects of an image are known; where not, that is a problem."""
        path, unknown = self._instances.path, self._instances.unknown.get(image)
        if image not in self._row:
            detail = f"{path} does not list the image"
            problems.append(Problem("missing_annotation", split, f"{image:012d}", detail))
        elif unknown is not None:
            detail = f"{path} has category {unknown}, which is not in its list"
            problems.append(Problem("unknown_class", split, f"{image:012d}", detail))
        return image in self._row and unknown is None

    def shown(self, image: int, caption: str) -> frozenset[str]:
        """Words of a caption that name what its image shows."""
        present = np.flatnonzero(self._instances.present[self._row[image]])
        return self._names.shown(caption, set(present.tolist()))
