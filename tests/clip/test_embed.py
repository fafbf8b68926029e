from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipdistill import store
from clipdistill.clip import embed, teacher, views
from clipdistill.clip.encoder import ImageEncoder
from clipdistill.clip.pixels import ViewSource
from clipdistill.clip.preprocessing import ViewTransform, normalise
from clipdistill.datasets.images import UnreadableImageError
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import TeacherError
from clipdistill.params import ClipParams, SnippetViewParams
from clipdistill.work import WORK_ROOT_VARIABLE
from opened_images import record_opened

BATCH = 16


@pytest.fixture
def tiny(tiny_weights: Path) -> teacher.Teacher:
    return teacher.load(ClipParams(), tiny_weights.parent)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embed, "_MIN_ROWS", 64)
    monkeypatch.setattr(embed, "_ROW_UNIT", 16)
    monkeypatch.setenv(WORK_ROOT_VARIABLE, str(tmp_path / "work"))
    torch.set_num_threads(1)


def run(
    stage: str,
    tiny: teacher.Teacher,
    table: ImageTable,
    boxes: views.ViewTable,
    order: list[list[int]],
    out: Path,
    lanes: int = 1,
) -> store.Group:
    """Fill shards in the given order, a new process's objects for each list, and seal."""
    encoder = ImageEncoder(tiny, "fp32", torch.device("cpu"))
    for shards in order:
        work = embed.prepare(stage, tiny, table, boxes, {"kind": "test"})
        source = ViewSource(table, boxes, ViewTransform(tiny.preprocessing, "squash"), threads=2)
        embed.fill(work, shards, source, encoder, BATCH, lanes, lambda _count: None)
    work.seal(out)
    return store.read_group(out, {"table": table.fingerprint})


def test_bytes_do_not_depend_on_order_or_number_of_processes(
    tiny: teacher.Teacher, photos: ImageTable, tmp_path: Path
) -> None:
    boxes = views.snippets(photos, SnippetViewParams(grid=2))
    assert embed.prepare("count", tiny, photos, boxes, {}).shards == 4
    run("a", tiny, photos, boxes, [[0, 1, 2, 3]], tmp_path / "a.zarr")
    run("b", tiny, photos, boxes, [[3, 1], [2], [0]], tmp_path / "b.zarr")
    manifests = [(tmp_path / name / store.MANIFEST).read_bytes() for name in ("a.zarr", "b.zarr")]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("lanes", [2, 3])
def test_bytes_do_not_depend_on_the_number_of_lanes(
    tiny: teacher.Teacher, photos: ImageTable, tmp_path: Path, lanes: int
) -> None:
    boxes = views.snippets(photos, SnippetViewParams(tile=23))
    every = list(range(embed.prepare("a", tiny, photos, boxes, {"kind": "test"}).shards))
    run("a", tiny, photos, boxes, [every], tmp_path / "one.zarr")
    run("b", tiny, photos, boxes, [every], tmp_path / "several.zarr", lanes)
    manifests = [(tmp_path / name / store.MANIFEST).read_bytes() for name in ("one.zarr", "several.zarr")]
    assert manifests[0] == manifests[1]


