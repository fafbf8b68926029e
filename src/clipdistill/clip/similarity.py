"""Cosines between cached embeddings: one matrix product in place of another run of CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from clipdistill import store
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ArtifactError
from clipdistill.layout import Blocks

Cosines = npt.NDArray[np.float32]

# A row's last bit may depend on the rows that it is multiplied beside: the product is always cut at the same rows. They
# are few, so that their memory is used again and not asked for anew.
_ROWS = 8_192


def cosines(views: store.Group, text: torch.Tensor) -> Iterator[Cosines]:
    """Cosine of every view with every class (CDUL Eq. 1 and 3), in blocks.

    The views are normalised anew in float32, since float16 leaves their norm off by up to 0.001.

    Args:
        views: artifact with `embedding` float16 [V, D].
        text: float32 [C, D], unit norm.

    Yields:
        float32 [R, C], in [-1, 1], for R views after the other; R adds up to V.
    """
    for start in range(0, views.shape("embedding")[0], _ROWS):
        rows = torch.from_numpy(views.read("embedding", start, start + _ROWS)).float()
        yield (F.normalize(rows, dim=-1) @ text.T).numpy()


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
    arrays: dict[str, store.Array | Blocks] = {
        "global": _blocks(whole, embeddings),
        "snippets": _blocks(snippets, embeddings),
        "offset": offset,
    }
    store.write_group(out, arrays, {"table": table.fingerprint, **provenance})


def _blocks(views: store.Group, text: torch.Tensor) -> Blocks:
    return Blocks((views.shape("embedding")[0], len(text)), "float32", cosines(views, text))
