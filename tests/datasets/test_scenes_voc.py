from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from defusedxml import ElementTree
from PIL import Image, JpegImagePlugin

from clipdistill.datasets.scenes.making import in_chunks, whole_folder
from clipdistill.datasets.scenes.objects import CLASSES, COLOURS
from clipdistill.datasets.scenes.voc_layout import generate_scenes, unseen_combinations
from clipdistill.errors import ArtifactError
from clipdistill.params import ScenesParams

# More images than a chunk holds, so that two processes share them.
PARAMS = ScenesParams(train_images=67, val_images=3, image_size=32)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "scenes"
    generate_scenes(PARAMS, out, workers=1)
    return out


def test_bytes_do_not_depend_on_the_number_of_workers(scenes: Path, tmp_path: Path) -> None:
    generate_scenes(PARAMS, tmp_path / "scenes", workers=2)
    assert content(tmp_path / "scenes") == content(scenes)


def test_a_scene_depends_on_seed_split_and_row_alone(scenes: Path, tmp_path: Path) -> None:
    fewer = PARAMS.model_copy(update={"train_images": 1, "val_images": 2})
    generate_scenes(fewer, tmp_path / "fewer", workers=1)
    generate_scenes(fewer.model_copy(update={"seed": 1}), tmp_path / "other", workers=1)
    names = {"scene_000001": "scene_000001", "scene_000002": "scene_000068", "scene_000003": "scene_000069"}
    whole, few, other = content(scenes), content(tmp_path / "fewer"), content(tmp_path / "other")
    for mine, theirs in names.items():
        assert few[f"JPEGImages/{mine}.jpg"] == whole[f"JPEGImages/{theirs}.jpg"]
        assert other[f"JPEGImages/{mine}.jpg"] != whole[f"JPEGImages/{theirs}.jpg"]
    assert few["SegmentationClass/scene_000003.png"] == whole["SegmentationClass/scene_000069.png"]


def test_every_file_of_the_layout_is_there_and_no_other(scenes: Path) -> None:
    stems = {
        split: (scenes / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines() for split in ("train", "val")
    }
    every = stems["train"] + stems["val"]
    assert every == [f"scene_{number:06d}" for number in range(1, 71)]
    assert set(content(scenes)) == (
        {f"JPEGImages/{stem}.jpg" for stem in every}
        | {f"Annotations/{stem}.xml" for stem in every}
        | {f"SegmentationClass/{stem}.png" for stem in stems["val"]}
        | {"ImageSets/Main/train.txt", "ImageSets/Main/val.txt", "classes.txt", "attributes.txt", "unseen.txt"}
    )
    assert (scenes / "classes.txt").read_text().splitlines() == list(CLASSES)
    assert (scenes / "attributes.txt").read_text().splitlines() == list(COLOURS)
    assert (scenes / "unseen.txt").read_text().splitlines() == unseen_combinations()


def test_every_class_has_two_unseen_colours_and_every_colour_three_unseen_classes() -> None:
    pairs = [combination.split() for combination in unseen_combinations()]
    assert len(pairs) == len(set(unseen_combinations())) == 24
    assert Counter(name for _, name in pairs) == dict.fromkeys(CLASSES, 2)
    assert Counter(colour for colour, _ in pairs) == dict.fromkeys(COLOURS, 3)


def test_annotations_have_vocs_fields_and_a_colour(scenes: Path) -> None:
    for path in sorted((scenes / "Annotations").iterdir()):
        root = ElementTree.parse(path).getroot()
        assert root.findtext("filename") == f"{path.stem}.jpg"
        assert [root.findtext(f"size/{name}") for name in ("width", "height", "depth")] == ["32", "32", "3"]
        assert 1 <= len(root.findall("object")) <= PARAMS.max_objects
        for node in root.findall("object"):
            assert node.findtext("name") in CLASSES
            assert node.findtext("color") in COLOURS
            assert node.findtext("difficult") == "0"
            left, top, right, bottom = (int(node.findtext(f"bndbox/{n}")) for n in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= left <= right <= 32
            assert 1 <= top <= bottom <= 32


def test_images_keep_their_colours_sharp(scenes: Path) -> None:
    for path in (scenes / "JPEGImages").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
            assert JpegImagePlugin.get_sampling(image) == 0, "4:4:4"


def test_masks_are_palette_images_that_agree_with_the_boxes(scenes: Path) -> None:
    for path in (scenes / "SegmentationClass").iterdir():
        with Image.open(path) as image:
            assert image.mode == "P"
            palette, mask = image.getpalette(), np.asarray(image)
        # The first colours of VOC's own palette, and that of its class 12.
        assert palette[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        assert palette[36:39] == [64, 0, 128]
        root = ElementTree.parse(scenes / "Annotations" / f"{path.stem}.xml").getroot()
        inside = np.zeros_like(mask, dtype=bool)
        for node in root.findall("object"):
            left, top, right, bottom = (int(node.findtext(f"bndbox/{n}")) for n in ("xmin", "ymin", "xmax", "ymax"))
            part = mask[top - 1 : bottom, left - 1 : right] == CLASSES.index(node.findtext("name")) + 1
            assert part[0].any()
            assert part[-1].any()
            assert part[:, 0].any()
            assert part[:, -1].any()
            inside[top - 1 : bottom, left - 1 : right] |= part
        np.testing.assert_array_equal(inside, mask > 0)


def test_a_killed_run_leaves_nothing_that_looks_whole_and_no_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from clipdistill.datasets.scenes.voc_layout import generate_scenes\n"
        "from clipdistill.params import ScenesParams\n"
        "generate_scenes(ScenesParams(image_size=64), Path('scenes'), workers=1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("scenes.*.partial/JPEGImages/*.jpg")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        # The pipe closes when the last process that holds it has ended, the workers among them.
        process.communicate(timeout=30)
    assert not (tmp_path / "scenes").exists()
    assert list(tmp_path.glob("scenes.*.partial"))
    generate_scenes(ScenesParams(train_images=1, val_images=1, image_size=32), tmp_path / "scenes", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_an_error_keeps_the_old_folder_and_sweeps_the_new_one(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    out.mkdir()
    (out / "old.txt").write_text("old")

    def fail_half_way() -> None:
        with whole_folder(out) as folder:
            (folder / "new.txt").write_text("new")
            raise KeyError("a fault in between")

    with pytest.raises(KeyError):
        fail_half_way()
    assert content(tmp_path) == {"scenes/old.txt": b"old"}
    with whole_folder(out) as folder:
        (folder / "new.txt").write_text("new")
    assert content(tmp_path) == {"scenes/new.txt": b"new"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file/scenes: cannot be written"):
        generate_scenes(PARAMS, tmp_path / "file" / "scenes", workers=1)


def _span(rows: range) -> list[int]:
    return list(rows)


def _end_at_once(rows: range) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_chunks_come_back_in_order_and_whole() -> None:
    results = list(in_chunks(_span, 200, workers=2))
    assert [row for _, rows in results for row in rows] == list(range(200))
    assert all(list(rows) == result for rows, result in results)


def test_a_killed_worker_is_reported() -> None:
    with pytest.raises(ArtifactError, match="processes that draw images was killed"):
        list(in_chunks(_end_at_once, 10, workers=1))
