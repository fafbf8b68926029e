"""Stage embed@KIND: views to embeddings; KIND is global, snippets or cam. Runs under torchrun as well.

Views that a student points at (cam) are those of VIEWS, and their embeddings go to OUT.
"""

import sys
from pathlib import Path

from clipdistill import params, stage
from clipdistill.clip import run


def main() -> None:
    """Read params, the image tables and, for cam, VIEWS; write <kind>.zarr of every split, or OUT."""
    kind, *places = stage.arguments(*(("cam", "VIEWS", "OUT") if "cam" in sys.argv[1:2] else ("KIND",)))
    settings = params.load()
    wanted = [run.cam_request(settings, *map(Path, places))] if kind == "cam" else run.requests(kind, settings)
    run.embed_views(kind, wanted, settings, [str(Path(__file__)), kind, *places])


if __name__ == "__main__":
    stage.run(main)
