import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_run import Run
from PIL import Image

from clipdistill.evaluation.thresholds import F1_AND_GROUPS, without_truth
from clipdistill.students import model_folder, student_yaml
from clipdistill.training.predict import predict_scores
from training.toy_training import COMPUTE, Toy

# A file whose upright image differs from its stored one.
ORIENTATION, QUARTER_TURN = 0x0112, 6


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture(scope="module")
def scores(model: Path, toy: Toy) -> np.ndarray:
    """What the pipeline's own stage gives, [24, 3]."""
    return predict_scores(model, toy[0], COMPUTE)


def test_a_folder_gives_the_classes_from_their_threshold_on(
    run: Run, model: Path, toy: Toy, scores: np.ndarray
) -> None:
    result = run("predict", model, toy[0].root, "--format", "jsonl", "--batch-size", "7", "--quiet")
    assert (result.code, result.err) == (0, "")
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [Path(item["path"]).name for item in found] == toy[0].paths
    card = student_yaml.read(model)
    for item, row in zip(found, scores, strict=True):
        expected = {name: s for name, s, t in zip(card.classes, row, card.thresholds, strict=True) if s >= t}
        assert {entry["class"]: entry["score"] for entry in item["classes"]} == pytest.approx(expected, abs=1e-5)
        listed = [entry["score"] for entry in item["classes"]]
        assert listed == sorted(listed, reverse=True)


def test_the_thresholds_are_chosen_by_what_the_student_learned(toy: Toy, model: Path, scores: np.ndarray) -> None:
    card = student_yaml.read(model)
    assert card.calibration == {"rule": F1_AND_GROUPS, "labels": "the labels that the student learned from"}
    np.testing.assert_allclose(card.thresholds, without_truth(scores, toy[1]), atol=1e-6)
    assert len(set(card.thresholds)) > 1


def test_formats_say_the_same(run: Run, model: Path, toy: Toy) -> None:
    names = [toy[0].root / name for name in toy[0].paths[:4]]
    ask = ("predict", model, *names, "--top-k", "2", "--format")
    results = {form: run(*ask, form) for form in ("csv", "json", "jsonl")}
    array = json.loads(results["json"].out)
    assert array == [json.loads(line) for line in results["jsonl"].out.splitlines()]
    assert [len(item["classes"]) for item in array] == [2] * 4
    flat = [(item["path"], entry["class"], entry["score"]) for item in array for entry in item["classes"]]
    assert [(r["path"], r["class"], float(r["score"])) for r in rows(results["csv"].out)] == flat
    table = run(*ask, "table").out.splitlines()
    assert table[0].split() == ["image", "classes"]
    shown = ", ".join(f"{entry['class']} {entry['score']:.2f}" for entry in array[0]["classes"])
    assert table[1].endswith(shown)


def test_an_image_without_a_class_is_listed_all_the_same(run: Run, model: Path, toy: Toy, tmp_path: Path) -> None:
    card = student_yaml.read(model).model_copy(update={"thresholds": [1.0, 1.0, 1.0]})
    model_folder.save(tmp_path / "strict", model_folder.load(model)[0], card)
    image = toy[0].root / toy[0].paths[0]
    assert rows(run("predict", "strict", image).out) == [{"path": str(image), "class": "", "score": ""}]
    assert run("predict", "strict", image, "--format", "table").out.split()[-1] == "-"
    assert json.loads(run("predict", "strict", image, "--format", "json").out)[0]["classes"] == []


