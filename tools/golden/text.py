"""Text of the golden language models, written by small seeded grammars, and its encodings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz.,"  # index = token; the newline also starts a line

# -- sentences to continue ----------------------------------------------------------------------------------------
_SIZES = ("small", "big", "old", "young", "quick", "quiet")
_ANIMALS = ("fox", "owl", "hen", "cat", "otter", "badger", "mole")
_MOVES = ("walks", "runs", "jumps", "sneaks", "returns")
_SIGHTS = ("sees", "likes", "follows", "fears", "greets")
_PLACES = ("barn", "river", "forest", "garden", "hill", "village")
_TIMES = ("at night", "in the morning", "before dawn", "after the rain")


def story(rng: np.random.Generator) -> str:
    """Two sentences about the same animal; the second one starts with it, so that the model has something to copy."""

    def one(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    hero = one(_ANIMALS)
    first = f"the {one(_SIZES)} {hero} {one(_MOVES)} to the {one(_PLACES)}"
    if rng.random() < 0.5:
        first += f" {one(_TIMES)}"
    second = f"the {hero} {one(_SIGHTS)} a {one(_SIZES)} {one(_ANIMALS)}, and {one(_MOVES)} to the {one(_PLACES)}"
    return f"\n{first}. {second}."


def character_windows(count: int, length: int, seed: int) -> Array:
    """int64 [count, length + 1] of character ids, cut from an endless text: inputs are [:, :-1], targets [:, 1:]."""
    rng = np.random.default_rng(seed)
    windows = np.empty((count, length + 1), np.int64)
    for index in range(count):
        text = ""
        while len(text) < length + 1:
            text += story(rng)
        windows[index] = encode(text[: length + 1])
    return windows


def encode(text: str) -> Array:
    """Character ids of a text, int64 [len(text)]."""
    return np.array([ALPHABET.index(letter) for letter in text], np.int64)


# -- statements to sum up -----------------------------------------------------------------------------------------
MOODS = ("happy", "sad", "tired", "awake")
WORDS = ("[pad]", "[cls]", "is", "and", ".", "very", *_ANIMALS, *MOODS)
STATEMENTS_LENGTH = 24


def statements(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Statements about the moods of two to four animals; the answer is the prevailing mood, where "very" counts twice.

    "[cls] fox is sad and owl is very happy ." is happy; there are no ties. Returns int64 ids and attention mask
    [count, 24] (zero where padded), and the index of the answer in MOODS.
    """
    rng = np.random.default_rng(seed)
    ids = np.zeros((count, STATEMENTS_LENGTH), np.int64)
    labels = np.empty(count, np.int64)
    index = 0
    while index < count:
        words, votes = ["[cls]"], np.zeros(len(MOODS), np.int64)
        for hero in rng.permutation(len(_ANIMALS))[: int(rng.integers(2, 5))]:
            mood, very = int(rng.integers(len(MOODS))), rng.random() < 0.4
            votes[mood] += 2 if very else 1
            words += [_ANIMALS[hero], "is", *(["very"] if very else []), MOODS[mood], "and"]
        if (votes == votes.max()).sum() > 1:
            continue
        words[-1] = "."
        ids[index, : len(words)] = [WORDS.index(word) for word in words]
        labels[index] = votes.argmax()
        index += 1
    return ids, (ids != 0).astype(np.int64), labels


# -- words of invented languages ----------------------------------------------------------------------------------
LANGUAGES = ("northern", "island", "valley", "desert")
_SYLLABLES = {
    "northern": (("str", "kv", "gr", "th", "sk", "h"), ("o", "u", "e", "y"), ("ld", "rn", "k", "st", "g")),
    "island": (("k", "l", "m", "n", "p", "h", "w"), ("a", "i", "u", "o", "e"), ("", "", "", "i", "u")),
    "valley": (("l", "v", "s", "f", "m", "c"), ("ie", "ea", "e", "i", "a"), ("n", "l", "", "s", "r")),
    "desert": (("z", "q", "kh", "r", "d", "t"), ("a", "aa", "i", "u"), ("r", "b", "sh", "d", "m")),
}


def words(count: int, seed: int) -> tuple[list[Array], Array]:
    """Words of four invented languages: a list of int64 [length] character ids, and the index in LANGUAGES.

    One letter in eight is replaced at random: some words can only be guessed.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(LANGUAGES), count)
    out: list[Array] = []
    for kind in labels:
        parts = _SYLLABLES[LANGUAGES[kind]]
        text = "".join(
            str(part[int(rng.integers(len(part)))]) for _ in range(int(rng.integers(1, 5))) for part in parts
        )
        ids = encode(text)
        swapped = rng.random(len(ids)) < 0.125
        out.append(np.where(swapped, rng.integers(2, 28, len(ids)), ids))
    return out, labels.astype(np.int64)
