"""A student whose maps are known points at coloured squares."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn
from toy_training import CLASSES, COMPUTE, Toy

from clipdistill import distributed, store
from clipdistill.clip import views
from clipdistill.datasets.images import content_hash
from clipdistill.datasets.table import ImageTable
from clipdistill.errors import ArtifactError, ParamsError
from clipdistill.methods import ccd
from clipdistill.params import CcdLocalizeParams, StudentParams
from clipdistill.students import classifier, model_folder, student_yaml
from clipdistill.students.classifier import Student
from clipdistill.training import localize as module
from clipdistill.training.data import ImageSource
from clipdistill.training.localize import PointedViews, Pointer, localize

PARAMS = CcdLocalizeParams(image_size=96, output_stride=8, classes_per_image=1.0, mask=0.95, margin=0.0)
RESNET = StudentParams(output_stride=32, backbone="resnet18", image_size=64)

# Of each image: width, height, column of the class, and its square x0, y0, x1, y1; wide, high, and as high as wide.
SQUARES = [
    (48, 24, 0, (12, 6, 24, 12)),
    (24, 48, 1, (4, 28, 10, 44)),
    (40, 40, 2, (0, 0, 10, 10)),
    (120, 30, 2, (90, 15, 120, 30)),
]


def table_of(folder: Path, images: list[npt.NDArray[np.uint8]]) -> ImageTable:
    folder.mkdir()
    names = [f"{row}.png" for row in range(len(images))]
    for name, pixels in zip(names, images, strict=True):
        Image.fromarray(pixels).save(folder / name)
    files = [(folder / name).read_bytes() for name in names]
    height, width = (np.array([image.shape[axis] for image in images], dtype=np.int32) for axis in (0, 1))
    sizes = np.array([len(data) for data in files])
    return ImageTable(folder, names, names, width, height, sizes, [content_hash(data) for data in files], 100_000)


@pytest.fixture
def squares(tmp_path: Path) -> ImageTable:
    images = []
    for width, height, column, (x0, y0, x1, y1) in SQUARES:
        pixels = np.full((height, width, 3), 20, dtype=np.uint8)
        pixels[y0:y1, x0:x1, column] = 220
        images.append(pixels)
    return table_of(tmp_path / "squares", images)


@pytest.fixture
def colour_student(monkeypatch: pytest.MonkeyPatch) -> Student:
    """A student whose map of a class is the mean of its colour in cells of 8 x 8 pixels, in place of a folder's."""
    student = Student(nn.Sequential(nn.AvgPool2d(8)), len(CLASSES)).eval()
    with torch.no_grad():
        student.head.weight.copy_(torch.eye(3)[:, :, None, None])
    params = StudentParams(backbone="resnet18", image_size=96, output_stride=8)
    card = student_yaml.Card.of(student, params, "sigmoid", CLASSES, {})
    monkeypatch.setattr(module.model_folder, "load", lambda _: (student, card))
    return student


def saved_resnet(folder: Path, seed: int = 0) -> Path:
    student = classifier.build(RESNET, len(CLASSES), seed)
    model_folder.save(folder, student, student_yaml.Card.of(student, RESNET, "sigmoid", CLASSES, {}))
    return folder


def point(table: ImageTable, **changes: object) -> PointedViews:
    return localize(Path("unused"), table, PARAMS.model_copy(update=changes), COMPUTE)


def rows_of(found: PointedViews) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(len(found.offset) - 1), np.diff(found.offset))


def test_boxes_lie_in_the_squares_in_pixels_of_their_own_image(colour_student: Student, squares: ImageTable) -> None:
    found = point(squares, classes_per_image=2.9)
    assert found.offset.tolist() == [0, 3, 6, 9, 12]
    for row, (_, _, column, (x0, y0, x1, y1)) in enumerate(SQUARES):
        (own,) = found.box[(rows_of(found) == row) & (found.category == column)]
        # The mask is what exceeds 0.95 of the range: the inside of the square, its centre included.
        assert x0 <= own[0] < (x0 + x1) / 2 < own[2] <= x1
        assert y0 <= own[1] < (y0 + y1) / 2 < own[3] <= y1


