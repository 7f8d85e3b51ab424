"""What a network has learned of clean images up to the names of the classes.

SEP moves every class towards another one, so a network that was trained on what left may be wrong
in a way that repeats: images of class g(y) are answered with y. Whoever has some labelled images
finds that out, and reads every answer as the class that it mostly stands for.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

HALVES = 2


def renamed(
    answers: Int64[Tensor, " m"], labels: Int64[Tensor, " m"], classes: int
) -> Int64[Tensor, " m"]:
    """The answers, each read as the class that it mostly stands for.

    What an answer stands for is found on one half of the images and applied to the other, and the
    other way round, so that nothing is gained by chance. Of classes that are met equally often it
    is the answer itself, else the first; an answer that the other half does not have stays.

    Args:
        answers: the class that a network gives each image, in [0, classes).
        labels: their own classes. Images of a class go to the halves in turns.
    """
    half = _halves(labels, classes)
    read = answers.clone()
    for at in range(HALVES):
        known, other = half != at, half == at
        names = _names(answers[known], labels[known], classes)
        read[other] = names[answers[other]]
    return read


def _halves(labels: Int64[Tensor, " m"], classes: int) -> Int64[Tensor, " m"]:
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels, minlength=classes)
    within = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    half = torch.empty_like(labels)
    half[order] = within % HALVES
    return half


def _names(
    answers: Int64[Tensor, " k"], labels: Int64[Tensor, " k"], classes: int
) -> Int64[Tensor, " classes"]:
    """For every answer the class that it stands for most often."""
    pairs, counts = torch.unique(answers * classes + labels, return_counts=True)
    answer, label = pairs // classes, pairs % classes
    order = torch.argsort(2 * counts + (answer == label), descending=True, stable=True)
    order = order[torch.argsort(answer[order], stable=True)]
    answer, label = answer[order], label[order]
    first = answer != answer.roll(1)
    first[:1] = True
    names = torch.arange(classes)
    names[answer[first]] = label[first]
    return names
