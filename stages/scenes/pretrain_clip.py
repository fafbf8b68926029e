"""Stage pretrain_clip: captioned scenes to the tiny CLIP."""

from pathlib import Path

from clipdistill import distributed, params, stage, store
from clipdistill.clip import pretrain, teacher

CAPTIONS = Path("data/raw/scenes-captions")


def main() -> None:
    """Read the captioned images; write cache/teachers/scenes.safetensors and its card."""
    settings = params.load().pretrain_clip
    compute = distributed.Compute.load()
    device = compute.torch_device()
    dtype = distributed.resolve_precision(settings.precision, device)
    pixels, captions = pretrain.read_captions(CAPTIONS)
    model, history = pretrain.pretrain(settings, pixels, captions, device, dtype)
    digest = store.file_sha256(CAPTIONS / "images.zarr" / store.MANIFEST)
    pretrain.write_teacher(model, settings, digest, history, teacher.TEACHERS / "scenes")


if __name__ == "__main__":
    stage.run(main)
