import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from toy_open import (
    CLASSES,
    LABELS,
    PATHS,
    SEEN,
    UNSEEN,
    VIT,
    ToyData,
    ToyTeacher,
    lay_out,
    make_data,
    make_params,
    make_teacher,
    toy_cosines,
    train,
    truth,
    write_embeddings,
    write_pseudo_labels,
)
from toy_training import Presence, before_update, compute_here_on_one_thread, contents

from clipdistill import distributed, store
from clipdistill.clip import open_folder, teacher
from clipdistill.clip.open_folder import OpenStudent
from clipdistill.clip.prompts import embed_prompts
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.methods import mkt
from clipdistill.params import Params
from clipdistill.students import context, tokens, untrained
from clipdistill.training import checkpoint, mkt_student, optimise
from clipdistill.training.mkt_predict import ROWS, Asked, predict_open, score_images
from clipdistill.training.mkt_prompt import tune_prompt
from clipdistill.training.mkt_student import RankingLabels, train_mkt
from clipdistill.training.mkt_vocabulary import read_vocabulary
from clipdistill.work import WORK_ROOT_VARIABLE

SMALL = {"student": {"image_size": 32}}
"""What the vision transformer takes, and also the smallest that the other tower does."""


class PowerCutError(Exception):
    """What stops a run in these tests."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A training that tests only read.

    Attributes:
        folder: top.
        params: its parameters.
    """

    folder: Path
    params: Params


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_here_on_one_thread(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ToyData:
    return make_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ToyTeacher:
    """The project's own architecture: a residual network with batch normalisation."""
    return make_teacher(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ToyTeacher:
    return make_teacher(tmp_path_factory.mktemp("teachers"), VIT)


@pytest.fixture(scope="module")
def finished(data: ToyData, clip: ToyTeacher, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Both stages of the residual network, and what `embed@global` leaves."""
    folder, params = tmp_path_factory.mktemp("finished"), make_params(clip)
    with pytest.MonkeyPatch.context() as patch:
        compute_here_on_one_thread(folder, patch)
        patch.setenv(WORK_ROOT_VARIABLE, str(folder / "work"))
        lay_out(data)
        for split, (table, _) in (("train", data.train), ("val", data.val)):
            write_embeddings(split, table, clip)
        train(params)
    return Finished(folder, params)


@pytest.fixture(scope="module")
def small(data: ToyData, vit: ToyTeacher, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file that both stages leave of the vision transformer."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        compute_here_on_one_thread(folder, patch)
        patch.setenv(WORK_ROOT_VARIABLE, str(folder / "work"))
        return results(folder, data, make_params(vit, **SMALL))


@pytest.fixture
def at_finished(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Finished:
    monkeypatch.chdir(finished.folder)
    return finished


def results(
    folder: Path,
    data: ToyData,
    params: Params,
    prepare: Callable[[], None] = lambda: None,
    **layout: Any,  # noqa: ANN401
) -> dict[str, bytes]:
    """Every file that both stages leave when they run below a folder."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lay_out(data, **layout)
        prepare()
        train(params)
        return contents(PATHS.cache / "students") | contents(Path("metrics"))


def inverted(presence: Presence, columns: list[int]) -> Presence:
    """Ground truth of the open vocabulary that is false in some columns."""
    found = truth(presence)
    found[:, columns] = 1 - found[:, columns]
    return found


def pseudo_labels(presence: Presence) -> npt.NDArray[np.float32]:
    """Unsure labels of CLASSES: red, blue, green."""
    return (0.2 + 0.6 * presence[:, [0, 2, 1]]).astype(np.float32)


def tower(student: OpenStudent) -> dict[str, torch.Tensor]:
    return dict(student.model.visual.state_dict())


# What training may see.


def test_the_artifact_of_seen_labels_holds_no_unseen_column(data: ToyData) -> None:
    lay_out(data)
    group = store.read_group(PATHS.labels("ground_truth"))
    assert group.provenance["classes"] == [item.name for item in SEEN]
    np.testing.assert_array_equal(group.read("labels"), truth(data.train[1])[:, :3])
    before = contents(PATHS.labels("ground_truth"))
    lay_out(data, train_truth=inverted(data.train[1], [3, 4]))
    assert contents(PATHS.labels("ground_truth")) == before


def test_ground_truth_of_unseen_labels_changes_no_byte(
    data: ToyData, vit: ToyTeacher, small: dict[str, bytes], tmp_path: Path
) -> None:
    params = make_params(vit, **SMALL)
    assert small == results(tmp_path / "false", data, params, train_truth=inverted(data.train[1], [3, 4]))
    other = results(tmp_path / "seen", data, params, train_truth=inverted(data.train[1], [0]))
    for student in ("mkt", "mkt_prompted"):
        assert other[f"{student}/open_student.safetensors"] != small[f"{student}/open_student.safetensors"]


@pytest.mark.parametrize("kept", [[], UNSEEN[1:]])
def test_unseen_labels_that_are_removed_change_no_byte(
    data: ToyData, vit: ToyTeacher, small: dict[str, bytes], tmp_path: Path, kept: list[Any]
) -> None:
    assert small == results(tmp_path, data, make_params(vit, **SMALL), labels=SEEN + kept)


@pytest.mark.parametrize("supervision", ["ground_truth", "global", "cdul"])
def test_no_word_of_an_unseen_label_reaches_the_text_encoder(
    data: ToyData, vit: ToyTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervision: str
) -> None:
    lay_out(data)
    if supervision != "ground_truth":
        write_pseudo_labels(supervision, data.train[0], pseudo_labels(data.train[1]))
    read: list[str] = []
    rows: list[int] = []
    encode, build = SimpleTokenizer.encode, mkt_student.OpenDesign.build

    def watched(self: SimpleTokenizer, text: str) -> list[int]:
        read.append(text)
        return encode(self, text)

    def built(self: mkt_student.OpenDesign, columns: int, seed: int) -> Any:  # noqa: ANN401
        rows.append(len(self.text))
        return build(self, columns, seed)

    monkeypatch.setattr(SimpleTokenizer, "encode", watched)
    monkeypatch.setattr(mkt_student.OpenDesign, "build", built)
    params = make_params(vit, supervision=supervision, **SMALL)
    train(params)
    expected = [item for item in (SEEN if supervision == "ground_truth" else CLASSES) if item.name != "blue"]
    assert {item.prompt for item in expected} < set(read)
    assert not {text for text in read for item in UNSEEN if item.name in text or item.prompt in text}
    assert rows == [len(expected)]
    for student in (PATHS.student("mkt"), PATHS.mkt_prompted):
        card = open_folder.load(student).card
        assert card.seen == [item.name for item in expected]
        assert card.provenance["supervised_by"] == supervision


@pytest.mark.parametrize("method", ["global", "cdul"])
def test_pseudo_labels_are_shares_among_the_seen_classes_alone(data: ToyData, vit: ToyTeacher, method: str) -> None:
    cosines = toy_cosines(data.train[1])
    lay_out(data, cosines=cosines)
    write_pseudo_labels(method, data.train[0], pseudo_labels(data.train[1]))
    params = make_params(vit, supervision=method).mkt
    found = read_vocabulary(params, PATHS, data.train[0])
    assert (found.names, found.prompts) == (["red", "green"], ["red square", "green square"])
    # Both snippets are the whole image here, so that all labels are those of the whole image.
    wanted = torch.softmax(20 * torch.from_numpy(cosines[:, [0, 2]]), dim=1).numpy()
    np.testing.assert_allclose(found.labels, wanted, atol=1e-5)
    cosines[:, 1] = 0.9
    lay_out(data, cosines=cosines)
    np.testing.assert_array_equal(read_vocabulary(params, PATHS, data.train[0]).labels, found.labels)


def test_labels_that_unseen_classes_had_a_part_in_are_refused(data: ToyData, vit: ToyTeacher) -> None:
    lay_out(data)
    write_pseudo_labels("ccd", data.train[0], pseudo_labels(data.train[1]))
    with pytest.raises(ParamsError, match=r"mkt\.supervision: .* ccd were made with unseen classes, such as 'blue'"):
        read_vocabulary(make_params(vit, supervision="ccd").mkt, PATHS, data.train[0])


def test_a_lone_seen_label_is_refused(data: ToyData, vit: ToyTeacher) -> None:
    lay_out(data, labels=[SEEN[0], *(replace(item, seen=False) for item in SEEN[1:]), *UNSEEN])
    with pytest.raises(ParamsError, match=f"'{SEEN[0].name}' is the only seen one; name more classes"):
        read_vocabulary(make_params(vit).mkt, PATHS, data.train[0])


def test_pseudo_labels_of_unseen_classes_change_no_byte(data: ToyData, vit: ToyTeacher, tmp_path: Path) -> None:
    params = make_params(vit, supervision="global", **SMALL)
    cosines = toy_cosines(data.train[1])
    other = cosines.copy()
    other[:, 1] = 0.9 - other[:, 1]
    runs = [results(tmp_path / name, data, params, cosines=own) for name, own in (("a", cosines), ("b", other))]
    assert runs[0] == runs[1]


def test_a_label_that_has_become_unseen_is_refused(data: ToyData, vit: ToyTeacher) -> None:
    lay_out(data)
    stale = contents(PATHS.labels("ground_truth"))
    lay_out(data, labels=[SEEN[0], SEEN[2], replace(SEEN[1], seen=False), *UNSEEN])
    for name, content in stale.items():
        path = PATHS.labels("ground_truth") / name
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"ground_truth\.zarr has a label 'green', which .*dvc repro"):
        train_mkt(make_params(vit, **SMALL), ["none"])


# The same again.


def test_equal_inputs_give_equal_bytes(finished: Finished, data: ToyData, tmp_path: Path) -> None:
    again = results(tmp_path, data, finished.params)
    assert again == contents(finished.folder / PATHS.cache / "students") | contents(finished.folder / "metrics")


@pytest.mark.parametrize("update", [4, 7, 11])
def test_goes_on_as_if_nothing_had_been(
    data: ToyData, vit: ToyTeacher, small: dict[str, bytes], tmp_path: Path, work_root: Path, update: int
) -> None:
    """Three updates an epoch, two epochs a stage: in the second epoch of either, and between the stages."""
    params = make_params(vit, **SMALL)

    def stop(number: int) -> None:
        if number == update:
            raise PowerCutError

    with pytest.MonkeyPatch.context() as patch:
        before_update(stop, patch)
        with pytest.raises(PowerCutError):
            results(tmp_path / "again", data, params)
    assert bool(list(work_root.rglob(checkpoint.FILE))) == (update in (4, 11))
    torch.rand(3)
    assert results(tmp_path / "again", data, params) == small
    assert not list(work_root.rglob(checkpoint.FILE))


@pytest.mark.slow
def test_two_processes_train_as_one_does(data: ToyData, clip: ToyTeacher, tmp_path: Path) -> None:
    recipe = {"optimiser": "sgd", "schedule": "constant", "learning_rate": 1e-3}
    params = make_params(clip, recipe)
    start = teacher.load(params.clip).model
    lay_out(data)
    script = Path(__file__).with_name("toy_open.py")
    distributed.launch([str(script), json.dumps(params.model_dump(by_alias=True))], 2)
    students = {"two": [open_folder.load(PATHS.student("mkt")), open_folder.load(PATHS.mkt_prompted)]}
    train(params)
    students["one"] = [open_folder.load(PATHS.student("mkt")), open_folder.load(PATHS.mkt_prompted)]
    way = {
        name: torch.cat([(own - first).flatten() for own, first in zip(*parameters, strict=True)])
        for name, (student, _) in students.items()
        for parameters in [(list(student.model.visual.parameters()), list(start.visual.parameters()))]
    }
    assert (way["two"] - way["one"]).norm() < 0.03 * way["one"].norm()
    contexts = [tuned.context - first.context for first, tuned in students.values()]
    assert contexts[0].norm() > 0
    assert (contexts[0] - contexts[1]).norm() < 0.03 * contexts[1].norm()
    assert students["two"][1].card.shift == pytest.approx(students["one"][1].card.shift, abs=1e-3)
    for key, value in students["two"][1].model.state_dict().items():
        assert torch.equal(value, students["two"][0].model.state_dict()[key])


# The first stage.


def test_frozen_layers_stay_with_their_statistics(at_finished: Finished) -> None:
    start = teacher.load(at_finished.params.clip).model
    student = open_folder.load(PATHS.student("mkt"))
    before, after = start.visual.state_dict(), tower(student)
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    # Three layers: the projection and the two uppermost stages.
    upper = {key for key in after if key.startswith(("head.", "trunk.layer4.", "trunk.layer3."))}
    assert moved <= upper
    assert {key for key in upper if key.endswith("running_mean")} <= moved
    assert {key for key, _ in start.visual.named_parameters()} & upper == {
        key for key, _ in start.visual.named_parameters()
    } & moved
    texts = {key: value for key, value in start.state_dict().items() if not key.startswith("visual.")}
    assert all(torch.equal(student.model.state_dict()[key], value) for key, value in texts.items())


@pytest.mark.parametrize(("unlock", "trained"), [(1, ["head"]), ("all", ["head", "trunk"])])
def test_unlock_says_what_is_trained(data: ToyData, clip: ToyTeacher, unlock: object, trained: list[str]) -> None:
    params = make_params(clip, {"epochs": 1}, unlock=unlock, **SMALL)
    lay_out(data)
    train(params, tune=False)
    before, after = teacher.load(params.clip).model.visual.state_dict(), tower(open_folder.load(PATHS.student("mkt")))
    moved = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert sorted(moved) == trained
    assert torch.equal(after["trunk.bn1.running_mean"], before["trunk.bn1.running_mean"]) == (unlock == 1)


def design_of(params: Params, table: ImageTable) -> mkt_student.OpenDesign:
    vocabulary = read_vocabulary(params.mkt, PATHS, table)
    return mkt_student._design(params, teacher.load(params.clip), vocabulary, table)


def test_rates_fall_from_layer_to_layer(data: ToyData, vit: ToyTeacher) -> None:
    lay_out(data)
    recipe = {"learning_rate": 0.1, "head_factor": 3.0}
    params = make_params(vit, recipe, unlock=3, layer_decay=0.5, **SMALL)
    student = design_of(params, data.train[0]).build(len(SEEN), seed=0)
    layers = tokens.layers(student.eyes.tower)
    expected = {
        id(parameter): rate
        for rate, layer in ((0.3, layers[-1]), (0.05, layers[-2]), (0.025, layers[-3]))
        for parameter in layer
    }
    groups = optimise.parameter_groups(student, params.mkt.recipe)
    found = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    assert found == pytest.approx(expected)
    assert set(found) == {id(parameter) for parameter in student.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["off", "online", "cached"])
def test_distillation_pulls_towards_what_it_names(data: ToyData, clip: ToyTeacher, kind: str) -> None:
    lay_out(data)
    cached = write_embeddings("train", data.train[0], clip)
    distil = {"weight": 0.0} if kind == "off" else {"weight": 2.0, "teacher": kind}
    params = make_params(clip, distil=distil, **SMALL)
    design = design_of(params, data.train[0])
    supervision = mkt_student._supervision(params.mkt, design, PATHS, data.train[0])
    generator = torch.Generator().manual_seed(0)
    images, seen = torch.randn(3, 3, 32, 32, generator=generator), torch.randn(3, 64, generator=generator)
    rows = torch.tensor([4, 0, 9])
    found = supervision.further_loss(images, seen, rows)
    if kind == "off":
        assert found is None
        return
    assert found is not None
    if kind == "online":
        taught = mkt_student.eyes_of(design.teacher, 32).eval()(images)[0]
    else:
        taught = torch.from_numpy(cached)[rows] * seen.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, 2 * (seen - taught).abs().mean())


def test_distillation_keeps_the_tower_nearer_to_the_teacher(data: ToyData, vit: ToyTeacher, tmp_path: Path) -> None:
    """The same steps with and without: what else is learnt is the same."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    start = teacher.load(make_params(vit).clip).model
    away = []
    for weight in (0.0, 100.0):
        lay_out(data)
        train(make_params(vit, {"epochs": 4}, distil={"weight": weight}, **SMALL), tune=False)
        student = open_folder.load(PATHS.student("mkt")).model
        away.append(float(mkt.distillation(student.encode_image(images), start.encode_image(images))))
    assert 0 < away[1] < 0.5 * away[0]


def test_a_cached_embedding_teaches_a_student(data: ToyData, clip: ToyTeacher) -> None:
    lay_out(data)
    write_embeddings("train", data.train[0], clip)
    train(make_params(clip, {"epochs": 1}, distil={"teacher": "cached"}, **SMALL), tune=False)
    card = open_folder.load(PATHS.student("mkt")).card
    assert card.provenance["supervision"]["cached"]
    assert card.provenance["supervision"]["distil"] == {"weight": 1.0, "teacher": "cached"}


def test_cached_embeddings_of_another_teacher_are_refused(data: ToyData, clip: ToyTeacher, tmp_path: Path) -> None:
    lay_out(data)
    write_embeddings("train", data.train[0], make_teacher(tmp_path / "other", seed=1))
    with pytest.raises(ArtifactError, match=r"train/global\.zarr is of another teacher: run `dvc repro`"):
        train_mkt(make_params(clip, distil={"teacher": "cached"}, **SMALL), ["none"])
    assert not PATHS.student("mkt").exists()


def test_a_tower_with_places_takes_its_own_images_alone(data: ToyData, vit: ToyTeacher) -> None:
    lay_out(data)
    message = r"mkt\.student\.image_size: toy-vit takes images of 32 pixels alone, found 64; set it to clip"
    with pytest.raises(ParamsError, match=message):
        train_mkt(make_params(vit), ["none"])
    train(make_params(vit, {"epochs": 1}, student={"image_size": "clip"}))
    assert open_folder.load(PATHS.mkt_prompted).card.image_size == 32


def test_without_ground_truth_there_is_no_student(data: ToyData, vit: ToyTeacher) -> None:
    unknown = truth(data.train[1])
    unknown[:, :3] = -1
    lay_out(data, train_truth=unknown)
    train(make_params(vit, **SMALL))
    for folder, name in ((PATHS.student("mkt"), "mkt"), (PATHS.mkt_prompted, "mkt_prompted")):
        assert "no ground truth of a seen label" in (untrained.reason(folder) or "")
        assert list(contents(folder)) == [untrained.NOTE]
        assert json.loads((PATHS.curves(name) / "metrics.json").read_text()) == {}


def test_labels_that_are_unknown_are_left_out(data: ToyData, vit: ToyTeacher, tmp_path: Path) -> None:
    """Half of a column is unknown: what stands there does not matter, and the rest is learnt."""
    partly = truth(data.train[1])
    partly[::2, 0] = -1
    lay_out(data, train_truth=partly)
    train(make_params(vit, **SMALL))
    scores = predict_here(make_params(vit, **SMALL), data, vit)
    assert np.isfinite(scores["student"]).all()


@pytest.mark.parametrize("loss", ["log_sum_exp", "rank"])
@pytest.mark.parametrize("norm", ["cosine", "label"])
def test_every_loss_and_score_is_learnt(data: ToyData, vit: ToyTeacher, loss: str, norm: str) -> None:
    lay_out(data)
    recipe = {"epochs": 12, "learning_rate": 3e-3, "schedule": "constant", "batch_size": 20}
    train(make_params(vit, recipe, loss=loss, norm=norm, unlock="all", distil={"weight": 0.0}, **SMALL), tune=False)
    lines = (PATHS.curves("mkt") / "plots" / "metrics" / "loss.tsv").read_text().splitlines()[1:]
    losses = [float(line.split("\t")[1]) for line in lines]
    assert losses[-1] < 0.95 * losses[0]


def test_a_network_of_timm_starts_from_a_file(data: ToyData, vit: ToyTeacher, tmp_path: Path) -> None:
    torch.manual_seed(5)
    trunk = timm.create_model("resnet10t", num_classes=7).state_dict()
    path = tmp_path / "trunk.safetensors"
    save_file(trunk, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    chosen = {"backbone": "resnet10t", "weights": str(path), "sha256": digest, "image_size": 32}
    params = make_params(vit, {"epochs": 1}, unlock=1, student=chosen)
    lay_out(data)
    train(params)
    student = open_folder.load(PATHS.mkt_prompted)
    assert student.card.backbone_weights == f"trunk.safetensors sha256:{digest}"
    assert student.card.mean == list(timm.get_pretrained_cfg("resnet10t").mean)
    assert all(
        torch.equal(value, trunk[key.removeprefix("trunk.")])
        for key, value in tower(student).items()
        if key.startswith("trunk.")
    )
    scores = predict_here(params, data, vit)
    assert set(scores) == {f"{row}{kind}" for row in ROWS for kind in ("", "_zsl")}


def test_weights_of_a_network_of_timm_are_compared_with_their_hash(
    data: ToyData, vit: ToyTeacher, tmp_path: Path
) -> None:
    path = tmp_path / "trunk.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), path)
    chosen = {"backbone": "resnet10t", "weights": str(path), "sha256": "0" * 64, "image_size": 32}
    lay_out(data)
    with pytest.raises(ArtifactError, match=r"mkt\.student\.sha256 is 0000.*nothing was loaded"):
        train_mkt(make_params(vit, student=chosen), ["none"])


# The second stage.


def test_prompt_tuning_moves_the_context_alone(at_finished: Finished) -> None:
    first, tuned = open_folder.load(PATHS.student("mkt")), open_folder.load(PATHS.mkt_prompted)
    for key, value in first.model.state_dict().items():
        assert torch.equal(tuned.model.state_dict()[key], value)
    clip = teacher.load(at_finished.params.clip)
    assert torch.equal(first.context, context.first_context(clip.model, clip.tokenizer, "a photo of a {}."))
    assert tuned.context.shape == first.context.shape
    assert bool((tuned.context != first.context).any(dim=1).all())
    changed = {"tuned", "shift", "provenance", "sha256"}
    cards = [student.card.model_dump(exclude=changed) for student in (first, tuned)]
    assert cards[0] == cards[1]
    assert (first.card.tuned, tuned.card.tuned) == (False, True)
    assert tuned.card.provenance["prompt_tuning"]["student"]["student"] == first.card.sha256


def test_the_chosen_shift_separates_best(at_finished: Finished, data: ToyData) -> None:
    require_best_shift(at_finished.params, data)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_a_shift_far_from_all_scores_is_mended(
    finished: Finished, data: ToyData, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """A tower that knew nothing at first has no other: its sigmoids are all 1 in float32, or all 0."""
    lay_out(data)
    student = open_folder.load(finished.folder / PATHS.student("mkt"))
    far = student.card.model_copy(update={"shift": shift, "scale": 100.0})
    open_folder.save(PATHS.student("mkt"), replace(student, card=far))
    tune_prompt(finished.params, ["none"])
    require_best_shift(finished.params, data)


def require_best_shift(params: Params, data: ToyData) -> None:
    """Of all cuts through the scores of the training images, the student's has the highest F1."""
    student = open_folder.load(PATHS.mkt_prompted)
    text = student.embed([item.prompt for item in SEEN])
    asked = {"all": (Asked(student.eyes(), text, student.scoring), torch.arange(len(text)))}
    scores = score_images(asked, data.train[0], 64, params, distributed.Compute.load())["all"]
    labels = truth(data.train[1])[:, :3] > 0
    best = max(f1(scores, labels, cut) for cut in np.unique(scores))
    assert f1(scores, labels, student.card.shift) == pytest.approx(best)
    logits = student.card.scale * (scores - student.card.shift)
    assert 0 < (logits > 0).mean() < 1


def f1(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.bool_], cut: float) -> float:
    """F1 over all labels and images together."""
    found = scores >= cut
    return 2 * (found & labels).sum() / (found.sum() + labels.sum())


