import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import CLASSES, COMPUTE, STUDENT, SoftLabels, Toy, contents, make_table, soft_labels, train

from clipdistill import store
from clipdistill.datasets.table import ClassName, write_classes
from clipdistill.errors import ArtifactError, ClipdistillError, DataError, ParamsError
from clipdistill.params import CdulTrainParams, Params, RecipeParams
from clipdistill.stage import Paths
from clipdistill.students import student_yaml
from clipdistill.training import loop
from clipdistill.training import train as training
from clipdistill.training.gradient_alignment import GradientAlignment
from clipdistill.training.loop import Truth
from clipdistill.training.predict import predict_scores
from clipdistill.training.supervision import FixedLabels, Supervision


def test_writes_a_student_that_loads_and_scores_its_images(toy: Toy, tmp_path: Path, work_root: Path) -> None:
    outputs = train(toy, tmp_path, epochs=1)
    card = student_yaml.read(outputs.model)
    assert (card.classes, card.head) == (CLASSES, "sigmoid")
    assert card.provenance["table"] == toy[0].fingerprint
    scores = predict_scores(outputs.model, toy[0], COMPUTE)
    assert scores.shape == (20, 3)
    assert scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    assert not contents(work_root)


def test_thresholds_of_a_student_that_is_only_gone_on_from_are_not_chosen(toy: Toy, tmp_path: Path) -> None:
    for name, asked in (("at work", True), ("gone on from", False)):
        training.train_student(
            toy[0],
            soft_labels(toy[1]),
            CLASSES,
            student=STUDENT,
            recipe=RecipeParams(epochs=1, batch_size=8, precision="fp32"),
            supervision=FixedLabels(),
            outputs=training.Outputs(tmp_path / name, thresholds=asked),
            compute=COMPUTE,
        )
    chosen, default = (student_yaml.read(tmp_path / name) for name in ("at work", "gone on from"))
    assert chosen.sha256 == default.sha256
    assert chosen.thresholds != [0.5] * 3
    assert (default.thresholds, default.calibration) == ([0.5] * 3, {})