def test_unreadable_images_are_listed_at_the_end_and_all_others_are_done(
    run: Run, model: Path, toy: Toy, tmp_path: Path
) -> None:
    (tmp_path / "cut off.png").write_bytes((toy[0].root / toy[0].paths[0]).read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    names = ["cut off.png", toy[0].root / toy[0].paths[0], "text.jpg", "missing.png", "empty", "no*match.png"]
    result = run("predict", model, *names, "--top-k", "1", "-q")
    assert result.code == 1
    assert [row["path"] for row in rows(result.out)] == [str(toy[0].root / toy[0].paths[0])]
    told = result.err.splitlines()
    assert told[0] == "5 could not be read:"
    assert {line.split(":")[0].strip() for line in told[1:]} == {str(n) for n in names} - {str(names[1])}


def test_names_that_no_file_can_have_and_files_that_never_end_are_listed(run: Run, model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / os.fsdecode(b"caf\xe9\n.png")).write_bytes(b"")
    long = "x" * 300 + ".png"
    result = run("predict", model, ".", long, f"**/{long}*", "-q")
    assert result.code == 1
    assert [line.strip().split(":")[0] for line in result.err.splitlines()[1:]] == [
        long, f"**/{long}*", "caf\\udce9\\n.png", "loop.png", "pipe.jpg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "{}", "a.png"],
        ["heatmap", "{model}", "{}.png"],
        ["calibrate", "{model}", "{}", "--out", "new"],
        ["calibrate", "{model}", "data", "--out", "{}"],
        ["export", "{model}", "--onnx", "{}.onnx"],
        ["show", "{}"],
        ["summary", "{}"],
        ["params", "{}"],
    ],
)
def test_a_name_that_is_too_long_is_told_in_one_line(run: Run, model: Path, arguments: list[str]) -> None:
    long = "x" * 300
    result = run(*(word.format(long, model=model) for word in arguments))
    assert result.code in {1, 2, 3, 4}
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert long in result.err
    assert "File name too long" in result.err


def test_patterns_and_folders_name_each_file_once(run: Run, model: Path, toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "a b" / "deep").mkdir(parents=True)
    picture = Image.open(toy[0].root / toy[0].paths[0])
    for name in ("a b/2.PNG", "a b/1.jpeg", "a b/deep/3.webp", "a b/[4].png"):
        picture.save(name)
    (tmp_path / "a b" / "notes.txt").write_text("no image, and not taken for one")
    listed = [row["path"] for row in rows(run("predict", model, "a b/[4].png", "a b", "--top-k", "1").out)]
    assert listed == ["a b/[4].png", "a b/1.jpeg", "a b/2.PNG", "a b/deep/3.webp"]
    listed = [row["path"] for row in rows(run("predict", model, "a b/**/*.[jw]*", "--top-k", "1").out)]
    assert listed == ["a b/1.jpeg", "a b/deep/3.webp"]


def test_what_a_folder_holds_besides_is_counted(
    run: Run, model: Path, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "holiday").mkdir()
    Image.open(toy[0].root / toy[0].paths[0]).save("holiday/a.png")
    for name in ("._a.png", ".DS_Store", "b.heic", "c.heic", "notes"):
        (tmp_path / "holiday" / name).write_bytes(b"no image")
    result = run("predict", model, "holiday")
    assert result.code == 0
    assert {row["path"] for row in rows(result.out)} == {"holiday/a.png"}
    assert "holiday: passed over what has no image file's ending: 2 .heic, 1 no ending" in caplog.messages
    caplog.clear()
    run("predict", model, "holiday", "-q")
    assert caplog.messages == []


