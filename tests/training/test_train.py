import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import CLASSES, COMPUTE, STUDENT, make_table, recipe, soft_labels

from clipdistill import distributed, store
from clipdistill.errors import ArtifactError, ClipdistillError, DataError, ParamsError
from clipdistill.methods import cdul
from clipdistill.params import CdulTrainParams, StudentParams
from clipdistill.students import classifier, model_folder
from clipdistill.training import loop
from clipdistill.training.data import ImageSource
from clipdistill.training.gradient_alignment import GradientAlignment
from clipdistill.training.loop import Truth
from clipdistill.training.predict import predict, predict_scores
from clipdistill.training.supervision import FixedLabels
from clipdistill.training.train import Outputs, train_student

SCRIPT = Path(__file__).with_name("toy_training.py")


@pytest.fixture(autouse=True)
def work_root(tmp_path, monkeypatch):
    monkeypatch.setenv(store.WORK_ROOT_VARIABLE, str(tmp_path / "work"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_table(tmp_path_factory.mktemp("images"), 20)


class Recording(GradientAlignment):
    """Gradient alignment that remembers what it was given and gave."""

    def __init__(self, params):
        super().__init__(params)
        self.calls = []

    def refine(self, labels, scores):
        refined = super().refine(labels, scores)
        self.calls.append((labels.clone(), scores.clone(), refined.clone()))
        return refined


def run(toy, out, supervision=None, truth=None, labels=None, student=STUDENT, **changes):
    table, presence = toy
    outputs = Outputs(out / "model", out / "labels", out / "curves")
    train_student(
        table,
        soft_labels(presence) if labels is None else labels,
        CLASSES,
        student=student,
        recipe=recipe(**changes),
        supervision=supervision or GradientAlignment(CdulTrainParams()),
        outputs=outputs,
        truth=truth,
        compute=COMPUTE,
    )
    return outputs


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_writes_a_student_that_loads_and_scores_its_images(toy, tmp_path):
    outputs = run(toy, tmp_path, epochs=1)
    student, card = model_folder.load(outputs.model)
    assert card.classes == CLASSES
    assert card.head == "sigmoid"
    assert card.provenance["table"] == toy[0].fingerprint
    scores = predict_scores(outputs.model, toy[0], COMPUTE)
    assert scores.shape == (20, 3)
    assert scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    assert not list((tmp_path / "work").rglob("checkpoint.pt"))


def test_equal_inputs_give_equal_bytes(toy, tmp_path):
    first = run(toy, tmp_path / "a", epochs=2)
    second = run(toy, tmp_path / "b", epochs=2)
    for name in ("model", "labels", "curves"):
        assert contents(getattr(first, name)) == contents(getattr(second, name))


def test_another_seed_gives_another_student(toy, tmp_path):
    first, second = (run(toy, tmp_path / str(seed), epochs=1, seed=seed) for seed in (0, 1))
    assert (first.model / model_folder.WEIGHTS).read_bytes() != (second.model / model_folder.WEIGHTS).read_bytes()


def test_ground_truth_changes_the_curves_and_not_the_student(toy, tmp_path):
    table, presence = toy
    noise = np.random.default_rng(7).permutation(presence.ravel()).reshape(presence.shape)
    runs = [
        run(toy, tmp_path / "true", truth=Truth(presence, table, presence), epochs=2),
        run(toy, tmp_path / "noise", truth=Truth(noise, table, noise), epochs=2),
        run(toy, tmp_path / "none", epochs=2),
    ]
    for name in ("model", "labels"):
        assert len({str(contents(getattr(outputs, name))) for outputs in runs}) == 1
    curves = [json.loads((outputs.curves / "metrics.json").read_text()) for outputs in runs]
    assert curves[0]["label_map"] != curves[1]["label_map"]
    assert curves[0]["val_map"] != curves[1]["val_map"]
    assert "val_map" not in curves[2]


@pytest.mark.parametrize("stop_in", [1, 4, 7])
def test_goes_on_after_a_failure_as_if_nothing_had_been(toy, tmp_path, monkeypatch, stop_in):
    truth = Truth(toy[1], toy[0], toy[1])
    whole = run(toy, tmp_path / "whole", truth=truth)
    update, count = loop.Trainer._step, 0

    def failing(self, *arguments):
        nonlocal count
        count += 1
        if count == stop_in:
            raise RuntimeError("power cut")
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            run(toy, tmp_path / "again", truth=truth)
    assert not (tmp_path / "again" / "model").exists()
    again = run(toy, tmp_path / "again", truth=truth)
    for name in ("model", "labels", "curves"):
        assert contents(getattr(again, name)) == contents(getattr(whole, name))


def test_a_resumed_run_repeats_no_finished_epoch(toy, tmp_path, monkeypatch):
    update, count = loop.Trainer._step, 0

    def failing(self, *arguments):
        nonlocal count
        count += 1
        if count == 5:
            raise RuntimeError("power cut")
        return update(self, *arguments)

    monkeypatch.setattr(loop.Trainer, "_step", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        run(toy, tmp_path)
    run(toy, tmp_path)
    # 3 batches an epoch: 4 updates and the failing one, then epochs 2 and 3 anew.
    assert count == 5 + 6


def test_other_labels_never_take_up_a_foreign_checkpoint(toy, tmp_path, monkeypatch):
    def failing(self, *arguments):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            run(toy, tmp_path)
    other = soft_labels(toy[1], seed=5)
    run(toy, tmp_path, labels=other, epochs=1)
    assert np.array_equal(store.read_group(tmp_path / "labels").read("labels")[0], other)


def test_a_damaged_checkpoint_is_named(toy, tmp_path, monkeypatch):
    def failing(self, epoch):
        write(self, epoch)
        raise RuntimeError("power cut")

    write = loop.Trainer._save
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_save", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            run(toy, tmp_path)
    (file,) = (tmp_path / "work").rglob("checkpoint.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match=r"checkpoint\.pt is damaged"):
        run(toy, tmp_path)


def test_labels_are_refined_on_schedule_from_clean_scores(toy, tmp_path):
    supervision = Recording(CdulTrainParams(warmup=1, update_every=2, sigma=0.5, step=0.7))
    outputs = run(toy, tmp_path, supervision, epochs=5)
    group = store.read_group(outputs.labels)
    states = torch.from_numpy(group.read("labels"))
    assert group.read("epoch").tolist() == [0, 3, 5]
    assert torch.equal(states[0], torch.from_numpy(soft_labels(toy[1])))
    for update, (before, scores, after) in enumerate(supervision.calls):
        assert torch.equal(before, states[update])
        assert torch.equal(after, states[update + 1])
        assert torch.equal(after, cdul.gradient_alignment(before, scores, 0.5, 0.7))
        assert not torch.equal(before, after)
    student, _ = model_folder.load(outputs.model)
    clean = predict(student, ImageSource(toy[0], 32, "memory", 1), "sigmoid", torch.float32)
    torch.testing.assert_close(supervision.calls[-1][1], clean)


def test_the_student_learns_from_the_refined_labels(toy, tmp_path):
    moving = run(toy, tmp_path / "a", GradientAlignment(CdulTrainParams(step=1.0)), epochs=2)
    still = run(toy, tmp_path / "b", GradientAlignment(CdulTrainParams(step=0.0)), epochs=2)
    assert (moving.model / model_folder.WEIGHTS).read_bytes() != (still.model / model_folder.WEIGHTS).read_bytes()


def test_a_step_of_zero_leaves_the_labels(toy, tmp_path):
    outputs = run(toy, tmp_path, GradientAlignment(CdulTrainParams(step=0.0)), epochs=2)
    states = store.read_group(outputs.labels).read("labels")
    np.testing.assert_allclose(states, np.broadcast_to(states[0], (3, 20, 3)), atol=2e-6)


def test_fixed_labels_have_one_state(toy, tmp_path):
    group = store.read_group(run(toy, tmp_path, FixedLabels(), epochs=2).labels)
    assert group.read("epoch").tolist() == [0]
    assert np.array_equal(group.read("labels")[0], soft_labels(toy[1]))


def test_the_reproduction_variant_has_a_softmax_head(toy, tmp_path):
    supervision = Recording(CdulTrainParams(variant="reproduction"))
    outputs = run(toy, tmp_path, supervision, epochs=1)
    assert model_folder.read_card(outputs.model).head == "softmax"
    before, scores, after = supervision.calls[0]
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(20))
    assert torch.equal(after, cdul.gradient_alignment(before, scores, 1.0, 1 / 8, "softmax"))
    assert np.allclose(predict_scores(outputs.model, toy[0], COMPUTE).sum(axis=1), 1)


@pytest.mark.parametrize("supervision", [FixedLabels(), GradientAlignment(CdulTrainParams(variant="reproduction"))])
def test_rows_without_any_label_and_classes_without_images_are_trained_on(toy, tmp_path, supervision):
    labels = soft_labels(toy[1])
    labels[3] = 0
    labels[:, 1] = 0
    outputs = run(toy, tmp_path, supervision, labels=labels, epochs=2)
    assert np.isfinite(predict_scores(outputs.model, toy[0], COMPUTE)).all()


def test_a_last_batch_of_one_image_is_merged(toy, tmp_path, monkeypatch):
    sizes = []
    update = loop.Trainer._step

    def watched(self, rows, *arguments):
        sizes.append(len(rows))
        return update(self, rows, *arguments)

    monkeypatch.setattr(loop.Trainer, "_step", watched)
    run(toy, tmp_path, batch_size=19, epochs=2)
    assert sizes == [20, 20]


def test_an_infinite_loss_stops_with_its_place(toy, tmp_path):
    with pytest.raises(
        ClipdistillError, match=r"the loss is (nan|inf) in epoch \d, step \d of 3; lower .*learning_rate"
    ):
        run(toy, tmp_path, optimiser="sgd", learning_rate=1e30, schedule="constant")
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda labels: labels[:-1], ArtifactError, r"float32 \[20, 3\].*\[19, 3\]"),
        (lambda labels: labels.astype(np.float64), ArtifactError, "float64"),
        (lambda labels: np.where(np.arange(60).reshape(20, 3) == 7, np.nan, labels), ArtifactError, "row 2, column 1"),
        (lambda labels: labels * 2, ArtifactError, r"must lie in \[0, 1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(toy, tmp_path, change, error, text):
    labels = change(soft_labels(toy[1]))
    with pytest.raises(error, match=text):
        run(toy, tmp_path, labels=labels.astype(np.float32) if "row" in text else labels)


def test_batches_that_normalisation_cannot_use_are_refused(toy, tmp_path):
    with pytest.raises(ParamsError, match=r"batch_size.*at least 2 images"):
        run(toy, tmp_path, batch_size=1)


def test_a_single_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="at least 2 images"):
        run(make_table(tmp_path / "images", 1), tmp_path)


def test_an_image_that_has_changed_is_named(tmp_path):
    toy = make_table(tmp_path / "images", 6)
    (tmp_path / "images" / "004.png").write_bytes(b"other")
    for cache in ("memory", "none"):
        with pytest.raises(DataError, match=r"004\.png.*changed"):
            run(toy, tmp_path, image_cache=cache)


def test_decoding_anew_gives_the_same_student_as_memory(toy, tmp_path):
    states = []
    for cache in ("memory", "none"):
        outputs = run(toy, tmp_path / cache, image_cache=cache, epochs=1)
        states.append((outputs.model / model_folder.WEIGHTS).read_bytes())
    assert states[0] == states[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimiser_and_precision_lowers_the_loss(toy, tmp_path, name, precision):
    rate = 0.1 if name == "sgd" else 2e-3
    plain = {"flip": 0.0, "min_scale": 1.0, "jitter": 0.0, "schedule": "cosine"}
    outputs = run(
        toy, tmp_path, FixedLabels(), optimiser=name, learning_rate=rate, epochs=8, precision=precision, **plain
    )
    lines = (outputs.curves / "plots" / "metrics" / "loss.tsv").read_text().splitlines()[1:]
    losses = [float(line.split("\t")[1]) for line in lines]
    assert losses[-1] < 0.8 * losses[0]


def test_a_network_with_dropout_resumes_equally(toy, tmp_path, monkeypatch):
    """EfficientNet drops whole blocks at random: the global random state must not matter."""
    student = StudentParams(backbone="efficientnet_b0", image_size=32)
    whole = run(toy, tmp_path / "whole", student=student, epochs=2, batch_size=20)
    update, count = loop.Trainer._step, 0

    def failing(self, *arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise RuntimeError("power cut")
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            run(toy, tmp_path / "again", student=student, epochs=2, batch_size=20)
    torch.rand(3)
    again = run(toy, tmp_path / "again", student=student, epochs=2, batch_size=20)
    assert contents(again.model) == contents(whole.model)


def _script(folder, **settings):
    return [str(SCRIPT), json.dumps({"folder": str(folder), "images": 20} | settings)]


@pytest.mark.slow
def test_a_killed_process_ends_in_the_bytes_of_an_unharmed_one(tmp_path, monkeypatch):
    monkeypatch.setenv(store.WORK_ROOT_VARIABLE, str(tmp_path / "work-whole"))
    distributed.launch(_script(tmp_path / "whole"), 1)
    monkeypatch.setenv(store.WORK_ROOT_VARIABLE, str(tmp_path / "work-killed"))
    killed = subprocess.run([sys.executable, *_script(tmp_path / "killed", die_at=5)], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "work-killed").rglob("checkpoint.pt"))
    assert not (tmp_path / "killed" / "model").exists()
    distributed.launch(_script(tmp_path / "killed"), 1)
    for name in ("model", "labels"):
        assert contents(tmp_path / "killed" / name) == contents(tmp_path / "whole" / name)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, monkeypatch):
    """21 images in batches of 8: the last batch has 5, so the processes' shares differ."""
    params = StudentParams(backbone="resnet18", image_size=64)
    settings = {
        "images": 21,
        "student": params.model_dump(),
        "recipe": {"optimiser": "sgd", "learning_rate": 1e-3, "schedule": "constant", "epochs": 2},
    }
    for processes in (1, 2):
        monkeypatch.setenv(store.WORK_ROOT_VARIABLE, str(tmp_path / f"work-{processes}"))
        distributed.launch(_script(tmp_path / str(processes), **settings), processes)
    one, two = (_parameters(model_folder.load(tmp_path / str(processes) / "model")[0]) for processes in (1, 2))
    start = _parameters(classifier.build(params, 3, seed=0))
    # Rounding grows from step to step; without synchronised statistics the distance is 0.2 of the way.
    assert (two - one).norm() < 0.03 * (one - start).norm()
    labels = [store.read_group(tmp_path / str(processes) / "labels").read("labels") for processes in (1, 2)]
    assert labels[0].shape == (3, 21, 3)
    np.testing.assert_allclose(labels[1], labels[0], atol=2e-4)


def _parameters(student):
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])