def test_equal_inputs_give_equal_bytes(toy: Toy, tmp_path: Path) -> None:
    truth = Truth(toy[1], toy[0], toy[1])
    for name in ("a", "b"):
        train(toy, tmp_path / name, truth=truth, epochs=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_gives_another_student(toy: Toy, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(toy, tmp_path / str(seed), epochs=1, seed=seed)
    assert contents(tmp_path / "0" / "model") != contents(tmp_path / "1" / "model")


def test_ground_truth_changes_the_curves_and_not_the_student(toy: Toy, tmp_path: Path) -> None:
    table, presence = toy
    noise = np.random.default_rng(7).permutation(presence.ravel()).reshape(presence.shape)
    runs = [
        train(toy, tmp_path / "true", truth=Truth(presence, table, presence), epochs=2),
        train(toy, tmp_path / "noise", truth=Truth(noise, table, noise), epochs=2),
        train(toy, tmp_path / "none", epochs=2),
    ]
    for name in ("model", "labels"):
        assert contents(tmp_path / "true" / name) == contents(tmp_path / "noise" / name)
        assert contents(tmp_path / "true" / name) == contents(tmp_path / "none" / name)
    curves = [json.loads((outputs.curves / "metrics.json").read_text()) for outputs in runs if outputs.curves]
    assert curves[0]["label_map"] != curves[1]["label_map"]
    assert curves[0]["val_map"] != curves[1]["val_map"]
    assert not {"label_map", "val_map"} & set(curves[2])


@pytest.mark.parametrize(
    "supervision", [FixedLabels(), GradientAlignment(CdulTrainParams(variant="reproduction", warmup=0))]
)
def test_images_without_a_label_and_classes_without_an_image(
    toy: Toy, tmp_path: Path, supervision: Supervision
) -> None:
    labels = soft_labels(toy[1])
    labels[3] = 0
    labels[:, 1] = 0
    outputs = train(toy, tmp_path, supervision, labels=labels, epochs=2)
    assert np.isfinite(predict_scores(outputs.model, toy[0], COMPUTE)).all()


def test_a_last_batch_of_one_image_is_merged(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    update = loop.Trainer._step

    def watched(self: loop.Trainer, pixels: torch.Tensor, *arguments: object) -> torch.Tensor:
        sizes.append(len(pixels))
        return update(self, pixels, *arguments)

    monkeypatch.setattr(loop.Trainer, "_step", watched)
    train(toy, tmp_path, batch_size=19, epochs=2)
    assert sizes == [20, 20]


def test_an_infinite_loss_stops_with_its_place(toy: Toy, tmp_path: Path) -> None:
    place = r"the loss is (nan|inf) in epoch \d, step \d of 3; lower .*learning_rate"
    with pytest.raises(ClipdistillError, match=place):
        train(toy, tmp_path, optimiser="sgd", learning_rate=1e30, schedule="constant")
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda labels: labels[:-1], r"float32 \[20, 3\].*\[19, 3\]"),
        (lambda labels: labels.astype(np.float64), "float64"),
        (lambda labels: np.where(np.arange(60).reshape(20, 3) == 7, np.float32(np.nan), labels), "row 2, column 1"),
        (lambda labels: labels * 2, r"must lie in \[0, 1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    toy: Toy, tmp_path: Path, change: Callable[[SoftLabels], SoftLabels], text: str
) -> None:
    with pytest.raises(ArtifactError, match=text):
        train(toy, tmp_path, labels=change(soft_labels(toy[1])))


def test_labels_of_other_classes_are_refused_by_name_and_not_by_luck(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = Paths("toy")
    provenance = {"table": toy[0].fingerprint, "text": {"classes": ["red", "green", "blue"]}}
    store.write_group(paths.labels("global"), {"labels": toy[1].astype(np.float32)}, provenance)
    for names, fits in ((["red", "green", "blue"], True), (["red", "blue", "green"], False), (["red"], False)):
        write_classes(paths.classes, [ClassName(name, name) for name in names])
        if fits:
            assert training.stored_labels("global", paths, toy[0]).shape("labels") == toy[1].shape
        else:
            message = rf"global\.zarr was made for the classes red, green, blue, but .*yaml has {', '.join(names)}: run"
            with pytest.raises(ArtifactError, match=message):
                training.stored_labels("global", paths, toy[0])


def test_batches_that_normalisation_cannot_use_are_refused(toy: Toy, tmp_path: Path, work_root: Path) -> None:
    with pytest.raises(ParamsError, match=r"batch_size.*at least 2 images"):
        train(toy, tmp_path, batch_size=1)
    assert not work_root.exists()


def test_a_single_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 images"):
        train(make_table(tmp_path / "images", 1), tmp_path)


def test_trainings_that_go_on_from_one_another_have_seeds_of_their_own(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[RecipeParams] = []
    monkeypatch.setattr(training, "read_classes", lambda _: [])
    monkeypatch.setattr(training, "train_student", lambda *_, recipe, **__: recipes.append(recipe))
    params = Params()
    for turn, epochs in ((0, None), (2, 3), (5, 4)):
        training.train_by_params(
            params,
            toy[0],
            soft_labels(toy[1]),
            supervision=FixedLabels(),
            outputs=training.Outputs(tmp_path),
            stage="train",
            compute=COMPUTE,
            epochs=epochs,
            turn=turn,
        )
    own = params.train.recipe
    assert recipes[0] == own
    assert [recipe.epochs for recipe in recipes] == [own.epochs, 3, 4]
    assert len({recipe.seed for recipe in recipes}) == 3


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_an_image_that_has_changed_is_named(tmp_path: Path, cache: str) -> None:
    changed = make_table(tmp_path / "images", 6)
    (tmp_path / "images" / "004.png").write_bytes(b"other")
    with pytest.raises(DataError, match=r"004\.png.*changed"):
        train(changed, tmp_path, image_cache=cache)


def test_decoding_anew_gives_the_student_that_memory_gives(toy: Toy, tmp_path: Path) -> None:
    for cache in ("memory", "none"):
        train(toy, tmp_path / cache, image_cache=cache, epochs=1)
    weights = [contents(tmp_path / cache / "model")[student_yaml.WEIGHTS] for cache in ("memory", "none")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimiser_and_precision_lowers_the_loss(toy: Toy, tmp_path: Path, name: str, precision: str) -> None:
    outputs = train(
        toy,
        tmp_path,
        FixedLabels(),
        labels=toy[1].astype(np.float32),
        optimiser=name,
        learning_rate=0.05 if name == "sgd" else 5e-3,
        precision=precision,
        schedule="cosine",
        batch_size=20,
        epochs=15,
        flip=0.0,
        min_scale=1.0,
        jitter=0.0,
    )
    lines = (tmp_path / "curves" / "plots" / "metrics" / "loss.tsv").read_text().splitlines()[1:]
    losses = [float(line.split("\t")[1]) for line in lines]
    assert losses[-1] < 0.7 * losses[0]
    assert student_yaml.read(outputs.model).provenance["arithmetic"] in ("float32", "bfloat16")


def test_the_labels_artifact_says_what_it_was_made_from(toy: Toy, tmp_path: Path) -> None:
    outputs = train(toy, tmp_path, epochs=1)
    assert outputs.labels is not None
    provenance = store.read_group(outputs.labels, {"table": toy[0].fingerprint, "classes": CLASSES}).provenance
    assert provenance["supervision"]["labels"] == "gradient alignment"
