"""What an exception says went wrong: with the step, or with the machine that it was on."""

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterable

from api import adoption
from api.db import AWAY
from api.errors import StorageFull
from api.scheduling.endings import Setback
from worker.data import BlobChanged

# PyTorch has an exception for a GPU's memory, and a RuntimeError for the host's and a library's.
_NO_MEMORY = (
    *("can't allocate memory", "not enough memory", "CUDA error: out of memory"),
    *("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
_NONE_THERE = ("No CUDA GPUs are available", "Found no NVIDIA driver", "not compiled with CUDA")
_NO_GPU = (
    *("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS"),
    *_NONE_THERE,
)


EXIT_STALLED, EXIT_GPU_LOST, EXIT_OUT_OF_MEMORY, EXIT_RANK_LOST = 75, 76, 77, 78
EXIT_STORAGE_FULL, EXIT_INFRASTRUCTURE = 79, 80


class RankLost(Exception):
    """A process that trained the surrogate along has died; or never got ready, without a status."""

    def __init__(self, code: int | None) -> None:
        ended = "did not get ready" if code is None else f"ended with status {code}"
        super().__init__(f"A process that trained along {ended}.")
        self.code = code


def exit_status(error: Exception) -> int:
    """By which a process that trains along tells why it ends."""
    return _EXITS.get(setback(error).code, 1)


_EXITS = {
    "GPU_LOST": EXIT_GPU_LOST,
    "OUT_OF_MEMORY": EXIT_OUT_OF_MEMORY,
    "STORAGE_FULL": EXIT_STORAGE_FULL,
    "INFRASTRUCTURE": EXIT_INFRASTRUCTURE,
}


# Of these the card is to blame. Of the others a step may be as well: a wrong index, say.
_CARD = (
    *_NONE_THERE,
    *("no CUDA-capable device", "devices are busy or unavailable", "ECC error", "fallen off"),
    *("hardware", "unknown error", "unspecified launch failure", "device is lost", "driver error"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so, of whichever memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _says(error, _NO_MEMORY)


def is_gpu_lost(error: BaseException) -> bool:
    """Whether the GPU failed, or is not there; its memory being full is neither."""
    if is_out_of_memory(error):
        return False
    if type(error).__name__ == "AcceleratorError":
        return True
    told = isinstance(error, RuntimeError | AssertionError)
    return told and _says(error, _NO_GPU)


def _says(error: BaseException, words: Iterable[str]) -> bool:
    return any(said.casefold() in str(error).casefold() for said in words)


def setback(error: Exception) -> Setback:
    """In words for the owner, and whether the step itself may be why."""
    return _of_surroundings(error) or _of_process(error)


def _of_surroundings(error: Exception) -> Setback | None:
    if is_out_of_memory(error):  # of which an OSError may tell, too
        return None
    if isinstance(error, StorageFull | BlobChanged):
        return Setback(error.code, error.message, suspect=isinstance(error, BlobChanged))
    if _is_disk_full(error):
        folder = _full_folder(error)
        return Setback("STORAGE_FULL", f"Expected room on the disk of {folder}, got none.", False)
    if isinstance(error, FileNotFoundError):
        return _of_missing(error)
    if isinstance(error, (*AWAY, OSError)) or _is_of_temporary_database(error):
        what = "Expected database, storage, network and disk to answer"
        what = f"{what}, got {type(error).__name__}: {_first_line(error)}."
        return Setback("INFRASTRUCTURE", what, False)
    return None


def _of_missing(error: FileNotFoundError) -> Setback:
    """Of a step's own only where other blobs are there: a volume may not be mounted."""
    try:
        at_hand = adoption.at_hand()
    except (*AWAY, OSError):
        at_hand = False
    if at_hand:
        what = f"Expected what an earlier step has stored, got {_first_line(error)}."
        return Setback("BLOB_MISSING", what, True)
    what = "Expected this database's blobs where this worker looks for them (SEPGATE_STORAGE_URL)"
    return Setback("INFRASTRUCTURE", f"{what}, got none: {_first_line(error)}.", False)


def _full_folder(error: Exception) -> str:
    if isinstance(error, OSError) and not _is_without_folder(error):
        return str(error.filename or tempfile.gettempdir())
    return os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108  where SQLite looks first


def _is_of_temporary_database(error: Exception) -> bool:
    """Not a defect of ours: those have classes of their own, and a torn file has none."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _is_disk_full(error: Exception) -> bool:
    if _is_of_temporary_database(error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if _is_without_folder(error):
        return True
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _is_without_folder(error: Exception) -> bool:
    """How `tempfile` says that it could write in no folder, whatever each of them said."""
    return isinstance(error, FileNotFoundError) and "temporary directory" in str(error)


def _of_process(error: Exception) -> Setback:
    if isinstance(error, RankLost):
        known = {status: code for code, status in _EXITS.items()} | {None: "STALLED"}
        code = known.get(error.code, "PROCESS_DIED")
        ours = code in {"OUT_OF_MEMORY", "STALLED", "PROCESS_DIED"}
        return Setback(code, str(error), suspect=ours)
    if is_out_of_memory(error):
        what = "The device has too little memory for this configuration."
        return Setback("OUT_OF_MEMORY", what, True)
    if is_gpu_lost(error):
        what = f"The GPU of this worker failed: {_first_line(error)}"
        return Setback("GPU_LOST", what, suspect=not _says(error, _CARD))
    what = f"A defect of sepgate ({type(error).__name__}); the worker's log says more."
    return Setback("INTERNAL", what, True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no more"
