"""Stage embed@KIND: views of every split to embeddings; KIND is global or snippets. Runs under torchrun as well."""

import sys
from pathlib import Path

from clipdistill import params, stage
from clipdistill.clip.run import embed_views


def main() -> None:
    """Read params and the image tables; write <kind>.zarr of every split."""
    kind = sys.argv[1]
    embed_views(kind, params.load(), [str(Path(__file__)), kind])


if __name__ == "__main__":
    stage.run(main)