def test_prompt_tuning_lowers_its_loss(data: ToyData, vit: ToyTeacher) -> None:
    lay_out(data)
    tune = {"epochs": 12, "batch_size": 20, "learning_rate": 0.03}
    train(make_params(vit, {"schedule": "constant"}, tune=tune, **SMALL))
    lines = (PATHS.curves("mkt_prompted") / "plots" / "metrics" / "loss.tsv").read_text().splitlines()[1:]
    losses = [float(line.split("\t")[1]) for line in lines]
    assert losses[-1] < losses[0]


# Scores.


def predict_here(params: Params, data: ToyData, clip: ToyTeacher) -> dict[str, npt.NDArray[np.float32]]:
    width = 32 if clip.model == VIT else 64
    write_embeddings("val", data.val[0], clip, width)
    return predict_open(params, distributed.Compute.load())


def test_scores_of_all_labels_and_of_the_unseen_ones(at_finished: Finished, data: ToyData) -> None:
    scores = predict_open(at_finished.params, distributed.Compute.load())
    assert set(scores) == {f"{row}{kind}" for row in ROWS for kind in ("", "_zsl")}
    for row in ROWS:
        assert scores[row].shape == (12, 5)
        assert scores[row].dtype == np.float32
        # A cosine is the label's own, whoever else is asked for.
        np.testing.assert_allclose(scores[f"{row}_zsl"], scores[row][:, 3:], atol=1e-6)
    assert np.abs(scores["student"] - scores["untuned"]).max() > 1e-4
    assert np.abs(scores["untuned"] - scores["teacher"]).max() > 1e-4


