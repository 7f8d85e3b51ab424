"""How a blob takes its name in a folder: whole, and when all of it is on the disk.

obstore renames before it is there: after a loss of power the name could be of an empty file, and
what had it before be gone.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

# What a killed process leaves: obstore's own names, and ours until a file is flushed.
HALF_WRITTEN = re.compile(r"#(\d+|[0-9a-f]{32}\.part(#\d+)?)$")


@contextmanager
def atomically(folder: Path | None, key: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Under what name to store a blob, and what then makes it `key`'s; a bucket needs neither."""
    if folder is None:
        yield key, lambda: None
        return
    name = f"{key}#{uuid4().hex}.part"
    try:
        yield name, lambda: _replace(folder, folder / name, folder / key)
    finally:
        # Also from under a thread that goes on when its caller was cancelled: it replaces nothing
        # then. Where this fails, `worker.collection` does it.
        with suppress(OSError):
            (folder / name).unlink()


def _replace(folder: Path, written: Path, path: Path) -> None:
    """Flush and rename; then the folders' entries, up to the store's own: they may be new."""
    _flush(written)
    written.rename(path)
    for parent in path.parents:
        with suppress(FileNotFoundError):  # with all that was in it: a data set that was deleted
            _flush(parent)
        if parent == folder:
            return


def _flush(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
