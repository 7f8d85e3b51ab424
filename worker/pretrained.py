"""Reads the operator's files of pretrained weights: tensors alone, so that no file runs code."""

import hashlib
from io import BufferedReader

import torch
from torch import Tensor

from api.errors import AppError
from api.plans import weights
from sep_core.cells import Cell, Evaluation, weights_sha256
from sep_core.config import NetworkName
from sep_core.networks.published import adopt

State = dict[str, Tensor]


def check(evaluation: Evaluation, side: int) -> None:
    """Read every file that an evaluation begins with, so that a job fails before its work.

    Args:
        side: of the images that networks see, in pixels.

    Raises:
        AppError: as `load`.
    """
    for network, sha256 in evaluation.weights.items():
        load(network, side, sha256)


def of_cell(evaluation: Evaluation, cell: Cell, side: int) -> State | None:
    """What a training begins with; None if it begins with no weights.

    Raises:
        AppError: as `load`.
    """
    sha256 = weights_sha256(evaluation, cell.network, cell.countermeasure)
    return None if sha256 is None else load(cell.network, side, sha256)


def load(network: NetworkName, side: int, sha256: str) -> State:
    """The state dict of a network's file, by our names; see `adopt`.

    Raises:
        AppError: the file is missing, is another than the plan's, or holds something else.
        OSError: it can't be read at the moment.
    """
    file = weights.path(network)
    try:
        with file.open("rb") as opened:
            _check_digest(opened, file.name, sha256)
            return adopt(network, side, read(opened))
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise AppError(
            500,
            weights.UNAVAILABLE,
            f"{file.name}: expected a file of pretrained weights on this worker, as the plan says; "
            f"got {error.strerror}.",
        ) from error
    except ValueError as error:
        raise AppError(422, "PRETRAINED_UNFIT", f"{file.name}: {error}.") from error


def read(file: BufferedReader) -> object:
    """What `torch.save` wrote, if that is made of tensors, containers and numbers alone.

    Raises:
        ValueError: it is something else, which is not run, or damaged.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file makes `pickle` and `torch` raise whatever they meet
        raise ValueError(
            "expected a file of torch.save with tensors alone, got something else"
        ) from error


def _check_digest(file: BufferedReader, name: str, sha256: str) -> None:
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise AppError(
            409,
            "PRETRAINED_CHANGED",
            f"{name}: expected the file that was there when the protection was planned, SHA-256 "
            f"{sha256}, got {found}.",
        )
    file.seek(0)
