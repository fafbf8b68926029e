"""CLIP looks at captioned images: cosines of every cell of an image with the caption and with each of its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipdistill.clip.prompts import filled_context
from clipdistill.clip.teacher import ClipModel, Tokenizer
from clipdistill.students import tokens

# Captions tokenised at a time where they are counted.
_TOKENISED = 1024


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a batch as a text encoder reads them; a word that several captions have is encoded once.

    Attributes:
        captions: int64 [B, context].
        words: int64 [U, context].
        word_of: int64 [B, K], row in `words` of each tag; 0 for padding.
        valid: bool [B, K]; false for padding.
    """

    captions: Tensor
    words: Tensor
    word_of: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> Texts:
        """The same on a device."""
        parts = (self.captions, self.words, self.word_of, self.valid)
        return Texts(*(part.to(device) for part in parts))


class Maps(NamedTuple):
    """What CLIP makes of a batch.

    Attributes:
        tags: cosines of the cells with each tag, [B, K, h, w].
        caption: cosines of the cells with the caption, [B, h, w].
        words: embeddings of the tags, [B, K, D], unit norm.
        sentence: embedding of the caption, [B, D], unit norm.
    """

    tags: Tensor
    caption: Tensor
    words: Tensor
    sentence: Tensor

    def cpu(self) -> Maps:
        """The same in the CPU's memory."""
        return Maps(*(part.cpu() for part in self))


def tokenise(tokenizer: Tokenizer, captions: Sequence[str], tags: Sequence[Sequence[str]]) -> Texts:
    """Prepare B captions and their tags; each tag is read as a text of its own, without a template."""
    unique = sorted({word for row in tags for word in row}) or [""]
    place = {word: row for row, word in enumerate(unique)}
    longest = max(1, *map(len, tags))
    word_of = torch.zeros(len(tags), longest, dtype=torch.int64)
    valid = torch.zeros(len(tags), longest, dtype=torch.bool)
    for row, words in enumerate(tags):
        word_of[row, : len(words)] = torch.tensor([place[word] for word in words], dtype=torch.int64)
        valid[row, : len(words)] = True
    return Texts(tokenizer(list(captions)), tokenizer(unique), word_of, valid)


def cut_off(tokenizer: Tokenizer, captions: Sequence[str]) -> int:
    """Count the captions of which the tokenizer cuts off the end, which it does without a word."""
    parts = (captions[start : start + _TOKENISED] for start in range(0, len(captions), _TOKENISED))
    return sum(int(filled_context(tokenizer, part, tokenizer(list(part))).sum()) for part in parts)


class Tagger(nn.Module):
    """CLIP as it sees captioned images.

    Args:
        model: open_clip's; with or without an adapter.
    """

    def __init__(self, model: ClipModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, texts: Texts) -> Maps:
        """Compare images and texts.

        Args:
            images: float [B, 3, S, S], normalised.
            texts: of as many captions, on the same device.

        Returns:
            In float32. The map of a padded tag is that of the first word.
        """
        cells = F.normalize(tokens.dense_embeddings(self.model.visual, images).float(), dim=-1)
        sentence = F.normalize(self.model.encode_text(texts.captions).float(), dim=-1)
        of_words = F.normalize(self.model.encode_text(texts.words).float(), dim=-1)[texts.word_of]
        both = torch.cat([sentence[:, None], of_words], dim=1)
        # In bf16 a cosine has steps of a thousandth: a tenth of a logit, by which words would be chosen or not.
        with torch.autocast(images.device.type, enabled=False):
            maps = tokens.as_map(cells @ both.transpose(1, 2))
        return Maps(maps[:, 1:], maps[:, 0], of_words, sentence)
