from pathlib import Path

import pytest
import yaml

from clipdistill.errors import ArtifactError
from clipdistill.params import ClipParams, EvaluateParams, StudentParams
from clipdistill.students import classifier, finished, model_card, model_folder, student_yaml
from clipdistill.students.student_yaml import Evaluation

PARAMS = StudentParams(output_stride=32, backbone="shufflenet_v2_x0_5", image_size=64)
MEASURED = {"mAP": 90.5, "CF1": 70.0, "OF1": None, "own": {"CF1": 80.0, "OF1": 81.0}, "oracle": {"CF1": 85.0}}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    student = classifier.build(PARAMS, 2, seed=0)
    chosen = {"rule": "a rule", "labels": "some labels"}
    card = student_yaml.Card.of(student, PARAMS, "sigmoid", ["dog", "cat"], {"table": "abc"}, [0.2, 0.5], chosen)
    model_folder.save(tmp_path / "trained", student, card)
    return tmp_path / "trained"


def evaluation(figures: dict[str, float | None]) -> Evaluation:
    return Evaluation(dataset="pets", split="val", images=7, chose_thresholds=False, figures=figures)


def test_the_card_has_the_figures_and_what_a_hub_asks(trained: Path, tmp_path: Path) -> None:
    figures = finished.figures(MEASURED, EvaluateParams(threshold=0.4))
    assert figures == {"mAP": 90.5, "CF1": 80.0, "OF1": 81.0, "CF1 at 0.4": 70.0, "OF1 at 0.4": None}
    about = {"method": "CDUL student", "license": "mit", "base_model": ""}
    finished.finish(trained, tmp_path / "model", about, evaluation(figures))
    text = (tmp_path / "model" / model_card.FILE).read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "mit"
    assert "base_model" not in front
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"name": "pets", "type": "pets", "split": "val"}
    assert {item["type"]: item["value"] for item in result["metrics"]} == {k: v for k, v in figures.items() if v}
    for line in ("| method | CDUL student |", "| mAP | 90.50 |", "| OF1 at 0.4 | - |", "| dog | 0.2000 |"):
        assert line in text
    assert "| cat | 0.5000 (none could be chosen) |" in text
    assert "7 images of the split val of pets" in text
    assert model_folder.load(tmp_path / "model")[1].thresholds == [0.2, 0.5]


def test_without_ground_truth_the_card_says_so(trained: Path, tmp_path: Path) -> None:
    assert finished.figures({"images": 7, "labelled": 0}, EvaluateParams()) == {}
    finished.finish(trained, tmp_path / "model", {}, evaluation({}))
    text = (tmp_path / "model" / model_card.FILE).read_text()
    assert "There is no ground truth for the split val of pets" in text
    assert "model-index" not in text


def test_other_weights_than_the_description_was_written_for_are_refused(trained: Path, tmp_path: Path) -> None:
    path = trained / student_yaml.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"is not what .* was written for"):
        finished.finish(trained, tmp_path / "model", {}, evaluation({}))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (ClipParams(), "CLIP scenes-tiny, trained by the pipeline on drawings"),
        (ClipParams(source="open_clip", model="RN50", pretrained="openai"), "CLIP RN50, weights openai of open_clip"),
        (ClipParams(source="file", model="RN50", weights="a", sha256="0" * 64), "weights with SHA-256 0000"),
    ],
)
def test_the_teacher_is_named(params: ClipParams, text: str) -> None:
    assert text in finished.teacher(params)
