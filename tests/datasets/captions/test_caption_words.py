"""Words of captions: what is one, and which are candidates."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdistill.datasets.captions import words
from clipdistill.datasets.captions.words import candidates, function_words, split


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man in a T-shirt", ["a", "man", "in", "a", "t-shirt"]),
        ("it's the dogs' bowl, 'tis", ["it's", "the", "dogs", "bowl", "tis"]),
        ("rock'n'roll -- well--known - x-", ["rock'n'roll", "well", "known", "x"]),
        ("10 dogs, 2-3 cats at 10:45 on route66", ["dogs", "cats", "at", "on", "route66"]),
        ("Stra\u00dfe \u00dcBER \u041c\u043e\u0441", ["stra\u00dfe", "\u00fcber", "\u043c\u043e\u0441"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("\u0939\u093f\u0928\u094d \u092e\u0947", ["\u0939\u093f\u0928\u094d", "\u092e\u0947"]),
        ("l\u2019homme na\u2010na up\u00adset", ["l'homme", "na-na", "upset"]),
        ("dog/cat_bird\U0001f41fend\ud800x", ["dog", "cat", "bird", "end", "x"]),
        ("", []),
        ("... 12 \u0301 ' -", []),
        ("x" * 64 + " " + "y" * 65, ["x" * 64]),
    ],
)  # fmt: skip
def test_words_of_a_text(text: str, expected: list[str]) -> None:
    assert split(text) == expected


def test_candidates_stand_once_in_order_with_or_without_function_words() -> None:
    caption = "The dog and THE cat, the Dog's bowl on the mat"
    assert candidates(caption, False) == ["the", "dog", "and", "cat", "dog's", "bowl", "on", "mat"]
    assert candidates(caption, True) == ["dog", "cat", "dog's", "bowl", "mat"]
    assert candidates("he is in it", True) == []


SEEN = "fire mill bill system front top side bottom two three call show back can mine down round past one red"


def test_function_words_are_few_and_none_can_be_seen() -> None:
    assert 100 < len(function_words()) < 170
    assert not function_words() & set(SEEN.split())
    assert {"a", "the", "of", "with", "and", "is", "she", "themselves"} <= function_words()


def test_every_function_word_is_a_word_that_stands_once() -> None:
    lines = [line for line in words.FUNCTION_WORDS.read_text().splitlines() if not line.startswith("#")]
    listed = " ".join(lines).split()
    assert len(set(listed)) == len(listed)
    assert split(" ".join(listed)) == listed


@settings(deadline=None)
@given(st.text(), st.booleans())
def test_candidates_are_words_of_the_caption_and_their_own_candidates(caption: str, drop: bool) -> None:
    found = candidates(caption, drop)
    assert len(set(found)) == len(found)
    for word in found:
        assert 0 < len(word) <= 64
        assert any(character.isalpha() for character in word)
        assert word == word.strip("'-")
        assert unicodedata.is_normalized("NFC", word)
        word.encode()
    assert candidates(" ".join(found), drop) == found
    assert set(found) <= set(candidates(caption, False))


PLAIN = st.text("abcxyz", min_size=2, max_size=8)
GAPS = st.sampled_from([" ", ", ", "\n", "  (", "... "])


@settings(deadline=None)
@given(st.lists(st.lists(PLAIN, min_size=1, max_size=2).map("-".join), max_size=8), GAPS)
def test_plain_words_come_back_whatever_parts_them(said: list[str], gap: str) -> None:
    assert split(gap.join(said).upper()) == said
