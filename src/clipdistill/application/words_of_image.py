"""What CLIP sees of a caption's words in one image, as TTD chooses them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipdistill import distributed
from clipdistill.application.image_files import open_image
from clipdistill.clip import teacher
from clipdistill.clip.prompts import refuse_cut_off, refuse_equal
from clipdistill.clip.tagging import Maps, Tagger, Texts, cut_off, tokenise
from clipdistill.clip.teacher import Teacher
from clipdistill.datasets.captions import words
from clipdistill.errors import ParamsError
from clipdistill.evaluation.word_picture import WordMap, draw
from clipdistill.methods import ttd
from clipdistill.params import Params
from clipdistill.students import preprocessing
from clipdistill.training import ttd_pairs, ttd_setup
from clipdistill.training.ttd_setup import Way

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WordScore:
    """How a word of a caption scores, each way in [0, 1].

    Attributes:
        word: it.
        image: by the whole image.
        text: by the caption.
        pixel: by the pixel that is most like it.
        chosen: whether `pixel` reaches the threshold.
    """

    word: str
    image: float
    text: float
    pixel: float
    chosen: bool


class WordSight:
    """CLIP, as it sees words in images.

    Args:
        params: `clip`, with its adapter, and `ttd`.
        compute: device, threads.
    """

    def __init__(self, params: Params, compute: distributed.Compute) -> None:
        torch.set_num_threads(compute.thread_count())
        self._params, self._device = params.ttd, compute.torch_device()
        self._model: Teacher = teacher.load(params.clip)
        self._tagger = Tagger(self._model.model.to(self._device)).eval()
        self._size = ttd_setup.image_size(params.ttd, self._model)
        self._scale = ttd_setup.word_scale(params.ttd, self._model)

    def choose(self, image: Path, caption: str) -> tuple[list[WordScore], Image.Image]:
        """Score a caption's words in three ways, and draw the photo, the caption's map and those of the words.

        Raises:
            ParamsError: the caption has no word that could be seen, or one alone.
            UnreadableImageError: the file is missing or no whole image.
        """
        tags = words.candidates(caption, self._params.captions.drop_function_words)
        if not tags:
            raise ParamsError(f"--caption: {caption!r} has no words but function words; name what the image may show")
        if len(tags) == 1:
            raise ParamsError(
                f"--caption: words compete, and a lone one, {tags[0]!r}, would have all of every image; name others "
                "beside it, or see where it is with `clipdistill heatmap --tags`"
            )
        if cut_off(self._model.tokenizer, [caption]):
            logger.warning("the caption is longer than the text encoder reads; its end does not count as a whole")
        photo = open_image(image)
        texts, maps = self._look(photo, caption, tags)
        ways: list[Way] = ["image", "text", ttd_setup.pixel_rule(self._params)]
        whole = self._whole(photo)
        by_way = [ttd_setup.score_words(way, maps, texts.valid, self._scale, whole) for way in ways]
        chosen = ttd.select_tags(by_way[-1], texts.valid, self._params.threshold)
        columns = [part[0].tolist() for part in (*by_way, chosen)]
        scores = [WordScore(*row) for row in zip(tags, *columns, strict=True)]
        panels = [WordMap("image", None), WordMap("the caption", maps.caption[0].numpy())]
        panels += [
            WordMap(score.word, cam.numpy(), score.pixel, score.chosen)
            for score, cam in zip(scores, maps.tags[0], strict=True)
        ]
        return scores, draw(photo, panels)

    def locate(self, image: Path, names: list[str]) -> tuple[list[float], Image.Image]:
        """Draw where each of some texts is; returns the highest cosine of each as well.

        Raises:
            ParamsError: a text is longer than the text encoder reads, or the same to it as another.
            UnreadableImageError: the file is missing or no whole image.
        """
        tokens = self._model.tokenizer(names)
        refuse_cut_off(self._model.tokenizer, names, tokens, "--tags", "shorten it")
        refuse_equal(names, tokens, "--tags:", "name one of them")
        photo = open_image(image)
        _, maps = self._look(photo, names[0], names)
        best = maps.tags[0].amax(dim=(1, 2)).tolist()
        panels = [WordMap("image", None)]
        panels += [
            WordMap(name, cam.numpy(), max(0.0, score))
            for name, cam, score in zip(names, maps.tags[0], best, strict=True)
        ]
        return best, draw(photo, panels)

    @torch.no_grad()
    def _look(self, photo: Image.Image, caption: str, tags: list[str]) -> tuple[Texts, Maps]:
        texts = tokenise(self._model.tokenizer, [caption], [tags])
        maps: Maps = self._tagger(self._pixels(photo, self._size), texts.to(self._device))
        return texts, maps.cpu()

    @torch.no_grad()
    def _whole(self, photo: Image.Image) -> Tensor:
        seen: Tensor = self._model.model.encode_image(self._pixels(photo, self._model.preprocessing.size))
        return seen.float().cpu()

    def _pixels(self, photo: Image.Image, size: int) -> Tensor:
        pixels = torch.from_numpy(preprocessing.resize(photo, size))[None]
        return ttd_pairs.normalised(pixels.to(self._device), self._model)
