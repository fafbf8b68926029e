"""TTD's adapter: what it learns from, that it goes on, and what is compared with it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from toy_captions import PAIRS, copied, make_project, params_of, write_captions

from clipdistill import distributed
from clipdistill.clip import adapter
from clipdistill.datasets.captions.left_out import left_out
from clipdistill.datasets.captions.table import CaptionTable
from clipdistill.errors import ClipdistillError, ParamsError
from clipdistill.methods import ttd
from clipdistill.stage import Paths
from clipdistill.training import ttd_adapter, ttd_pairs, ttd_setup
from clipdistill.training.ttd_adapter import train_ttd
from clipdistill.training.ttd_tags import Tags, evaluate_tags

pytest.importorskip("peft", reason="adapters need the extra ttd")

PATHS = Paths("toy")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ttd")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_captions()
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = copied(made, tmp_path / "project")
    monkeypatch.chdir(place)
    return place


def train(project: Path, **changes: object) -> dict[str, bytes]:
    """Train, and give all that it left."""
    train_ttd(params_of(project, **changes), [])
    files = [*PATHS.ttd_adapter.rglob("*"), *PATHS.curves("ttd").rglob("*"), ttd_adapter.METRICS]
    return {str(path): path.read_bytes() for path in sorted(files) if path.is_file()}


def test_the_adapter_learns_and_says_what_from(project: Path) -> None:
    train(project)
    card = yaml.safe_load((PATHS.ttd_adapter / adapter.CARD).read_text())
    assert card["change"] > 0
    assert card["provenance"]["threshold"] == 0.5
    assert card["provenance"]["captions"] == CaptionTable.load(PATHS.captions("train")).fingerprint
    row = json.loads(ttd_adapter.METRICS.read_text())
    assert (row["pairs"], row["kept"]) == (PAIRS, PAIRS // 2)
    assert 0 < row["selected"] <= 1
    assert 0 < row["caption_area"] < 1
    losses = [float(line.split("\t")[1]) for line in _curve("loss")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert {path.stem for path in (PATHS.curves("ttd") / "plots/metrics").iterdir()} >= {"selected", "target_area"}


def _curve(name: str) -> list[str]:
    return (PATHS.curves("ttd") / "plots/metrics" / f"{name}.tsv").read_text().splitlines()[1:]


@pytest.mark.parametrize("stop_at", [2, 4, 8])
def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(
    stop_at: int, made: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(Exception):
        pass

    real, calls = ttd.ttd_loss, 0

    def loss(*arguments: object) -> ttd.Losses:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise PowerCutError
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ttd, "ttd_loss", loss)
        with pytest.raises(PowerCutError):
            train(project)
    assert not PATHS.ttd_adapter.exists()
    found = train(project)
    monkeypatch.chdir(copied(made, tmp_path / "whole"))
    assert train(tmp_path / "whole") == found


def test_other_parameters_do_not_go_on_from_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(project)
    second = train(project, threshold=0.9)
    name = str(PATHS.ttd_adapter / adapter.WEIGHTS)
    assert first[name] != second[name]


@pytest.mark.parametrize("score", ["softmax_max", "cosine_minmax", "image", "text"])
def test_every_way_to_choose_words(score: str, project: Path) -> None:
    found = train(project, score=score, loss="l1" if score == "text" else "bce")
    assert math.isfinite(json.loads(found[str(ttd_adapter.METRICS)])["loss"])


def test_words_are_chosen_by_the_plain_clip_or_by_the_learner(project: Path) -> None:
    shares = {}
    for chooser in ("frozen", "learner"):
        train(project, chosen_by=chooser, keep=1.0)
        shares[chooser] = [float(line.split("\t")[1]) for line in _curve("selected")]
    # Nothing that is learnt moves the choice of the plain one (a flip of the image alone does).
    assert np.ptp(shares["frozen"]) < 0.05
    assert np.ptp(shares["learner"]) > np.ptp(shares["frozen"])


def test_pairs_that_are_most_alike_are_kept(project: Path) -> None:
    params = params_of(project)
    model = ttd_setup.plain_teacher(params)
    table = CaptionTable.load(PATHS.captions("train"))
    machine = ttd_setup.machine(params.ttd, distributed.Compute.load())
    every = ttd_pairs.kept(model, table, 1.0, machine)
    assert every.tolist() == list(range(PAIRS))
    few, many = (ttd_pairs.kept(model, table, keep, machine) for keep in (0.2, 0.6))
    assert (len(few), len(many)) == (4, 12)
    assert set(few) < set(many)
    assert few.tolist() == sorted(few)


def test_a_loss_that_is_not_finite_leaves_nothing(project: Path) -> None:
    recipe = {"epochs": 1, "batch_size": 4, "precision": "fp32", "learning_rate": 1e30, "schedule": "constant"}
    with pytest.raises(ClipdistillError, match=r"no longer finite.*lower ttd"):
        train(project, recipe=recipe, keep=1.0)
    assert not PATHS.ttd_adapter.exists()


def test_a_size_that_the_tower_does_not_take(project: Path) -> None:
    params = params_of(project)
    model = ttd_setup.plain_teacher(params)
    assert ttd_setup.image_size(params.ttd.model_copy(update={"image_size": "clip"}), model) == 64
    vit = params.model_copy(update={"clip": params.clip.model_copy(update={"model": "ViT-B-32"})})
    import open_clip

    from clipdistill.clip import teacher

    tower = teacher.Teacher(
        teacher.create("ViT-B-32"), open_clip.tokenize, model.preprocessing, 1.0, {"model": "ViT-B-32"}
    )
    with pytest.raises(ParamsError, match=r"ttd\.image_size"):
        ttd_setup.image_size(vit.ttd.model_copy(update={"image_size": 96}), tower)


def test_what_is_compared(project: Path) -> None:
    train(project)
    params = params_of(project)
    figures, rows = evaluate_tags(params)
    assert set(figures["tags"]) >= {"image", "text", "pixel", "pixel_ttd"}
    assert all(set(figures["tags"][way]) == {"P", "R", "F1", "Acc"} for way in ("image", "text", "pixel", "pixel_ttd"))
    for row in ("frozen", "ttd"):
        assert 0 <= figures["caption_IoU"][row]["IoU"] <= 100
        assert figures["caption_IoU"][row]["threshold"] in {step / 20 for step in range(1, 20)}
    assert len(rows) == 4 * 19
    at_half = next(row for row in rows if row["scoring"] == "pixel" and row["threshold"] == 0.5)
    assert {key: at_half[key] for key in ("P", "R", "F1", "Acc")} == figures["tags"]["pixel"]


def test_scores_do_not_depend_on_the_batch(project: Path) -> None:
    params, table = params_of(project), CaptionTable.load(PATHS.captions("val"))
    ways = ["softmax_max", "image", "text", "cosine_minmax"]
    found = []
    for batch in (3, 10):
        machine = ttd_setup.machine(params.ttd, distributed.Compute.load().model_copy(update={"batch_size": batch}))
        found.append(Tags(ttd_setup.plain_teacher(params), params, machine).score(table, ways))
    for way in ways:
        assert len(found[0][way]) == sum(map(len, table.tags))
        np.testing.assert_allclose(found[0][way], found[1][way], atol=1e-4)


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from toy_captions import params_of
from clipdistill import distributed
from clipdistill.training.ttd_adapter import train_ttd
distributed.end_with_launcher()
train_ttd(params_of(Path(), recipe={recipe}), [])
"""

GENTLE = {"epochs": 3, "batch_size": 4, "precision": "fp32", "learning_rate": 0.001}


@pytest.mark.slow
def test_two_processes_follow_one(project: Path, tmp_path: Path) -> None:
    # At a rate at which nothing jumps over the threshold because of a last bit.
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(Path(__file__).parent), recipe=GENTLE))
    one = json.loads(train(project, recipe=GENTLE)[str(ttd_adapter.METRICS)])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    subprocess.run(command, check=True, cwd=project, env=environment, timeout=240)
    two = json.loads(ttd_adapter.METRICS.read_text())
    assert two["kept"] == one["kept"]
    for key in ("loss", "selected", "target_area"):
        assert two[key] == pytest.approx(one[key], rel=0.01)


def test_left_out_where_the_captions_are_not_the_teachers(project: Path) -> None:
    params = params_of(project)
    assert "drawn for the tiny CLIP" in str(left_out(params, params.ttd.captions.root))
    assert left_out(params, "data/raw/mine") is None
    own = params.model_copy(update={"clip": params.clip.model_copy(update={"source": "scenes"})})
    assert left_out(own, own.ttd.captions.root) is None
