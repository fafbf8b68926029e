"""Stage `generate`: the data set `scenes`, and the captioned images for the tiny CLIP."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from clipdistill import params
from clipdistill.datasets.scenes.captions import generate_captions
from clipdistill.datasets.scenes.voc_layout import generate_scenes
from clipdistill.errors import ClipdistillError

SCENES = Path("data/raw/scenes")
CAPTIONS = Path("data/raw/scenes-captions")


def main() -> int:
    """Run the stage; returns the exit status."""
    try:
        scenes = params.load().scenes
        generate_scenes(scenes, SCENES, os.cpu_count())
        generate_captions(scenes, CAPTIONS, os.cpu_count())
    except ClipdistillError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
