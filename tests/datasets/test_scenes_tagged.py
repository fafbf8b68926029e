"""Captions that name several objects: what they say is what the masks show."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipdistill.datasets.scenes.objects import CLASSES, COLOURS
from clipdistill.datasets.scenes.tagged import compose_caption, generate_tagged, tagged_scene
from clipdistill.params import ScenesParams, TaggedScenesParams

SCENES, TAGGED = ScenesParams(image_size=64), TaggedScenesParams(train_images=6, val_images=3)


@given(
    st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(list(COLOURS))), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_a_caption_is_true_and_short(objects: list[tuple[str, str]], seed: int) -> None:
    caption = compose_caption(np.random.default_rng(seed), objects)
    words = re.findall(r"\w+", caption.text)
    assert len(re.findall(r"\w+|,", caption.text)) <= 14
    shown = {name for name, _ in objects}
    assert set(caption.names) <= shown
    assert len(shown) - len(caption.names) <= 1
    assert set(caption.names) <= set(caption.tags) <= set(words)
    assert set(caption.tags) - set(caption.names) <= set(COLOURS)
    for colour in set(caption.tags) & set(COLOURS):
        assert any((name, colour) in objects for name in caption.names)
    absent = set(words) & set(CLASSES) - set(caption.names)
    assert len(absent) <= 1
    assert not absent & shown


def test_files_hold_what_the_scenes_are(tmp_path: Path) -> None:
    generate_tagged(SCENES, TAGGED, tmp_path / "out", workers=1)
    rows = pq.read_table(tmp_path / "out" / "val.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["tagged_000007", "tagged_000008", "tagged_000009"]
    for number, row in enumerate(rows):
        scene, caption = tagged_scene(SCENES, "val", number)
        assert (row["caption"], row["tags"]) == (caption.text, caption.tags)
        classes = np.asarray(Image.open(tmp_path / "out" / "SegmentationClass" / f"{row['id']}.png"))
        assert np.array_equal(classes, scene.mask)
        named = [CLASSES.index(name) + 1 for name in caption.names]
        shown = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
        assert np.array_equal(shown == 255, np.isin(classes, named))
        assert shown.any()
        assert Image.open(tmp_path / "out" / row["path"]).size == (64, 64)
    listed = (tmp_path / "out/ImageSets/Segmentation/train.txt").read_text().split()
    assert len(listed) == 6
    assert (tmp_path / "out/classes.txt").read_text().split() == list(CLASSES)


@pytest.mark.parametrize("workers", [1, 2])
def test_equal_parameters_give_equal_bytes(workers: int, tmp_path: Path) -> None:
    generate_tagged(SCENES, TAGGED, tmp_path / "one", workers=1)
    generate_tagged(SCENES, TAGGED, tmp_path / "other", workers=workers)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 9 * 3 + 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_splits_and_other_scenes_differ() -> None:
    from clipdistill.datasets.scenes.voc_layout import scene_of

    tagged = np.asarray(tagged_scene(SCENES, "train", 0)[0].image)
    assert not np.array_equal(tagged, np.asarray(tagged_scene(SCENES, "val", 0)[0].image))
    assert not np.array_equal(tagged, np.asarray(scene_of(SCENES, "train", 0).image))
