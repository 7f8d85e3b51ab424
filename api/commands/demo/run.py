"""The demo: the whole job on real photographs, through the service, as any client would do it."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from api.commands import launcher
from api.commands.protect import console, protect_file

# Chosen with `python -m benchmarks.trial` so that two CPU cores are done within five minutes and
# the protection held for every seed tried (few): with fewer images, shown more often, the best
# epoch comes before the patterns are learned; so it did with the checkpoints of every second epoch.
# Small batches: so few images are few steps of the optimiser.
PER_CLASS, TEST_PER_CLASS = 500, 100
CONFIG: Mapping[str, Any] = {
    "preset": "quick",
    "epsilon_levels": 8,
    "class_steps": 100,
    "steps": 4,
    "checkpoints": 8,
    "epochs": 8,
    "appropriator_epochs": 8,
    "batch_size": 32,
    "learning_rate": 0.05,
}

LOGS = "logs"
ELSEWHERE = ("SEPGATE_DATABASE_URL", "SEPGATE_REDIS_URL", "SEPGATE_STORAGE_URL")
"""Settings of a service that the shell may know: the demo is one of its own."""
MARK = "made-by-sepgate-demo"
MARKED = "sepgate demo empties this folder when it begins and when it ends.\n"


def demo(data: Path | None, out: Path) -> int:
    """Start everything, protect, print the verdict, stop everything. Returns the exit status."""
    # Read by this process and by all that it starts; nothing has read the settings before.
    for elsewhere in ELSEWHERE:
        os.environ.pop(elsewhere, None)
    folder = out.absolute() / "service"
    os.environ["SEPGATE_DATA_DIR"] = str(folder)
    began = time.monotonic()
    try:
        with _claimed(folder):
            status = _demo(data, out)
    except (launcher.ServiceError, OSError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 1
    console.print(f"all of it took {time.monotonic() - began:.0f} s; the service is stopped")
    return status


def _demo(data: Path | None, out: Path) -> int:
    config: Mapping[str, Any] = {"preset": "auto"}
    if data is None:
        data, config = _photographs(out), CONFIG
    console.print("starting API, workers, queue and database ...")
    with launcher.service("127.0.0.1", 0) as service:
        console.print(f"ready at {service.url}")
        asked = {"config": config}
        return protect_file(service.url, launcher.new_key(), data, asked, out, service.check)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """A folder of our own, empty but for the logs of an earlier demo: it holds originals and keys.

    Raises:
        OSError: it can not be made, holds what no demo has made, or a demo is at it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    others = {path.name for path in folder.iterdir()} - {LOGS}
    if others and MARK not in others:
        told = f"expected {folder} to be a demo's, got {', '.join(sorted(others)[:5])} in it"
        raise FileExistsError(f"{told}: give another --out")
    taken = f"expected {folder} to be free, got another demo in it: give another --out"
    with (folder / MARK).open("a", encoding="utf-8") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(taken) from error
        if not _is_there(folder / MARK, mark):  # one that was just ending has removed it
            raise BlockingIOError(taken)
        mark.truncate(0)
        mark.write(MARKED)
        mark.flush()
        _empty(folder, {LOGS, MARK})  # what one left that was killed
        try:
            yield
        finally:
            _empty(folder, {LOGS, MARK})
            _empty(folder, {LOGS})


def _is_there(path: Path, file: IO[str]) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def _empty(folder: Path, but: set[str]) -> None:
    for path in folder.iterdir():
        if path.name in but:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _photographs(out: Path) -> Path:
    from api.commands.demo.photographs import write_zip  # noqa: PLC0415  an extra that only the demo needs

    path = out / "photographs.zip"
    classes = write_zip(path, PER_CLASS, TEST_PER_CLASS)
    console.print(
        f"the demo's data: 32-pixel patches of {len(classes)} photographs "
        f"({', '.join(classes)}), {PER_CLASS} for training and {TEST_PER_CLASS} for testing "
        f"each, from disjoint stripes and of one mean colour; configuration {dict(CONFIG)}"
    )
    return path
