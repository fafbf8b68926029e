"""The words of a caption, and which of them are candidates for tags."""

from __future__ import annotations

import functools
import re
import unicodedata
from pathlib import Path

FUNCTION_WORDS = Path(__file__).with_name("function_words.txt")

# Longer runs are addresses or rubbish.
_LONGEST = 64

_JOINERS = {"'": "'", "\u2019": "'", "\u02bc": "'", "-": "-", "\u2010": "-", "\u2011": "-"}

_WORD = re.compile(r"[^ '-]+(?:['-][^ '-]+)*")


def split(text: str) -> list[str]:
    """Find the words of a text, lower-cased.

    A word is a run of letters, the marks that belong to them and digits, with at least one letter; apostrophes and
    hyphens count inside it alone. Characters that are not seen, such as soft hyphens, are passed over. A script that
    parts its words by nothing has runs in place of words.

    Args:
        text: any.

    Returns:
        Words in order, as often as they stand there, in Unicode's composed form (NFC).

    Example:
        >>> split("A T-shirt, 2 dogs' bowls; it\u2019s 10-4!")
        ['a', 't-shirt', 'dogs', 'bowls', "it's"]
    """
    plain = "".join(map(_plain, text.lower()))
    found = _WORD.findall(unicodedata.normalize("NFC", plain))
    return [word for word in found if len(word) <= _LONGEST and any(map(str.isalpha, word))]


def candidates(caption: str, drop_function_words: bool) -> list[str]:
    """Choose the words of a caption that may be in its image.

    Args:
        caption: any text.
        drop_function_words: leave out those of function_words.txt.

    Returns:
        Lower-cased words as of `split`, each once, in the order in which they first stand.

    Example:
        >>> candidates("A dog on the back of a dog", True)
        ['dog', 'back']
    """
    dropped = function_words() if drop_function_words else frozenset()
    return [word for word in dict.fromkeys(split(caption)) if word not in dropped]


@functools.cache
def function_words() -> frozenset[str]:
    """Words of function_words.txt."""
    lines = FUNCTION_WORDS.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


@functools.lru_cache(4096)
def _plain(character: str) -> str:
    """A character of a word as it is, an apostrophe or a hyphen in its plain form, nothing, or a space."""
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    return character if category[0] in "LMN" else _JOINERS.get(character, " ")