def test_scores_of_frozen_clip_are_its_own(at_finished: Finished, data: ToyData) -> None:
    scores = predict_open(at_finished.params, distributed.Compute.load())
    clip = teacher.load(at_finished.params.clip)
    text = embed_prompts(clip, [item.prompt for item in LABELS], ["a photo of a {}."])
    cached = store.read_group(PATHS.embeddings("val", "global")).read("embedding")
    np.testing.assert_allclose(scores["teacher_global"], cached @ text.numpy().T, atol=1e-6)
    own = mkt_student.eyes_of(clip, 64).eval()
    asked = {"teacher": (Asked(own, text, open_folder.load(PATHS.mkt_prompted).scoring), torch.arange(5))}
    again = score_images(asked, data.val[0], 64, at_finished.params, distributed.Compute.load())["teacher"]
    np.testing.assert_allclose(scores["teacher"], again, atol=1e-5)


def test_scores_over_a_list_depend_on_the_list(data: ToyData, vit: ToyTeacher) -> None:
    params = make_params(vit, norm="label", **SMALL)
    lay_out(data)
    train(params)
    scores = predict_here(params, data, vit)
    for row in ("student", "untuned", "teacher"):
        assert np.abs(scores[f"{row}_zsl"] - scores[row][:, 3:]).max() > 1e-2
    np.testing.assert_allclose(scores["teacher_global_zsl"], scores["teacher_global"][:, 3:], atol=1e-6)


