"""Stage embed@KIND: views to embeddings; KIND is global, snippets, dense or cam. Runs under torchrun as well.

Views that a student points at (cam) are those of VIEWS, and their embeddings go to OUT; where neither is named, they
are those before CCD's first update.
"""

import sys
from pathlib import Path

from clipdistill import params, stage
from clipdistill.clip import run


def main() -> None:
    """Read params, the image tables and, for cam, VIEWS; write <kind>.zarr of every split, or OUT."""
    named = sys.argv[1:2] == ["cam"] and len(sys.argv) > 2
    kind, *places = stage.arguments(*(("cam", "VIEWS", "OUT") if named else ("KIND",)))
    settings = params.load()
    if kind == "cam":
        paths = stage.Paths(settings.dataset.name)
        views, out = map(Path, places) if places else (paths.cam_views, paths.embeddings("train", "cam"))
        wanted = [run.cam_request(settings, views, out)]
    else:
        wanted = run.requests(kind, settings)
    run.embed_views(kind, wanted, settings, [str(Path(__file__)), kind, *places])


if __name__ == "__main__":
    stage.run(main)
