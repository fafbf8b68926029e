from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from clipdistill import store
from clipdistill.datasets.scenes.canvas import Canvas, SceneObject
from clipdistill.datasets.scenes.captioned import TEMPLATES, compose_caption, draw_captioned
from clipdistill.datasets.scenes.captions import generate_captions
from clipdistill.datasets.scenes.objects import CLASSES, COLOURS
from clipdistill.params import ScenesParams

STAGE = Path(__file__).resolve().parents[2] / "stages" / "scenes" / "generate.py"
# More images than a chunk holds, so that two processes share them.
PARAMS = ScenesParams(captions=70, caption_size=32)


def words(caption: str) -> list[str]:
    return caption.rstrip(".").split()


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "captions"
    generate_captions(PARAMS, out, workers=1)
    return out


def test_bytes_do_not_depend_on_the_number_of_workers(captions: Path, tmp_path: Path) -> None:
    generate_captions(PARAMS, tmp_path / "captions", workers=2)
    assert content(tmp_path / "captions") == content(captions)


def test_the_artifact_is_whole_and_says_what_it_was_made_from(captions: Path) -> None:
    group = store.read_group(captions / "images.zarr", {"seed": 0, "captions": 70, "caption_size": 32})
    images = group.read("image")
    assert images.shape == (70, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images.reshape(70, -1).std(axis=1).min() > 5
    assert len(list(captions.rglob("*"))) < 12, "DVC hashes every file"


def test_rows_of_the_table_are_rows_of_the_array(captions: Path) -> None:
    table = pq.read_table(captions / "captions.parquet").to_pydict()
    images = store.read_group(captions / "images.zarr").read("image")
    assert table["row"] == list(range(70))
    for row in (0, 1, 63, 64, 69):
        drawn = draw_captioned(np.random.default_rng([0, 2, row]), 32)
        np.testing.assert_array_equal(images[row], np.asarray(drawn.image))
        assert (table["caption"][row], table["objects"][row]) == (drawn.caption, drawn.objects)


def test_captions_name_the_largest_object_and_no_other(captions: Path) -> None:
    table = pq.read_table(captions / "captions.parquet").to_pydict()
    for caption, objects in zip(table["caption"], table["objects"], strict=True):
        assert 1 <= len(objects) <= 3
        colour, name = objects[0].split()
        assert [word for word in words(caption) if word in CLASSES] == [name]
        assert [word for word in words(caption) if word in COLOURS] in ([], [colour])


def test_objects_stand_from_the_largest_to_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[SceneObject]] = []
    original = Canvas.objects
    monkeypatch.setattr(Canvas, "objects", lambda self: seen.append(original(self)) or seen[-1])
    drawn = [draw_captioned(np.random.default_rng([1, row]), 64) for row in range(60)]
    reordered = 0
    for image, objects in zip(drawn, seen, strict=True):
        areas = {f"{item.colour} {item.name}": item.box.area for item in objects}
        sizes = [areas.pop(name) for name in image.objects]
        assert not areas
        assert sizes == sorted(sizes, reverse=True)
        reordered += image.objects != [f"{item.colour} {item.name}" for item in objects]
    assert reordered


def test_words_are_those_of_the_templates_the_classes_and_the_colours() -> None:
    known = {*CLASSES, *COLOURS, "an", "a"}
    known |= {word for template in TEMPLATES for word in words(template) if "{" not in word}
    rng = np.random.default_rng(0)
    made = [compose_caption(rng, name, colour) for name in CLASSES for colour in COLOURS for _ in range(20)]
    assert {word for caption in made for word in words(caption)} == known
    assert not [caption for caption in made if re.search(r"\b(a [aeiou]|an [^aeiou])", caption)]
    with_colour = np.mean([any(word in COLOURS for word in words(caption)) for caption in made])
    assert 0.45 < with_colour < 0.55


def test_company_and_cut_objects_are_as_frequent_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    firsts: list[tuple[float, bool]] = []
    original = Canvas.add_object

    def spy(self: Canvas, name: str, colour: str, sprite, place) -> None:  # noqa: ANN001
        if not self.objects():
            firsts.append((max(sprite.size) / self.side, place.meet(self.frame).area < place.area))
        original(self, name, colour, sprite, place)

    monkeypatch.setattr(Canvas, "add_object", spy)
    drawn = [draw_captioned(np.random.default_rng([2, row]), 32) for row in range(300)]
    sizes, cut = np.array(firsts).T
    assert sizes.min() >= 0.45
    assert sizes.max() <= 0.95 + 1 / 32
    assert 0.25 < cut.mean() < 0.42
    assert 0.4 < np.mean([len(item.objects) > 1 for item in drawn]) < 0.6
    counts = np.bincount([CLASSES.index(item.objects[0].split()[1]) for item in drawn], minlength=12)
    assert counts.min() > 8


def run_stage(folder: Path, scenes: dict[str, object]) -> subprocess.CompletedProcess[str]:
    (folder / "params.yaml").write_text(yaml.safe_dump({"scenes": scenes}))
    return subprocess.run([sys.executable, STAGE], cwd=folder, capture_output=True, text=True, check=False)


def test_the_stage_writes_both_folders(tmp_path: Path) -> None:
    small = {"train_images": 2, "val_images": 1, "image_size": 32, "captions": 3, "caption_size": 32}
    done = run_stage(tmp_path, small)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "data" / "raw").iterdir()) == ["scenes", "scenes-captions"]
    assert len(list((tmp_path / "data/raw/scenes/JPEGImages").iterdir())) == 3
    assert pq.read_table(tmp_path / "data/raw/scenes-captions/captions.parquet").num_rows == 3


def test_the_stage_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    done = run_stage(tmp_path, {"captions": 0})
    assert done.returncode == 2
    assert "scenes.captions" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
