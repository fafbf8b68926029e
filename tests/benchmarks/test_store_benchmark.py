"""The benchmark of storage layouts: its last line from real DVC repositories, its arithmetic, and its layouts."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zarr

SCRIPT = "store"
IMAGES, VIEWS, WIDTH = 6, 2, 8
TINY = f"--images {IMAGES} --views {VIEWS} --width {WIDTH} --shard-rows 4 --chunk-kib 1 --rounds 1".split()


@pytest.mark.slow
def test_last_line_says_what_was_measured(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = benchmark.layouts.every
    names = ["one .pt an image", "zarr, the project's", "zarr 4-row shards, 1 KiB chunks"]
    # DVC starts twice for each layout; the others are held by a test without it.
    monkeypatch.setattr(benchmark.layouts, "every", lambda *given: {name: every(*given)[name] for name in names})
    assert benchmark.main(TINY) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    found = result["layouts"]
    assert list(found) == names
    for row in found.values():
        assert set(row) == set(benchmark.FIGURES)
        assert row["dvc_add_s"] > 0
        assert row["dvc_push_s"] > 0
    assert found["one .pt an image"]["files"] == IMAGES
    # Three shards of four rows and the array's metadata; the project's one shard, two of metadata, and the manifest.
    assert found["zarr 4-row shards, 1 KiB chunks"]["files"] == 4
    assert found["zarr, the project's"]["files"] == 4
    assert result["raw_bytes"] == IMAGES * VIEWS * WIDTH * 2
    times = result["times_the_project"]
    assert times["files"] == pytest.approx(IMAGES / 4)
    pt, project = (found[name]["bytes"] for name in ("one .pt an image", "zarr, the project's"))
    assert times["bytes"] == pytest.approx(pt / project, abs=1e-3)
    assert "one .pt an image, times the project" in text


def test_summary_takes_medians_and_ratios(benchmark: ModuleType) -> None:
    def rows(*values: float) -> list[dict[str, float]]:
        return [dict.fromkeys(benchmark.FIGURES, value) for value in values]

    result = benchmark.summary({"one .pt an image": rows(6.0, 90.0, 8.0), "zarr, the project's": rows(2.0, 1.0, 2.0)})
    assert result["layouts"]["one .pt an image"] == dict.fromkeys(benchmark.FIGURES, 8.0)
    assert result["times_the_project"] == dict.fromkeys(benchmark.FIGURES, 4.0)


def test_layouts_hold_the_array_and_have_the_sizes_asked_for(benchmark: ModuleType, tmp_path: Path) -> None:
    array = benchmark.draw(64, 10, 16, seed=0)
    assert np.linalg.norm(array.astype(np.float64), axis=1) == pytest.approx(np.ones(640), abs=2e-3)
    every = benchmark.layouts.every(64, 10, [256, 100_000], [4])
    assert not any("100000" in name for name in every)
    for number, layout in enumerate(every.values()):
        layout.write(array, tmp_path / f"{number}")
        read = layout.open(tmp_path / f"{number}")
        np.testing.assert_array_equal(read(0, 640), array)
        np.testing.assert_array_equal(read(130, 140), array[130:140])
    place = dict(zip(every, (tmp_path / f"{number}" for number in range(len(every))), strict=True))
    sharded = zarr.open_array(str(place["zarr 256-row shards, 4 KiB chunks"]))
    assert (sharded.shards, sharded.chunks) == ((256, 16), (128, 16))
    single = zarr.open_array(str(place["zarr one shard, 4 KiB chunks"]))
    assert (single.shards, single.chunks) == ((640, 16), (128, 16))
    unsharded = zarr.open_array(str(place["zarr no shards, 4 KiB chunks"]))
    assert (unsharded.shards, unsharded.chunks) == (None, (128, 16))
    assert len(list(place["zarr no shards, 4 KiB chunks"].rglob("c/*/*"))) == 5


def test_a_layout_that_loses_rows_is_refused(benchmark: ModuleType, tmp_path: Path) -> None:
    real = benchmark.layouts.one_npy()
    lossy = benchmark.layouts.Layout(lambda array, folder: real.write(array[::-1], folder), real.open)

    class Empty:
        def new(self, folder: Path) -> None:
            folder.mkdir()

    array = benchmark.draw(4, 2, 8, seed=0)
    with pytest.raises(benchmark.ClipdistillError, match="what was read is not what was written"):
        benchmark.once(lossy, array, 2, Empty(), tmp_path / "repository")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--images", "0", "--images: 0 is too small, 1 is the least"),
        ("--shard-rows", "16 0", "--shard-rows: [16, 0] is too small, 1 is the least"),
        ("--seed", "-1", "--seed: -1 is too small, 0 is the least"),
    ],
)
def test_a_wrong_option_is_named(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert benchmark.main([*TINY, option, *value.split()]) == 2
    assert message in capsys.readouterr().err
