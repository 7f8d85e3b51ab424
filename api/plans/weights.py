"""Files of pretrained weights that the operator gives: `NETWORK.pt` in one folder, one a network.

They are told apart by their digests. Only a worker reads what is in them.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import get_args

from api.errors import AppError
from api.settings import settings
from sep_core.cells import Evaluation
from sep_core.config import NetworkName

UNAVAILABLE = "PRETRAINED_UNAVAILABLE"


def path(network: NetworkName) -> Path:
    """Where the weights of a network are, if there are any."""
    return settings().weights / f"{network}.pt"


def check(evaluation: Evaluation, networks: Iterable[NetworkName]) -> None:
    """Refuse pretrained countermeasures with networks that there is no file for.

    Args:
        networks: that the evaluation would train.

    Raises:
        AppError: 422, naming the networks.
    """
    missing = [name for name in networks if not _readable(name)]
    if not evaluation.pretrained or not missing:
        return
    known = [name for name in get_args(NetworkName) if _readable(name)]
    raise AppError(
        422,
        UNAVAILABLE,
        f"{', '.join(evaluation.pretrained)}: expected a file of pretrained weights for every "
        f"network, got none for {', '.join(missing)}; this service has one for "
        f"{', '.join(known) or 'no network'}.",
    )


def freeze(evaluation: Evaluation) -> Evaluation:
    """With the digests of the files that it begins with; the networks are named.

    Raises:
        AppError: 422 as `check`.
    """
    check(evaluation, evaluation.networks)
    if not evaluation.pretrained:
        return evaluation
    return replace(evaluation, weights={name: sha256(name) for name in evaluation.networks})


def sha256(network: NetworkName) -> str:
    """Digest of a file as it is now.

    Raises:
        OSError: it can't be read.
    """
    found = path(network).stat()
    return _sha256(path(network), found.st_ino, found.st_ctime_ns, found.st_size)


@lru_cache
def _sha256(file: Path, _inode: int, _ctime_ns: int, _size: int) -> str:
    """Kept while the file is the same and as it was: VGG-16's are half a gigabyte.

    The time is that of its last change of any kind; tools set the other one as they like.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _readable(network: NetworkName) -> bool:
    file = path(network)
    return file.is_file() and os.access(file, os.R_OK)
