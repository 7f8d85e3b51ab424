"""Answers are read as what they mostly stand for, by images that they are not judged on."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sep_core.renaming import renamed

CLASSES = 4
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def naive(pairs: list[tuple[int, int]]) -> list[int]:
    """(answer, label) of each image; what is made of the answer."""
    met: Counter[int] = Counter()
    halves = []
    for _, label in pairs:
        halves.append(met[label] % 2)
        met[label] += 1
    read = []
    for (answer, _), half in zip(pairs, halves, strict=True):
        known = Counter(
            label
            for (other, label), its in zip(pairs, halves, strict=True)
            if its != half and other == answer
        )
        ranked = sorted(known, key=lambda label: (-known[label], label != answer, label))
        read.append(ranked[0] if ranked else answer)
    return read


def read(pairs: list[tuple[int, int]]) -> list[int]:
    answers, labels = torch.tensor(pairs).T
    return renamed(answers, labels, CLASSES).tolist()


@given(PAIRS)
def test_it_is_what_the_definition_says(pairs: list[tuple[int, int]]) -> None:
    assert read(pairs) == naive(pairs)


def test_who_is_wrong_about_every_class_in_the_same_way_is_right() -> None:
    labels = [0, 1, 2, 3] * 5
    assert read([((label + 1) % CLASSES, label) for label in labels]) == labels


def test_an_image_says_nothing_of_itself() -> None:
    assert read([(1, 0), (2, 1), (3, 2), (0, 3)]) == [1, 2, 3, 0]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_guessing_gains_nothing(classes: int) -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(4000 // classes)
    answers = torch.randint(classes, labels.shape, generator=draws)
    right = (renamed(answers, labels, classes) == labels).double().mean().item()
    assert right == pytest.approx(1 / classes, abs=0.02)
