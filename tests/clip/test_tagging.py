"""Cosines of cells with captions and words."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipdistill.clip import teacher
from clipdistill.clip.tagging import Maps, Tagger, Texts, tokenise
from clipdistill.students import tokens

teacher.register_architectures()

CAPTIONS = ["a boat and a house", "a cup"]
TAGS = [["boat", "house"], ["cup"]]


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    torch.manual_seed(0)
    return Tagger(teacher.create("scenes-tiny"))


def tokenised() -> Texts:
    import open_clip

    return tokenise(open_clip.get_tokenizer("scenes-tiny"), CAPTIONS, TAGS)


@torch.no_grad()
def looked(tagger: Tagger, images: torch.Tensor, texts: Texts) -> Maps:
    maps: Maps = tagger(images, texts)
    return maps


def test_words_are_encoded_once_and_captions_padded() -> None:
    texts = tokenised()
    assert texts.words.shape == (3, 16)
    assert texts.valid.tolist() == [[True, True], [True, False]]
    assert texts.word_of[0].tolist() == [0, 2]
    assert texts.word_of[1, 0] == 1


def test_maps_are_cosines_of_every_cell(tagger: Tagger) -> None:
    images, texts = torch.randn(2, 3, 96, 96), tokenised()
    maps = looked(tagger, images, texts)
    assert maps.tags.shape == (2, 2, 3, 3)
    assert maps.caption.shape == (2, 3, 3)
    with torch.no_grad():
        cells = F.normalize(tokens.dense_embeddings(tagger.model.visual, images), dim=-1)
        house = F.normalize(tagger.model.encode_text(texts.words[2:]), dim=-1)
        caption = F.normalize(tagger.model.encode_text(texts.captions), dim=-1)
    torch.testing.assert_close(maps.tags[0, 1].flatten(), cells[0] @ house[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps.caption[1].flatten(), cells[1] @ caption[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps.words[0, 1], house[0], atol=1e-5, rtol=1e-4)


def test_a_caption_without_words_has_padding_alone() -> None:
    import open_clip

    texts = tokenise(open_clip.get_tokenizer("scenes-tiny"), ["of the"], [[]])
    assert texts.valid.tolist() == [[False]]
