"""`clipdistill tags` and `clipdistill heatmap --tags`: which words CLIP sees in an image, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_run import Run
from PIL import Image

from training.toy_captions import make_project, params_of


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    make_project(folder)
    content = params_of(folder).model_dump(by_alias=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def here(project: Path, run: Run, tmp_path: Path) -> Path:
    """The folder that `run` runs in, with the project's parameters; the photo in it."""
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    photo = tmp_path / "photo.jpg"
    photo.write_bytes((project / "data/raw/scenes-tagged/JPEGImages/tagged_000001.jpg").read_bytes())
    return photo


def test_every_word_of_a_caption_is_scored_and_drawn(here: Path, run: Run) -> None:
    ran = run("tags", str(here), "--caption", "A boat on the house, and a cup", "--device", "cpu")
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0] == ["word", "image", "text", "pixel", "chosen"]
    assert [line[0] for line in lines[1:4]] == ["boat", "house", "cup"]
    for column in (1, 2):
        assert sum(float(line[column]) for line in lines[1:4]) == pytest.approx(1, abs=0.01)
    picture = Image.open(here.parent / "photo-tags.png")
    # The photo, the caption and three words, four a row.
    assert picture.size[0] == 4 * 276 + 16
    assert lines[4] == ["photo-tags.png"]


def test_a_caption_that_is_cut_off_is_told(here: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    ran = run("tags", str(here), "--caption", "a boat " * 30 + "and a cup", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "the caption is longer than the text encoder reads" in caplog.text


def test_words_are_found_in_an_image_without_a_student(here: Path, run: Run) -> None:
    ran = run("heatmap", str(here), "--tags", "boat, cup", "--out", "two.png", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines()] == ["tag", "boat", "cup", "two.png"]
    assert Image.open(here.parent / "two.png").size[0] == 3 * 276 + 16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tags", "photo.jpg", "--caption", "of the"], "no words but function words"),
        (["tags", "photo.jpg", "--caption", "a boat"], "a lone one, 'boat', would have all"),
        (["heatmap", "photo.jpg", "--tags", "boat,BOAT"], "'boat' and 'BOAT' are the same to the text encoder"),
        (["heatmap", "photo.jpg", "--tags", f"cup,{'boat ' * 90}"], "does not fit into the 16 tokens"),
        (
            ["tags", "photo.jpg", "--caption", "boat, cup", "--adapter", "nowhere"],
            "nowhere/adapter.yaml is missing",
        ),
        (["tags", "missing.jpg", "--caption", "a boat, a cup"], "missing.jpg"),
        (["heatmap", "photo.jpg"], "IMAGE is missing"),
        (["heatmap", "photo.jpg", "--tags", " , "], "name at least one"),
        (["heatmap", "photo.jpg", "--tags", "a,a"], "more than once"),
        (["heatmap", "model", "photo.jpg", "--tags", "a"], "leave out model"),
        (["heatmap", "photo.jpg", "--tags", "a", "--class", "b"], "give one of them"),
        (["heatmap", "model", "photo.jpg", "--adapter", "a"], "go with --tags"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], said: str, here: Path, run: Run) -> None:
    ran = run(*arguments)
    assert ran.code != 0
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not list(here.parent.glob("*.png"))
