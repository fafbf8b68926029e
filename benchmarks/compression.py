"""Which codec the cached arrays take: bytes, and speed of writing and reading, on the project's own artifacts.

Run after the pipeline: .venv/bin/python benchmarks/compression.py [ARTIFACT ...]
The codecs take turns within each round, and the medians over the rounds are printed; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from clipdistill import store

CODECS: dict[str, tuple[Any, ...]] = {
    "none + crc32c": (Crc32cCodec(),),
    "zstd-1 + checksum": (ZstdCodec(level=1, checksum=True),),
    "zstd-5 + checksum": (ZstdCodec(level=5, checksum=True),),
    "blosc lz4 bitshuffle + crc32c": (BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()),
    "blosc zstd-1 bitshuffle + crc32c": (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()),
    "blosc zstd-5 bitshuffle + crc32c": (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec()),
}
ARRAYS = {
    "cache/scenes/train/snippets.zarr": "embedding",
    "cache/scenes/train/similarity.zarr": "snippets",
    "cache/scenes/train/labels/cdul.zarr": "labels",
}


def once(array: np.ndarray, compressors: tuple[Any, ...], folder: Path) -> tuple[float, float, int]:
    """Write and read an array; seconds to write, seconds to read, bytes on disk."""
    path = folder / "a.zarr"
    begin = time.perf_counter()
    target = zarr.create_array(
        store=str(path),
        shape=array.shape,
        dtype=array.dtype,
        chunks=(1024, array.shape[1]),
        shards=(-(-len(array) // 1024) * 1024, array.shape[1]),
        compressors=compressors,
        overwrite=True,
    )
    target[...] = array
    middle = time.perf_counter()
    found = zarr.open_array(str(path), mode="r")[...]
    end = time.perf_counter()
    if not np.array_equal(found, array):
        raise AssertionError("what was read is not what was written")
    return middle - begin, end - middle, sum(file.stat().st_size for file in path.rglob("c/**/*") if file.is_file())


def measure(array: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds: ratio to the raw bytes, MB/s written and read."""
    times: dict[str, list[tuple[float, float, int]]] = {name: [] for name in CODECS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, compressors in CODECS.items():
                times[name].append(once(array, compressors, Path(folder)))
    megabytes = array.nbytes / 1e6
    return {
        name: {
            "ratio": round(array.nbytes / rows[0][2], 3),
            "write_MB_s": round(megabytes / statistics.median(row[0] for row in rows)),
            "read_MB_s": round(megabytes / statistics.median(row[1] for row in rows)),
        }
        for name, rows in times.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="*", default=list(ARRAYS), help="of the pipeline on scenes")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = {}
    for path in arguments.artifacts:
        array = store.read_group(Path(path)).read(ARRAYS[path])
        results[path] = measure(array, arguments.rounds)
        print(f"\n{path}: {ARRAYS[path]} {array.dtype} {list(array.shape)}, {array.nbytes / 1e6:.1f} MB")
        print(f"{'codec':<36}{'ratio':>8}{'write MB/s':>12}{'read MB/s':>12}")
        for name, row in results[path].items():
            print(f"{name:<36}{row['ratio']:>8.2f}{row['write_MB_s']:>12}{row['read_MB_s']:>12}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
