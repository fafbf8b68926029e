"""Cosines between cached embeddings: one matrix product in place of another run of CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from clipdistill import store
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ArtifactError

Cosines = npt.NDArray[np.float32]

_ROWS = 65_536


def cosines(views: store.Group, text: torch.Tensor) -> Cosines:
    """Cosine of every view with every class (CDUL Eq. 1 and 3).

    The views are normalised anew in float32, since float16 leaves their norm off by up to 0.001.

    Args:
        views: artifact with `embedding` float16 [V, D].
        text: float32 [C, D], unit norm.

    Returns:
        float32 [V, C], in [-1, 1].
    """
    count = views.shape("embedding")[0]
    result = np.empty((count, len(text)), dtype=np.float32)
    for start in range(0, count, _ROWS):
        rows = torch.from_numpy(views.read("embedding", start, start + _ROWS)).float()
        result[start : start + _ROWS] = (F.normalize(rows, dim=-1) @ text.T).numpy()
    return result


def write_similarity(text_path: Path, global_path: Path, snippets_path: Path, table: ImageTable, out: Path) -> None:
    """Write the cosines of a split: `global` [N, C], `snippets` [V, C], `offset` [N + 1].

    Raises:
        ArtifactError: embeddings of another table, or of another teacher than the text's.
    """
    text = store.read_group(text_path)
    expected: dict[str, Any] = {"table": table.fingerprint}
    expected |= {key: text.provenance[key] for key in ("model", "weights", "quick_gelu")}
    whole = store.read_group(global_path, expected)
    snippets = store.read_group(snippets_path, expected)
    embeddings = torch.from_numpy(text.read("embedding"))
    offset = snippets.read("offset")
    if whole.shape("embedding")[0] != len(table) or len(offset) != len(table) + 1:
        raise ArtifactError(
            f"{global_path} and {snippets_path} do not have one row an image of the table: run `dvc repro`"
        )
    provenance = {"text": text.provenance, "global": whole.provenance, "snippets": snippets.provenance}
    arrays = {
        "global": cosines(whole, embeddings),
        "snippets": cosines(snippets, embeddings),
        "offset": offset,
    }
    store.write_group(out, arrays, {"table": table.fingerprint, **provenance})
