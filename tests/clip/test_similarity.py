from pathlib import Path

import numpy as np
import pytest
import torch

from clipdistill import layout, store
from clipdistill.clip import similarity
from clipdistill.clip.similarity import write_similarity
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ArtifactError

TEACHER = {"model": "m", "weights": "w", "quick_gelu": False}
RNG = np.random.default_rng(0)


def unit(rows: int) -> np.ndarray:
    values = RNG.normal(size=(rows, 16))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def embeddings(path: Path, images: ImageTable, per_image: int, **changes: object) -> np.ndarray:
    values = unit(len(images) * per_image).astype(np.float16)
    offset = np.arange(len(images) + 1) * per_image
    provenance = {**TEACHER, "table": images.fingerprint} | changes
    store.write_group(path, {"embedding": values, "offset": offset}, provenance)
    return values.astype(np.float64)


def test_cosines_equal_a_slow_reference(tmp_path: Path, photos: ImageTable) -> None:
    text = unit(5).astype(np.float32)
    store.write_group(tmp_path / "text.zarr", {"embedding": text}, TEACHER)
    whole = embeddings(tmp_path / "global.zarr", photos, 1)
    snippets = embeddings(tmp_path / "snippets.zarr", photos, 9)
    paths = (tmp_path / name for name in ("text.zarr", "global.zarr", "snippets.zarr"))
    write_similarity(*paths, photos, tmp_path / "out.zarr")
    group = store.read_group(tmp_path / "out.zarr", {"table": photos.fingerprint})
    for name, values in {"global": whole, "snippets": snippets}.items():
        expected = values @ text.T / np.linalg.norm(values, axis=1, keepdims=True)
        np.testing.assert_allclose(group.read(name), expected, atol=1e-6)
    assert group.read("offset").tolist() == (np.arange(61) * 9).tolist()


def test_cosines_in_many_blocks_and_files_lie_at_the_rows_of_their_views(
    tmp_path: Path, photos: ImageTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "_ROWS", 100)
    monkeypatch.setattr(layout, "_FILE_BYTES", 64 * 5 * 4)
    text = unit(5).astype(np.float32)
    store.write_group(tmp_path / "text.zarr", {"embedding": text}, TEACHER)
    embeddings(tmp_path / "global.zarr", photos, 1)
    snippets = embeddings(tmp_path / "snippets.zarr", photos, 9)
    paths = (tmp_path / name for name in ("text.zarr", "global.zarr", "snippets.zarr"))
    write_similarity(*paths, photos, tmp_path / "out.zarr")
    files = [file for file in (tmp_path / "out.zarr" / "snippets" / "c").rglob("*") if file.is_file()]
    assert len(files) == 9  # of 64 rows, 540 in all
    found = store.read_group(tmp_path / "out.zarr").read("snippets")
    np.testing.assert_allclose(found, snippets @ text.T / np.linalg.norm(snippets, axis=1, keepdims=True), atol=1e-6)


def test_no_views_have_no_cosines(tmp_path: Path) -> None:
    store.write_group(tmp_path / "cam.zarr", {"embedding": np.empty((0, 16), np.float16)}, TEACHER)
    assert list(similarity.cosines(store.read_group(tmp_path / "cam.zarr"), torch.ones(5, 16))) == []


@pytest.mark.parametrize(
    ("changes", "message"), [({"weights": "other"}, "weights = 'other'"), ({"table": "x"}, "table = 'x'")]
)
def test_embeddings_of_another_teacher_or_table_are_refused(
    tmp_path: Path, photos: ImageTable, changes: dict[str, object], message: str
) -> None:
    store.write_group(tmp_path / "text.zarr", {"embedding": unit(5).astype(np.float32)}, TEACHER)
    embeddings(tmp_path / "global.zarr", photos, 1)
    embeddings(tmp_path / "snippets.zarr", photos, 9, **changes)
    paths = (tmp_path / name for name in ("text.zarr", "global.zarr", "snippets.zarr"))
    with pytest.raises(ArtifactError, match=message):
        write_similarity(*paths, photos, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_the_matrix_product_is_in_float32() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
