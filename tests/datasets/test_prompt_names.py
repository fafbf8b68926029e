"""Class lists and prompt names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_layouts import write_text

from clipdistill.datasets import prompt_names
from clipdistill.datasets.table import ClassName
from clipdistill.errors import DataError, ParamsError

# What a line of the file can hold: no line end, no tab, no white space at either side, no leading #.
NAMES = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and not name.startswith(("#", "\ufeff")))
)


def test_published_lists_have_their_published_length_and_order() -> None:
    assert len(prompt_names.VOC_CLASSES) == 20
    assert len(prompt_names.COCO_CLASSES) == 80
    assert len(prompt_names.NUSWIDE_CLASSES) == 81
    for names in (prompt_names.VOC_CLASSES, prompt_names.NUSWIDE_CLASSES):
        assert list(names) == sorted(set(names))
    assert len(set(prompt_names.COCO_CLASSES)) == 80
    assert prompt_names.COCO_CLASSES[10] == "fire hydrant"
    assert prompt_names.COCO_CLASSES[-2:] == ("hair drier", "toothbrush")


def test_voc_prompts_part_the_words() -> None:
    classes = prompt_names.with_prompts(prompt_names.VOC_CLASSES, prompt_names.VOC_PROMPTS, {"sofa": "couch"})
    changed = {item.name: item.prompt for item in classes if item.name != item.prompt}
    assert changed == {
        "diningtable": "dining table",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv monitor",
    }


def test_an_override_stands_over_the_known_name() -> None:
    assert prompt_names.with_prompts(["a"], {"a": "b"}, {"a": "c"}) == [ClassName("a", "c")]


def test_an_override_for_an_unknown_class_is_refused_by_name() -> None:
    with pytest.raises(ParamsError, match=r"dataset\.prompt_names\.dgo: .* cat, dog"):
        prompt_names.with_prompts(["cat", "dog"], {}, {"dgo": "hound"})


def test_class_file_skips_blanks_and_comments(tmp_path: Path) -> None:
    path = write_text(tmp_path / "classes.txt", "\ufeff# mine\r\n\r\n cat \r\ntvmonitor\ttv monitor\r\n  # end\r\n")
    assert prompt_names.read_class_file(path, {"cat": "kitten"}) == [
        ClassName("cat", "kitten"),
        ClassName("tvmonitor", "tv monitor"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\ncat\n", "class 'cat' stands twice"),
        ("a\tb\tc\n", "is not 'name' or"),
        ("\tdog\n", "is not 'name' or"),
        ("dog\t\n", "is not 'name' or"),
        ("# nothing\n\n", "names no class"),
    ],
)
def test_class_file_refuses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prompt_names.read_class_file(write_text(tmp_path / "classes.txt", text), {})


@pytest.mark.parametrize("name", ["a\x07b", "a\0b", "a\u2028b"])
def test_a_name_with_a_control_character_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="holds a control character; rename the class"):
        prompt_names.read_class_file(write_text(tmp_path / "classes.txt", f"cat\n{name}\n"), {})


def test_a_missing_class_file_is_explained_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.txt is missing: .*for example 'cat'"):
        prompt_names.read_class_file(tmp_path / "classes.txt", {})


@given(st.dictionaries(NAMES, st.none() | NAMES, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_class_file_round_trip(prompts: dict[str, str | None], end: str) -> None:
    lines = [name if prompt is None else f"{name}\t{prompt}" for name, prompt in prompts.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = write_text(Path(folder) / "classes.txt", end.join(lines))
        classes = prompt_names.read_class_file(path, {})
    assert classes == [ClassName(name, prompt or name) for name, prompt in prompts.items()]
