"""Draw docs/overview.png from a finished run on scenes: .venv/bin/python docs/overview.py.

It takes the scene with the most objects of which CLIP, asked about the whole image, misses the most and the student the
least.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from clipdistill import stage, store
from clipdistill.datasets.table import ImageTable, read_classes, read_labels
from clipdistill.students import model_folder, preprocessing

SIDE, GAP, LEGEND = 384, 36, 28
SIZE = (1280, SIDE + LEGEND + 2 * GAP)
PAPER, INK, FAINT = "#fafaf7", "#26262b", "#8a8a92"
METHODS = {
    "teacher": ("CLIP, whole image", "#b9b9c1"),
    "teacher_views": ("CLIP, with snippets", "#6f9bd8"),
    "cdul": ("student", "#2f9e61"),
}

Scores = npt.NDArray[np.float32]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own typeface."""
    return ImageFont.load_default(size)


def choose(scores: dict[str, Scores], labels: npt.NDArray[np.int8]) -> int:
    """Row of the scene in which the student's lead over CLIP is largest: sum of scores, right less wrong."""
    lead = np.where(labels == 1, scores["cdul"] - scores["teacher"], scores["teacher"] - scores["cdul"]).sum(axis=1)
    return int(np.argmax(np.where(labels.sum(axis=1) == labels.sum(axis=1).max(), lead, -np.inf)))


def gridded(scene: Image.Image) -> Image.Image:
    """The scene with the borders of its snippets."""
    large = scene.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(large, "RGBA")
    for cut in (round(SIDE / 3), round(2 * SIDE / 3)):
        draw.line([(cut, 0), (cut, SIDE)], fill=(255, 255, 255, 210), width=3)
        draw.line([(0, cut), (SIDE, cut)], fill=(255, 255, 255, 210), width=3)
    return large


def heated(scene: Image.Image, folder: Path, present: list[int]) -> Image.Image:
    """The scene, bright where the student's activation maps of the classes that are there are high."""
    student, card = model_folder.load(folder)
    size = card.preprocessing.image_size
    small = np.asarray(scene.resize((size, size), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        _, cam = student(preprocessing.normalise(pixels))
    heat = torch.sigmoid(cam[0, present].amax(dim=0))
    heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-6)
    mask = Image.fromarray((heat.numpy() * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    large = scene.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    dark = Image.blend(large, Image.new("RGB", large.size, "#14141c"), 0.78)
    return Image.composite(large, dark, mask)


def bars(draw: ImageDraw.ImageDraw, left: int, names: list[str], values: dict[str, Scores], present: list[int]) -> None:
    """Scores of each class by each method; classes that are in the scene in ink, the others faint."""
    height = SIDE / len(names)
    for row, name in enumerate(names):
        top = GAP + row * height
        colour = INK if row in present else FAINT
        draw.text((left + 96, top + height / 2), name, fill=colour, font=font(17), anchor="rm")
        for line, (method, (_, bar)) in enumerate(METHODS.items()):
            y = top + 4 + line * (height - 8) / 3
            length = 1 + 250 * float(values[method][row])
            draw.rectangle([left + 106, y, left + 106 + length, y + (height - 8) / 3 - 1], fill=bar)


def main() -> None:
    """Draw and save."""
    paths = stage.Paths("scenes")
    table = ImageTable.load(paths.table("val"))
    labels = read_labels(paths.ground_truth("val"), table)
    scores = {name: store.read_group(paths.predictions(name)).read("scores") for name in METHODS}
    names = [item.name for item in read_classes(paths.classes)]
    row = choose(scores, labels)
    present = np.flatnonzero(labels[row] == 1).tolist()
    picture = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    scene = table.open(row)
    picture.paste(gridded(scene), (GAP, GAP))
    bars(draw, GAP + SIDE + 16, names, {name: values[row] for name, values in scores.items()}, present)
    picture.paste(heated(scene, paths.model("cdul"), present), (SIZE[0] - GAP - SIDE, GAP))
    captions = GAP + SIDE + 22
    draw.text((GAP, captions), "a scene and its nine snippets", fill=INK, font=font(18))
    draw.text((SIZE[0] - GAP - SIDE, captions), "where the student sees them", fill=INK, font=font(18))
    x = GAP + SIDE + 16
    for name, colour in METHODS.values():
        draw.rectangle([x, captions + 5, x + 13, captions + 18], fill=colour)
        draw.text((x + 19, captions + 1), name, fill=INK, font=font(15))
        x += 34 + draw.textlength(name, font=font(15))
    picture.save("docs/overview.png", optimize=True)


if __name__ == "__main__":
    main()