def test_only_what_was_read_counts_as_an_image(
    run: Run, model: Path, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    run("predict", model, "text.jpg", toy[0].root / toy[0].paths[0])
    assert caplog.messages[-1].startswith("1 image in")
    caplog.clear()
    run("predict", model, "missing.png")
    assert caplog.messages == []


def test_one_threshold_for_all_classes(run: Run, model: Path, toy: Toy, scores: np.ndarray) -> None:
    cut = float(np.median(scores))
    found = rows(run("predict", model, toy[0].root, "--threshold", cut).out)
    assert sum(bool(row["class"]) for row in found) == (scores >= cut).sum()


def test_results_in_a_file_are_what_stdout_would_have(run: Run, model: Path, toy: Toy, tmp_path: Path) -> None:
    image = toy[0].root / toy[0].paths[0]
    for name, form in (("a.jsonl", "jsonl"), ("a.csv", "csv"), ("a.txt", "csv")):
        assert run("predict", model, image, "--output", name, "-q").out == ""
        assert (tmp_path / name).read_text() == run("predict", model, image, "--format", form).out
    assert run("predict", model, image, "-o", "a.csv", "--format", "json", "-q").code == 0
    assert json.loads((tmp_path / "a.csv").read_text())[0]["path"] == str(image)


def test_a_link_stays_one_and_a_pipe_is_refused(run: Run, model: Path, toy: Toy, tmp_path: Path) -> None:
    image = toy[0].root / toy[0].paths[0]
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert run("predict", model, image, "--output", "link.csv", "-q").code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("path,class,score")
    os.mkfifo(tmp_path / "pipe.csv")
    refused = run("predict", model, image, "--output", "pipe.csv")
    assert (refused.code, "pipe.csv is a pipe or a device" in refused.err) == (2, True)
    assert (tmp_path / "pipe.csv").is_fifo()


def test_an_ending_that_no_format_has_is_refused_unless_the_format_is_named(
    run: Run, model: Path, toy: Toy, tmp_path: Path
) -> None:
    image = toy[0].root / toy[0].paths[0]
    refused = run("predict", model, image, "--output", "a.xlsx")
    assert (refused.code, "a.xlsx does not end as a format is called" in refused.err) == (2, True)
    assert run("predict", model, image, "--output", "a.xlsx", "--format", "csv").code == 0


def test_hidden_files_and_linked_folders_are_passed_over_and_no_file_is_scored_twice(
    run: Run, model: Path, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "holiday"
    for name in ("a.png", ".b.png", ".thumbs/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(toy[0].root / toy[0].paths[0], folder / name)
    (folder / "album").symlink_to(toy[0].root)
    result = run("predict", model, "holiday", folder / "a.png", "holiday/../holiday/a.png", "--format", "jsonl")
    assert [json.loads(line)["path"] for line in result.out.splitlines()] == ["holiday/a.png"]
    assert "holiday: passed over what has no image file's ending: 1 linked folder" in caplog.messages
    assert run("predict", model, "holiday/.b.png", "-q", "--format", "jsonl").out.count("\n") == 1


def test_json_is_utf8_whatever_bytes_a_name_has(run: Run, model: Path, toy: Toy, tmp_path: Path) -> None:
    for name in ("ünï.png", os.fsdecode(b"caf\xe9.png")):
        shutil.copy(toy[0].root / toy[0].paths[0], tmp_path / name)
    found = run("predict", model, tmp_path, "--output", "a.json", "-q")
    assert found.code == 0
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert "ünï.png" in text
    assert [Path(item["path"]).name for item in json.loads(text)] == ["caf\\xe9.png", "ünï.png"]


def test_a_full_disk_behind_stdout_is_told_in_one_line(model: Path, toy: Toy, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from clipdistill.cli import main; main()", "predict", str(model)]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*command, str(toy[0].root), "-q"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (1, "error: the standard output: No space left on device\n")


def test_a_failing_run_leaves_no_file_and_the_old_one_whole(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("old")
    assert run("predict", "nowhere", "a.png", "--output", "a.csv").code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


def test_a_class_without_a_chosen_threshold_is_named(
    run: Run, model: Path, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student, card = model_folder.load(model)
    half = card.model_copy(update={"thresholds": [0.5, *card.thresholds[1:]]})
    model_folder.save(tmp_path / "half", student, half)
    model_folder.save(tmp_path / "plain", student, half.model_copy(update={"calibration": {}}))
    image = toy[0].root / toy[0].paths[0]
    told = f"no threshold could be chosen for {card.classes[0]}: 0.5 stands in for it"
    run("predict", "half", image)
    assert told in caplog.messages
    caplog.clear()
    for arguments in (["half", "--threshold", "0.2"], ["half", "--top-k", "1"], ["half", "-q"], ["plain"]):
        run("predict", *arguments[:1], image, *arguments[1:])
    assert told not in caplog.messages


def test_a_turned_photo_is_seen_upright(run: Run, model: Path, toy: Toy, tmp_path: Path) -> None:
    upright = Image.open(toy[0].root / toy[0].paths[3])
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_TURN
    upright.rotate(90, expand=True).save("turned.png", exif=exif)
    upright.save("upright.png")
    found = json.loads(run("predict", model, "turned.png", "upright.png", "--top-k", "3", "--format", "json").out)
    assert found[0]["classes"] == found[1]["classes"]


def test_csv_keeps_names_with_commas_quotes_and_lines(run: Run, model: Path, toy: Toy, tmp_path: Path) -> None:
    awkward = ['comma, "quoted"', "two\nlines", "semi;colon"]
    student, card = model_folder.load(model)
    model_folder.save(tmp_path / "awkward", student, card.model_copy(update={"classes": awkward}))
    path = tmp_path / 'a, "b"\nc.png'
    path.write_bytes((toy[0].root / toy[0].paths[0]).read_bytes())
    found = rows(run("predict", "awkward", path, "--top-k", "3").out)
    assert {row["path"] for row in found} == {str(path)}
    assert sorted(row["class"] for row in found) == sorted(awkward)
    lines = run("predict", "awkward", path, "--top-k", "3", "--format", "table").out.splitlines()
    assert len(lines) == 2


def test_a_real_process_keeps_any_file_name_and_sends_each_stream_its_own(
    model: Path, toy: Toy, tmp_path: Path
) -> None:
    name = b"caf\xe9.png"  # no UTF-8
    (tmp_path / os.fsdecode(name)).write_bytes((toy[0].root / toy[0].paths[0]).read_bytes())
    command = [sys.executable, "-c", "from clipdistill.cli import main; main()", "predict", str(model), ".", "-v"]
    environment = os.environ | {"NO_COLOR": "1", "CLIPDISTILL_THREADS": "1", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        [*command, "--format", "csv", "--top-k", "1"], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith(name + b",")
    assert b"loaded in" in result.stderr
    assert b"1 image in" in result.stderr
    assert b"\x1b" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "xml"], 2, "--format: 'xml' is none of table, csv, json, jsonl"),
        (["--device", "tpu"], 2, "--device: 'tpu' is none of auto, cpu, cuda"),
        (["--quiet", "--verbose"], 2, "contradict"),
        (["--top-k", "0"], 2, "--top-k"),
        (["--threshold", "1.5"], 2, "--threshold"),
        (["--threshold", "0.3", "--top-k", "2"], 2, "give one of them"),
        (["--output", "none/found.csv"], 2, "--output: there is no folder none"),
        (["--output", "."], 2, "--output: . is a folder"),
    ],
)
def test_wrong_options_are_refused(run: Run, model: Path, arguments: list[str], code: int, message: str) -> None:
    result = run("predict", model, "a.png", *arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_a_folder_without_a_student_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("predict", tmp_path, "a.png")
    assert result.code == 4
    assert "student.yaml is missing" in result.err
    (tmp_path / "untrained.txt").write_text("the training images have no ground truth\n")
    result = run("predict", tmp_path, "a.png")
    assert result.code == 4
    assert "no ground truth" in result.err


def test_a_wrong_folder_is_told_where_students_are(run: Run, model: Path, tmp_path: Path) -> None:
    result = run("predict", "nowhere", "a.png")
    assert result.code == 4
    assert "nowhere holds no student: there is no such folder; `dvc pull` or `dvc repro` brings" in result.err
    model_folder.save(tmp_path / "cache" / "toy" / "models" / "cdul", *model_folder.load(model))
    assert "there is no such folder; here are cache/toy/models/cdul\n" in run("predict", "nowhere", "a.png").err
    card = model / student_yaml.FILE
    assert "it is a file; name the folder that it is in" in run("predict", card, "a.png").err
