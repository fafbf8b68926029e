"""The benchmark on published CLIP scores: its figures, and what it says of files it cannot use."""

import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

TOP = Path(__file__).resolve().parents[2]
SCRIPT = "published_cache"
CACHE = TOP / ".." / "shared" / "data" / "voc12_clip_rn50x64.npz"
needs_cache = pytest.mark.skipif(not CACHE.is_file(), reason=f"{CACHE.name} is not here")

# mAP in percent (incl, excl), measured independently of this project.
MEASURED = {
    "global, as stored": (85.87, 86.61),
    "alpha only": (86.02, 86.59),
    "final, zeta 0": (89.30, 90.08),
    "final, zeta 0.05": (89.31, 90.09),
    "final, any zeta >= 0.1": (83.85, 84.59),
    "global, temperature 1/100": (84.83, 85.34),
}


def made_up(path: Path, **changes: np.ndarray | None) -> Path:
    """Write a small file of the same form; None leaves an array out."""
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(4), size=(2, 30)).astype(np.float32)
    labels = np.eye(4, dtype=np.int8)[rng.integers(0, 4, 30)]
    arrays = {
        "global": first,
        "alpha": np.maximum(first, second),
        "beta": np.minimum(first, second),
        "global_cos_centred": first / 100,
        "labels": labels,
        "labels_nodifficult": labels,
        "temperature_used": np.array(2.0),
        "agg_thresholds": np.array([0.0, 0.5]),
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@needs_cache
def test_every_row_is_the_measured_one(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([str(CACHE)]) == 0
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    assert {row["label"] for row in result["rows"]} == set(MEASURED)
    for row in result["rows"]:
        assert (row["incl"], row["excl"]) == pytest.approx(MEASURED[row["label"]], abs=0.05)
    assert (result["images"], result["classes"]) == (5717, 20)
    assert result["gamma"]["0.05"] == pytest.approx(0.784, abs=0.001)
    assert all(share == 0 for zeta, share in result["gamma"].items() if float(zeta) >= 0.1)
    assert result["alpha"] == pytest.approx([0.0496, 0.0515], abs=1e-4)
    assert "90.30" in text
    assert "-2.02 against the global ones" in " ".join(text.split())


def test_figures_come_from_the_file(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made_up(tmp_path / "scores.npz")
    assert benchmark.main([str(path), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["images"], result["classes"], result["temperature"]) == (30, 4, 2.0)
    rows = {row["label"]: row["excl"] for row in result["rows"]}
    # Cosines that are the scores themselves, scaled: the same order within an image, not within a class.
    assert rows["global, as stored"] != rows["global, temperature 1/100"]
    assert result["gamma"]["0"] == 1.0
    assert 0 < result["gamma"]["0.5"] < 1


def _broken(path: Path, kind: str) -> Path:
    if kind == "text":
        path.write_text("no archive", encoding="utf-8")
    elif kind == "array":
        np.save(path.open("wb"), np.zeros(3))
    elif kind == "cut":
        made_up(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "other":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "text")
    elif kind == "pickle":
        made_up(path, labels=np.array([[{"a": 1}]], dtype=object))
    elif kind == "shape":
        made_up(path, beta=np.zeros((29, 4), np.float32))
    elif kind == "labels":
        made_up(path, labels=np.full((30, 4), 7, np.int8))
    elif kind == "lack":
        made_up(path, alpha=None)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "cannot be read (No such file or directory); give the path"),
        ("text", "is not a whole .npz file"),
        ("array", "is not a whole .npz file"),
        ("cut", "is not a whole .npz file"),
        ("other", "lacks global, alpha"),
        ("pickle", "is not a whole .npz file"),
        ("shape", "differ in shape"),
        ("labels", "labels must be 1, 0 or -1"),
        ("lack", "lacks alpha"),
    ],
)
def test_a_file_that_is_no_cache_is_named(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    path = _broken(tmp_path / "scores.npz", kind)
    assert benchmark.main([str(path)]) == 3
    captured = capsys.readouterr()
    assert str(path) in captured.err
    assert message in captured.err
    assert not captured.out
