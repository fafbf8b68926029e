"""Which words of a caption name a category of objects: its name, or a word of synonyms.txt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipdistill.datasets.captions import words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

SYNONYMS = Path(__file__).with_name("synonyms.txt")

Phrase = tuple[str, ...]


class Names:
    """Names of categories, and how a caption says them.

    Args:
        categories: names [C]; synonyms of other categories are not used.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        synonyms = read_synonyms()
        said = [(name, column) for column, name in enumerate(categories)]
        said += [(word, column) for name, column in said for word in synonyms.get(name, ())]
        self._category: dict[Phrase, int] = {}
        # The first counts: a category's own name before another's synonym.
        for name, column in said:
            self._category.setdefault(tuple(words.split(name)), column)
        # A name without letters has no words.
        self._category.pop((), None)
        self._longest = max(map(len, self._category), default=0)

    def shown(self, caption: str, present: Collection[int]) -> frozenset[str]:
        """Find the words of a caption that name what its image shows.

        Where names overlap, the longer one counts and the other does not: a hot dog is no dog.

        Args:
            caption: text.
            present: columns of the categories that are in the image.

        Returns:
            Words as of `words.split`, all those of a name of several words.
        """
        said = words.split(caption)
        found: set[str] = set()
        place = 0
        while place < len(said):
            phrase, category = self._at(said, place)
            if category in present:
                found |= set(phrase)
            place += max(1, len(phrase))
        return frozenset(found)

    def _at(self, said: Sequence[str], place: int) -> tuple[Sequence[str], int | None]:
        """The longest name that begins at a place, and its column."""
        for length in range(min(self._longest, len(said) - place), 0, -1):
            phrase = said[place : place + length]
            for last in _singulars(phrase[-1]):
                if (category := self._category.get((*phrase[:-1], last))) is not None:
                    return phrase, category
        return (), None


def read_synonyms() -> dict[str, list[str]]:
    """Read synonyms.txt: words for a category, by its name."""
    lines = SYNONYMS.read_text(encoding="utf-8").splitlines()
    parts = [line.partition(":") for line in lines if line.strip() and not line.startswith("#")]
    return {name.strip(): [word.strip() for word in rest.split(",")] for name, _, rest in parts}


def _singulars(word: str) -> Iterator[str]:
    """A word, and what it may be the plural or the genitive of."""
    yield word
    word = word.removesuffix("'s")
    yield word
    for ending, other in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending):
            yield word.removesuffix(ending) + other
