"""fill KIND: embed this process's share of the views, for machines that share a file system and nothing else.

No stage of the pipeline: `dvc repro` afterwards finds the shards and seals them (docs/scale.md). KIND is global or
snippets; $RANK and $WORLD_SIZE say which share. Runs under torchrun as well.
"""

import logging

from clipdistill import params, stage
from clipdistill.clip import run


def main() -> None:
    """Read params and the image tables; write shards into the work folder."""
    (kind,) = stage.arguments("KIND")
    # Each has a log of its own: the progress of all is shown.
    logging.getLogger("clipdistill").setLevel(logging.INFO)
    settings = params.load()
    run.fill_views(kind, run.requests(kind, settings), settings)


if __name__ == "__main__":
    stage.run(main)
