"""Cosines and labels of many views take no more memory than those of few: measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FEW, MANY, VIEWS, CLASSES = 100, 1_400, 240, 80
# Bytes of the cosines that come on top: what either step would hold at least once, were it to hold them whole.
GROWTH = (MANY - FEW) * VIEWS * CLASSES * 4

# Files and blocks a hundredth of the usual size stand to these arrays as the usual ones to COCO's.
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np, torch
from clipdistill import layout, store
from clipdistill.clip import similarity
from clipdistill.datasets.table import ImageTable
from clipdistill.params import Params
from clipdistill.stage import Paths
from clipdistill.training import pseudo_label

layout._FILE_BYTES, similarity._ROWS, pseudo_label._BLOCK_BYTES = 2**20, 1024, 2**19
torch.set_num_threads(1)
few, many, per_image, classes = map(int, sys.argv[1:])
teacher = {"model": "m", "weights": "w", "quick_gelu": False, "logit_scale": 100.0}

def made(rows):
    for start in range(0, rows, 4096):
        yield np.random.default_rng(start).normal(size=(min(4096, rows - start), 4)).astype(np.float16)

def peaks(images):
    paths = Paths(str(images))
    names = [f"{row}.jpg" for row in range(images)]
    sides = np.ones(images, np.int32)
    table = ImageTable(Path("."), names, names, sides, sides, sides.astype(np.int64), names, 1)
    provenance = {**teacher, "table": table.fingerprint}
    store.write_group(paths.text, {"embedding": np.eye(classes, 4, dtype=np.float32) + 0.1}, teacher)
    for kind, count in (("global", 1), ("snippets", per_image)):
        embedding = layout.Blocks((images * count, 4), "float16", made(images * count))
        arrays = {"embedding": embedding, "offset": np.arange(images + 1) * count}
        store.write_group(paths.embeddings("train", kind), arrays, provenance)
    yield highest()
    views = (paths.embeddings("train", kind) for kind in ("global", "snippets"))
    similarity.write_similarity(paths.text, *views, table, paths.similarity("train"))
    yield highest()
    pseudo_label.labels_of("cdul", paths, table, Params())
    yield highest()

def highest():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

print(json.dumps([list(peaks(few)), list(peaks(many))]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process took at most")
def test_memory_does_not_grow_with_the_views(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, *map(str, (FEW, MANY, VIEWS, CLASSES))]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    (*_, before), (_, cosines, labels) = json.loads(done.stdout)
    assert cosines - before < GROWTH / 4
    assert labels - before < GROWTH / 4