def test_without_unseen_labels_there_are_no_scores_of_them(data: ToyData, vit: ToyTeacher) -> None:
    params = make_params(vit, **SMALL)
    lay_out(data, labels=SEEN)
    train(params)
    assert set(predict_here(params, data, vit)) == set(ROWS)


def test_scores_need_the_student_of_the_teacher(at_finished: Finished, tmp_path: Path, data: ToyData) -> None:
    other = make_params(make_teacher(tmp_path / "other", seed=1))
    with pytest.raises(ArtifactError, match=r"students/mkt is of another teacher than clip\.\*: run `dvc repro`"):
        predict_open(other, distributed.Compute.load())


def test_tuning_needs_a_student(data: ToyData, vit: ToyTeacher) -> None:
    lay_out(data)
    with pytest.raises(ArtifactError, match=r"students/mkt/open_student\.yaml is missing"):
        tune_prompt(make_params(vit, **SMALL), ["none"])


def test_the_hinge_is_one_of_scores_and_not_of_logits(data: ToyData, vit: ToyTeacher) -> None:
    params = make_params(vit, loss="rank", margin=0.1)
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) / 10
    labels = torch.tensor([[1.0, 0, 0], [0, 1, -1], [1, 1, 1], [-1, 0, 1]])
    scoring = mkt_student.Scoring(2, "cosine", 0.5, scale=20.0)
    found = RankingLabels(params.mkt, scoring, None, None).loss(labels, 20 * scores, torch.arange(4))
    torch.testing.assert_close(found, mkt.rank_loss(scores, labels, 0.1))