def test_a_lane_leaves_the_threads_of_others_alone(tiny: teacher.Teacher) -> None:
    torch.set_num_threads(2)
    with ImageEncoder(tiny, "fp32", torch.device("cpu")).lanes(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 2


def test_the_compiled_encoder_pads_a_short_batch_and_agrees(tiny: teacher.Teacher) -> None:
    pixels = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = ImageEncoder(tiny, "fp32", torch.device("cpu"))
    compiled = ImageEncoder(tiny, "fp32", torch.device("cpu"), compiled_batch=8)
    with compiled.lanes(1) as pool:
        found = pool.submit(compiled, pixels).result()
    np.testing.assert_allclose(found.astype(np.float32), plain(pixels).astype(np.float32), atol=2e-3)


def test_ragged_views_equal_one_view_at_a_time(tiny: teacher.Teacher, photos: ImageTable, tmp_path: Path) -> None:
    boxes = views.snippets(photos, SnippetViewParams(tile=23))
    assert boxes.uniform_count is None
    work = embed.prepare("ragged", tiny, photos, boxes, {})
    group = run("ragged", tiny, photos, boxes, [list(range(work.shards))], tmp_path / "out.zarr")
    found = group.read("embedding").astype(np.float32)
    np.testing.assert_array_equal(group.read("box"), boxes.box)
    np.testing.assert_array_equal(group.read("offset"), boxes.offset)
    transform = ViewTransform(tiny.preprocessing, "squash")
    for row in (0, 5, 64, len(boxes) - 1):
        image = int(np.searchsorted(boxes.offset, row, side="right")) - 1
        pixels = torch.from_numpy(transform(photos.open(image), boxes.box[row : row + 1]))
        with torch.inference_mode():
            values = normalise(pixels.permute(0, 3, 1, 2), tiny.preprocessing)
            alone = F.normalize(tiny.model.encode_image(values), dim=-1)
        np.testing.assert_allclose(found[row], alone[0].numpy(), atol=2e-3)


@pytest.mark.parametrize("params", [SnippetViewParams(grid=2), SnippetViewParams(tile=23), SnippetViewParams(grid=5)])
def test_every_image_is_decoded_once(
    tiny: teacher.Teacher,
    photos: ImageTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: SnippetViewParams,
) -> None:
    """Even where its views are in two batches, or in two shards."""
    opened = record_opened(monkeypatch)
    boxes = views.snippets(photos, params)
    every = list(range(embed.prepare("once", tiny, photos, boxes, {"kind": "test"}).shards))
    run("once", tiny, photos, boxes, [every], tmp_path / "out.zarr")
    assert sorted(opened) == list(range(60))


def test_bf16_stays_close_to_fp32(tiny: teacher.Teacher, tiny_weights: Path) -> None:
    pixels = torch.randint(0, 256, (32, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = ImageEncoder(tiny, "fp32", torch.device("cpu"))(pixels).astype(np.float32)
    fast = ImageEncoder(teacher.load(ClipParams(), tiny_weights.parent), "bf16", torch.device("cpu"))(pixels)
    assert (exact * fast.astype(np.float32)).sum(axis=1).min() > 0.999


def test_nan_from_the_encoder_is_refused_with_advice(tiny: teacher.Teacher) -> None:
    encoder = ImageEncoder(tiny, "fp16", torch.device("cpu"))
    with torch.no_grad():
        tiny.model.visual.head.proj.weight.fill_(float("inf"))
    with pytest.raises(TeacherError, match="NaN or infinity in float16: use bf16"):
        encoder(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))


def test_an_image_that_changed_since_the_table_is_noticed(
    tiny: teacher.Teacher, photos: ImageTable, tmp_path: Path
) -> None:
    changed = photos.root / photos.paths[7]
    changed.write_bytes(changed.read_bytes() + b"more")
    with pytest.raises(UnreadableImageError, match=r"007\.png: its bytes have changed"):
        run("changed", tiny, photos, views.whole(photos), [[0]], tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("count", [1, 100, 5_717, 740_000, 60_000_000])
@pytest.mark.parametrize("per_image", [1, 9, 64])
def test_shards_are_few_and_whole(monkeypatch: pytest.MonkeyPatch, count: int, per_image: int) -> None:
    monkeypatch.undo()
    images = -(-count // per_image)
    boxes = views.ViewTable(np.zeros((images * per_image, 0), np.float32), np.arange(images + 1) * per_image)
    rows = embed.shard_rows(boxes)
    assert rows % (64 * per_image) == 0
    assert len(boxes) / rows <= 64 or rows >= 65_536
    assert rows <= 65_536 + 64 * per_image


def test_an_image_of_more_views_than_a_shard_holds_is_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    boxes = views.ViewTable(np.zeros((600_000, 0), np.float32), np.arange(4) * 200_000)
    assert embed.shard_rows(boxes) == 9_408
