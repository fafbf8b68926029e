"""Calibration, heat maps, export, and CLIP's own opinion, each on real files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_run import Run
from PIL import Image

from clipdistill import Student
from clipdistill.evaluation.metrics import figures_at
from clipdistill.students import model_card, model_folder, preprocessing, student_yaml
from training.toy_training import CLASSES, Toy


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def front_matter(folder: Path) -> dict[str, object]:
    _, front, _ = (folder / model_card.FILE).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front)


def test_calibration_writes_a_copy_with_better_thresholds_and_leaves_the_model_alone(
    run: Run, model: Path, split: Path, toy: Toy, tmp_path: Path
) -> None:
    before = contents(model)
    spoilt = student_yaml.read(model).model_copy(update={"thresholds": [0.99, 0.01, 0.5]})
    model_folder.save(tmp_path / "spoilt", model_folder.load(model)[0], spoilt)
    result = run("calibrate", "spoilt", split, "--out", "better", "-q")
    assert (result.code, result.err) == (0, "")
    assert contents(model) == before
    assert (tmp_path / "better" / student_yaml.WEIGHTS).read_bytes() == before[student_yaml.WEIGHTS]
    card = student_yaml.read(tmp_path / "better")
    scores = Student.load("better", "cpu").predict(toy[0].root / name for name in toy[0].paths).scores
    old, new = (figures_at(scores, toy[1], thresholds)["OF1"] for thresholds in (spoilt.thresholds, card.thresholds))
    assert new > old
    lines = [line.split() for line in result.out.splitlines()[1:]]
    assert [(line[0], float(line[-1])) for line in lines] == [
        ("before", pytest.approx(old, abs=0.01)),
        ("better", pytest.approx(new, abs=0.01)),
    ]
    assert card.evaluation is not None
    assert card.evaluation.chose_thresholds
    assert card.evaluation.figures["OF1"] == pytest.approx(new, abs=0.01)
    figures = front_matter(tmp_path / "better")["model-index"][0]["results"][0]["metrics"]
    assert {item["type"] for item in figures} == {"mAP", "CF1", "OF1"}
    assert run("calibrate", "spoilt", split, "--out", "better").code == 2


def test_calibration_refuses_other_classes_and_a_split_without_labels(
    run: Run, model: Path, split: Path, tmp_path: Path
) -> None:
    student, card = model_folder.load(model)
    model_folder.save(tmp_path / "other", student, card.model_copy(update={"classes": ["blue", "green", "red"]}))
    result = run("calibrate", "other", split, "--out", "out")
    assert result.code == 4
    assert "['red', 'green', 'blue']" in result.err
    assert run("calibrate", model, tmp_path, "--out", "out").code == 4
    assert not (tmp_path / "out").exists()


def test_a_heat_map_has_the_size_of_its_image_and_the_class_that_was_asked_for(
    run: Run, model: Path, toy: Toy, tmp_path: Path
) -> None:
    image = toy[0].root / toy[0].paths[2]
    result = run("heatmap", model, image, "--class", "green")
    assert result.code == 0
    student = Student.load(model, "cpu")
    scores = student.predict(image).scores[0]
    assert result.out == f"green {scores[1]:.2f}: 002-heatmap.png\n"
    picture = Image.open(tmp_path / "002-heatmap.png")
    assert (picture.mode, picture.size) == ("RGB", (40, 30))
    assert run("heatmap", model, image, "--out", "best.png").out.startswith(CLASSES[int(scores.argmax())])
    unknown = run("heatmap", model, image, "--class", "grene")
    assert unknown.code == 2
    assert "for example green" in unknown.err
    assert run("heatmap", model, "missing.png").code == 3


def test_files_are_written_where_they_can_be_and_as_what_they_are_named(
    run: Run, model: Path, toy: Toy, tmp_path: Path
) -> None:
    image = toy[0].root / toy[0].paths[2]
    for arguments, message in (
        (("heatmap", model, image, "--out", "maps/a.png"), "--out: there is no folder maps"),
        (("heatmap", model, image, "--out", "a.jpg"), "a.jpg does not end in .png"),
        (("export", model, "--onnx", "graphs/a.onnx"), "--onnx: there is no folder graphs"),
        (("export", model, "--onnx", "a.txt"), "a.txt does not end in .onnx"),
        (("calibrate", model, "val", "--out", "models/new"), "--out: there is no folder models"),
    ):
        result = run(*arguments)
        assert result.code == 2
        assert message in result.err
    assert not list(tmp_path.iterdir())


def test_the_exported_graph_scores_as_the_student_does(run: Run, model: Path, toy: Toy, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    result = run("export", model, "--onnx", "student.onnx")
    assert result.code == 0, result.err
    assert "of PyTorch" in result.out
    session = onnxruntime.InferenceSession("student.onnx", providers=["CPUExecutionProvider"])
    student = Student.load(model, "cpu")
    for rows in (range(1), range(5, 16)):
        opened = [preprocessing.resize(toy[0].open(row), 32) for row in rows]
        scores, maps = session.run(["scores", "maps"], {"pixels": np.stack(opened)})
        np.testing.assert_allclose(scores, student.score(torch.from_numpy(np.stack(opened))), atol=1e-4)
        np.testing.assert_allclose(maps[0], student.look(toy[0].open(rows[0]))[1], atol=1e-3)
    told = session.get_modelmeta().custom_metadata_map
    card = student_yaml.read(model)
    assert json.loads(told["classes"]) == card.classes
    assert json.loads(told["thresholds"]) == card.thresholds
    assert "32 x 32" in json.loads(told["preprocessing"])["resize"]
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "student.onnx").read_bytes()


def test_a_graph_that_differs_is_not_written(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    from clipdistill.application import export_onnx

    monkeypatch.setattr(export_onnx, "_traced", lambda _, size: _constant_graph(size))
    result = run("export", model, "--onnx", "student.onnx")
    assert result.code == 1
    assert "differ from torch's by" in result.err
    assert not list(tmp_path.glob("student.onnx*"))


def _constant_graph(size: int) -> object:
    """A graph of the same form that scores every image 0."""
    import onnx
    from onnx import TensorProto, helper

    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 3, size, size])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("scores", "maps")]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    nodes = [helper.make_node("Identity", ["zero"], [name]) for name in ("scores", "maps")]
    graph = helper.make_graph(nodes, "constant", [pixels], outputs, [zero])
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_clip_itself_is_asked_as_the_first_labels_are_made(run: Run, toy: Toy, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from clipdistill.clip import teacher

    teacher.register_architectures()
    torch.manual_seed(0)
    weights = {name: value.contiguous() for name, value in teacher.create("scenes-tiny").state_dict().items()}
    save_file(weights, tmp_path / "tiny.safetensors")
    image = toy[0].root / toy[0].paths[0]
    ask = ("teacher", image, "--classes", "red, green,blue square", "--model", "scenes-tiny")
    result = run(*ask, "--weights", "tiny.safetensors")
    assert result.code == 0, result.err
    lines = [line.rsplit(maxsplit=3) for line in result.out.splitlines()]
    assert lines[0] == ["class", "whole", "snippets", "both"]
    assert {line[0].strip() for line in lines[1:]} == {"red", "green", "blue square"}
    values = np.array([[float(value) for value in line[1:]] for line in lines[1:]])
    assert values[:, 0].sum() == pytest.approx(1, abs=0.002)
    # With the default parameters the labels are the mean of both, and the aggregate is the snippets' maximum.
    np.testing.assert_allclose(values[:, 2], values[:, :2].mean(axis=1), atol=0.0011)
    assert values[:, 1].sum() >= 1 - 0.002
    assert (np.diff(values[:, 2]) <= 0).all()
    for arguments, message in (
        (["--weights", "none.pt"], "none.pt cannot be read"),
        (["--weights", "tiny.safetensors", "--pretrained", "openai"], "give one of them"),
        ([], "needs --model, and --pretrained or --weights"),
        (["--classes", "red,green,red"], "--classes: red stands there more than once"),
    ):
        refused = run(*ask, *arguments)
        assert refused.code == 2
        assert message in refused.err
    outside = run("teacher", image, "--classes", "red")
    assert outside.code == 5
    assert "or name another CLIP with --model" in outside.err


def test_the_card_is_ready_for_a_hub_whatever_the_names_hold(model: Path, tmp_path: Path) -> None:
    student, card = model_folder.load(model)
    names = ["pipe | in", "line\nbreak", "<b>"]
    model_folder.save(tmp_path / "odd", student, card.model_copy(update={"classes": names}))
    model_card.write(tmp_path / "odd")
    front = front_matter(tmp_path / "odd")
    assert front["pipeline_tag"] == "image-classification"
    assert "model-index" not in front
    text = (tmp_path / "odd" / model_card.FILE).read_text(encoding="utf-8")
    for cell, threshold in zip(("pipe \\| in", "line break", "&lt;b>"), card.thresholds, strict=True):
        assert f"| {cell} | {threshold:.4f} |" in text
    assert student_yaml.read(tmp_path / "odd").sha256 in text