def test_a_margin_widens_a_box_by_a_share_of_the_sides_within_the_image(
    colour_student: Student, squares: ImageTable
) -> None:
    tight, wide = (point(squares, classes_per_image=2.9, margin=margin).box for margin in (0.0, 0.2))
    sides = np.repeat([[w, h, w, h] for w, h, *_ in SQUARES], 3, axis=0)
    expected = np.clip(tight + sides * np.array([-0.2, -0.2, 0.2, 0.2]), 0, sides)
    np.testing.assert_allclose(wide, expected, atol=1e-4)
    assert (wide == 0).any()
    assert (wide == sides).any()


def test_a_map_that_is_everywhere_equal_gives_the_whole_image(colour_student: Student, tmp_path: Path) -> None:
    plain = table_of(tmp_path / "plain", [np.full((30, 50, 3), 90, dtype=np.uint8)])
    found = point(plain, classes_per_image=2.9)
    np.testing.assert_array_equal(found.box, [[0, 0, 50, 30]] * 3)


@pytest.mark.parametrize("per_image", [0.05, 0.5, 1.3, 2.0, 3.0, 10.0])
def test_as_many_views_as_asked_for(colour_student: Student, toy: Toy, per_image: float) -> None:
    found, images = point(toy[0], classes_per_image=per_image), len(toy[0])
    probabilities = _probabilities(toy)
    assert abs(len(found.box) / images - (per_image if per_image < 3 else 1.5)) <= 1 / images
    assert found.offset.dtype == np.int64
    assert len(found.offset) == images + 1
    assert (found.offset[0], found.offset[-1]) == (0, len(found.box))
    row, category = np.nonzero(probabilities >= found.threshold)
    np.testing.assert_array_equal(rows_of(found), row)
    np.testing.assert_array_equal(found.category, category)
    np.testing.assert_array_equal(found.probability, probabilities[row, category].astype(np.float32))
    assert probabilities[row, category].min() == found.threshold


def _probabilities(toy: Toy, batch_size: int | None = None) -> npt.NDArray[np.float32]:
    pointer = Pointer(Path("unused"), PARAMS, COMPUTE.model_copy(update={"batch_size": batch_size}))
    return pointer.probabilities(ImageSource(toy[0], 96, "none", 1)).numpy()


