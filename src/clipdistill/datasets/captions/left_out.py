"""When TTD has nothing to learn from."""

from __future__ import annotations

from clipdistill.params import TAGGED_SCENES, Params


def left_out(params: Params, root: str) -> str | None:
    """Why a part of TTD is left out, a sentence; None where it is not.

    Args:
        params: all parameters.
        root: folder that the part reads: `ttd.captions.root` or `ttd.segment.root`.
    """
    if root == TAGGED_SCENES and params.clip.source != "scenes":
        return (
            f"{root} is drawn for the tiny CLIP alone, and clip.source is {params.clip.source}: name captioned images "
            "in ttd.captions, and images with masks in ttd.segment"
        )
    return None