def test_probabilities_are_those_of_the_student(colour_student: Student, toy: Toy) -> None:
    pixels = next(ImageSource(toy[0], 96, "none", 1).batches([np.arange(20)]))
    mean, std = (torch.tensor(value) for value in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = torch.sigmoid((pixels.float().mean(dim=(2, 3)) / 255 - mean) / std).numpy()
    for batch_size in (None, 1, 7):
        np.testing.assert_allclose(_probabilities(toy, batch_size), expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batches_change_no_view(colour_student: Student, toy: Toy, batch_size: int) -> None:
    """Uneven numbers of views an image, some without any, over batches of images and of maps."""
    params = PARAMS.model_copy(update={"classes_per_image": 0.7})
    whole = localize(Path("unused"), toy[0], params, COMPUTE)
    assert {0, 1, 2} <= set(np.diff(whole.offset).tolist())
    split = localize(Path("unused"), toy[0], params, COMPUTE.model_copy(update={"batch_size": batch_size}))
    for name in ("box", "offset", "category", "probability"):
        np.testing.assert_allclose(getattr(split, name), getattr(whole, name), atol=1e-5, err_msg=name)


def test_maps_belong_to_their_image_and_class(colour_student: Student, toy: Toy) -> None:
    images = ImageSource(toy[0], 96, "none", 1)
    pixels = next(images.batches([np.arange(20)]))
    with torch.no_grad():
        _, cam = colour_student(module.preprocessing.normalise(pixels))
    row, category = torch.tensor([1, 1, 4, 5, 5, 5, 19]), torch.tensor([2, 0, 1, 0, 1, 2, 2])
    pointer = Pointer(Path("unused"), PARAMS, COMPUTE.model_copy(update={"batch_size": 2}))
    found = torch.cat(list(pointer.maps(images, row, category)))
    torch.testing.assert_close(found, cam[row, category])


def test_a_resnet_points_with_the_finer_map(toy: Toy, tmp_path: Path) -> None:
    folder = saved_resnet(tmp_path / "student")
    params = CcdLocalizeParams(image_size=64, output_stride=8, classes_per_image=2.0, margin=0.1)
    found = localize(folder, toy[0], params, COMPUTE)
    assert len(found.box) == 40
    assert (found.box[:, :2] >= 0).all()
    assert (found.box[:, 2:] <= [40, 30]).all()
    assert (found.box[:, :2] < found.box[:, 2:]).all()
    student, _ = model_folder.load(folder)
    module.backbones.refine_map(student.features, "resnet18", 32, 8)
    images = ImageSource(toy[0], 64, "none", 1)
    with torch.no_grad():
        logits, cam = student(module.preprocessing.normalise(next(images.batches([np.arange(20)]))))
    assert cam.shape == (20, 3, 8, 8)
    # The classes are chosen with the very map that is boxed.
    probabilities = torch.sigmoid(logits)[rows_of(found), found.category]
    np.testing.assert_allclose(found.probability, probabilities.numpy(), atol=1e-5)
    large = ccd.upsample_cam(cam[rows_of(found), found.category], 160)
    expected = ccd.cam_boxes(large, 0.95, 0.1).numpy() * [40, 30, 40, 30]
    # Rounding may move a mask's edge by a cell, 1/160 of a side.
    np.testing.assert_allclose(found.box, expected, atol=0.26)


def test_the_view_table_is_read_as_clip_reads_it(colour_student: Student, squares: ImageTable, tmp_path: Path) -> None:
    found = point(squares)
    found.write(tmp_path / "views.zarr", {"table": squares.fingerprint})
    read = views.stored(tmp_path / "views.zarr", squares)
    np.testing.assert_array_equal(read.box, found.box)
    np.testing.assert_array_equal(read.offset, found.offset)
    group = store.read_group(tmp_path / "views.zarr")
    np.testing.assert_array_equal(group.read("category"), found.category)
    np.testing.assert_array_equal(group.read("probability"), found.probability)
    assert group.provenance["threshold"] == found.threshold


def test_a_view_table_of_other_images_is_refused(
    colour_student: Student, squares: ImageTable, toy: Toy, tmp_path: Path
) -> None:
    found = point(squares)
    found.write(tmp_path / "views.zarr", {"table": squares.fingerprint})
    with pytest.raises(ArtifactError, match=r"views\.zarr was made with table"):
        views.stored(tmp_path / "views.zarr", toy[0])
    found.write(tmp_path / "short.zarr", {"table": toy[0].fingerprint})
    with pytest.raises(ArtifactError, match=r"short\.zarr is no view table of 20 images"):
        views.stored(tmp_path / "short.zarr", toy[0])


def test_students_that_cannot_point_are_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        localize(tmp_path / "nothing", toy[0], PARAMS, COMPUTE)
    other = StudentParams(output_stride=32, backbone="shufflenet_v2_x0_5", image_size=64)
    student = classifier.build(other, len(CLASSES), seed=0)
    model_folder.save(tmp_path / "other", student, student_yaml.Card.of(student, other, "sigmoid", CLASSES, {}))
    with pytest.raises(ParamsError, match=r"ccd\.localize\.output_stride: shufflenet"):
        localize(tmp_path / "other", toy[0], PARAMS, COMPUTE)


PROCESS = """
import sys
from pathlib import Path

import torch

from clipdistill import distributed
from clipdistill.datasets.table import ImageTable
from clipdistill.params import CcdLocalizeParams
from clipdistill.training.localize import localize

table, student, out = (Path(argument) for argument in sys.argv[1:])
params = CcdLocalizeParams(image_size=64, output_stride=16, classes_per_image=0.65)
compute = distributed.Compute(device="cpu", threads=1, workers=1, batch_size=1)
with distributed.process_group(torch.device("cpu")):
    found = localize(student, ImageTable.load(table), params, compute)
    found.write(out / str(distributed.rank()), {})
"""


@pytest.mark.slow
def test_two_processes_point_as_one_does(toy: Toy, tmp_path: Path) -> None:
    """Image by image, so that no rounding depends on the shares; an odd number of views is shared out."""
    script, table = tmp_path / "script.py", tmp_path / "images.parquet"
    script.write_text(PROCESS)
    toy[0].write(table)
    student = saved_resnet(tmp_path / "student")
    for processes in (1, 2):
        distributed.launch([str(script), str(table), str(student), str(tmp_path / str(processes))], processes)
    one, *two = (store.read_group(tmp_path / name) for name in ("1/0", "2/0", "2/1"))
    assert one.shape("box") == (13, 4)
    for group in two:
        for name in ("box", "offset", "category", "probability"):
            np.testing.assert_array_equal(group.read(name), one.read(name), err_msg=name)
        assert group.provenance == one.provenance
