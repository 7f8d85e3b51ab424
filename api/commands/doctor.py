"""`sepgate doctor`: whether a set-up can do its work, and what to mend where it can't."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

from sqlalchemy import func, select

from api import adoption, datasets, protections, queue, revision, storage, workers
from api.db import missing_file, now, reading, write_objection
from api.models import (
    Dataset,
    Lock,
    Owner,
    Protection,
    ProtectionState,
    Queue,
    Step,
    StepState,
    Worker,
    fresh_since,
)
from api.scheduling import waiting
from api.scheduling.locks import SWEEP
from api.settings import settings

CLOCK_SECONDS = 5
"""By which hosts may differ: leases go by the database's clock, but files' ages by the host's."""
LOW_BYTES = 20 * 2**30
DRIVER_SERIES = 580
"""The oldest whose driver serves CUDA 13.0, which the worker's image carries."""


@dataclass(frozen=True)
class Finding:
    """What a look at one part has found."""

    part: str
    state: Literal["ok", "warn", "fail"]
    text: str


def examine() -> Iterator[Finding]:
    """Look at every part in turn; what needs another that fails is left out.

    Where there is no database yet nothing is looked at: looking would make one, and a folder.
    """
    path = missing_file()
    if path is not None:
        told = "start the service first, or call this in its folder or with its SEPGATE_DATA_DIR"
        yield Finding("database", "fail", f"Expected a database at {path}, got none: {told}.")
        return
    database = list(_careful("database", _database))
    yield from database
    yield from _careful("queue", _queue)
    yield from _careful("storage", _storage)
    yield from _careful("disk", _disk)
    if all(finding.state != "fail" for finding in database):
        for part, look in (
            *(("clock", _clock), ("workers", _workers), ("gpu", _gpus)),
            *(("sweep", _sweep), ("blobs", _blobs)),
        ):
            yield from _careful(part, look)


def _careful(part: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Whatever goes wrong is a finding too."""
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001  it is told
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Finding(part, "fail", f"{_MEND[part]} It said: {said}")


_MEND = {
    "database": "Expected a database at SEPGATE_DATABASE_URL, got no answer.",
    "queue": "Expected a Redis at SEPGATE_REDIS_URL, or that of `sepgate serve`; got no answer.",
    "storage": "Expected to write and read at SEPGATE_STORAGE_URL, and could not.",
    "disk": "Expected a temporary folder (TMPDIR), got none.",
    "clock": "The database's clock could not be read.",
    "workers": "The workers' rows could not be read.",
    "gpu": "Which GPUs this host has was not found out.",
    "sweep": "The sweep's row could not be read.",
    "blobs": "Whether the blobs of all rows are there was not found out.",
}


def _database() -> Iterator[Finding]:
    with reading() as session:
        name = session.get_bind().dialect.name
        objection = revision.objection(session.connection()) or write_objection()
        if objection is not None:
            yield Finding("database", "fail", objection)
            return
        yield Finding("database", "ok", f"{name}, migration {revision.needed()}")
        if not session.scalar(select(func.count()).select_from(Owner)):
            text = "No API key yet; run `sepgate keys create --owner NAME`."
            yield Finding("database", "warn", text)


def _queue() -> Iterator[Finding]:
    objection = queue.check()
    if objection is not None:
        yield Finding("queue", "fail", objection)
        return
    waiting = {str(name): queue.waiting(name) for name in Queue}
    told = ", ".join(f"{number} messages in {name}" for name, number in waiting.items())
    yield Finding("queue", "ok", told)


def _storage() -> Iterator[Finding]:
    probe = uuid4()
    key, content = storage.probe_key(probe, "content"), probe.bytes
    storage.write(key, content)
    try:
        same = storage.read(key) == content
    finally:
        storage.remove(storage.probe_key(probe))
    if not same:
        yield Finding("storage", "fail", "Read other bytes than were written.")
        return
    free = storage.free_bytes()
    yield _room("storage", settings().storage, free)


def _disk() -> Iterator[Finding]:
    folder, told = tempfile.gettempdir(), os.environ.get("TMPDIR")
    if told and Path(told).absolute() != Path(folder):
        yield Finding("disk", "fail", f"Expected to write in {told} (TMPDIR), and could not.")
        return
    yield _room("disk", folder, shutil.disk_usage(folder).free)


def _room(part: str, where: str, free: int | None) -> Finding:
    if free is None:
        return Finding(part, "ok", where)
    told = f"{where}, {free / 2**30:.1f} GiB free"
    if free < LOW_BYTES:
        return Finding(part, "warn", f"{told}: little for archives of photographs.")
    return Finding(part, "ok", told)


def _clock() -> Iterator[Finding]:
    with reading() as session:
        ahead = (datetime.now(UTC) - now(session)).total_seconds()
    if abs(ahead) > CLOCK_SECONDS:
        text = f"This host is {ahead:+.0f} s from the database; run an NTP client on both."
        yield Finding("clock", "warn", text)
    else:
        yield Finding("clock", "ok", f"{ahead:+.1f} s from the database's")


def _workers() -> Iterator[Finding]:
    with reading() as session:
        fresh = fresh_since(now(session))
        known = session.scalars(select(Worker).order_by(Worker.heartbeat_at)).all()
        alive = [worker for worker in known if worker.heartbeat_at > fresh]
        late = select(func.count()).where(
            Step.state == StepState.RUNNING, Step.lease_expires_at < now(session)
        )
        lost = session.scalar(late)
        unserved = waiting.unserved_devices(session)
    for name in Queue:
        serving = [worker for worker in alive if worker.queue is name]
        if not serving:
            text = f"None serves {name}: start `sepgate worker --queue {name}`."
            yield Finding("workers", "fail", text)
            continue
        devices = ", ".join(sorted({worker.device_name or "cpu" for worker in serving}))
        yield Finding("workers", "ok", f"{len(serving)} serve {name}: {devices}")
    gpus = [worker for worker in alive if worker.queue is Queue.GPU]
    if gpus and all(worker.device == "cpu" for worker in gpus):
        text = "None has a GPU: everything works, some hundred times slower."
        yield Finding("workers", "warn", text)
    yield from _silent_gpus(known, alive)
    for device, number in unserved.items():
        text = f"{number} protections are planned for {device}, and no worker has one: start one."
        yield Finding("workers", "fail", text)
    if lost:
        yield Finding("workers", "warn", f"{lost} steps have lost theirs; the sweep frees them.")


def _silent_gpus(known: Sequence[Worker], alive: Sequence[Worker]) -> Iterator[Finding]:
    """GPUs that a worker served within a day, when its row is forgotten, and that none does now."""
    last = {_card(worker): worker for worker in known if worker.gpu}
    for card in sorted(last.keys() - {_card(worker) for worker in alive}):
        text = (
            f"{last[card].device_name} {card} has been silent since "
            f"{last[card].heartbeat_at:%Y-%m-%d %H:%M} UTC: its worker's log says why, "
            "unless it was stopped."
        )
        yield Finding("workers", "warn", text)


def _gpus() -> Iterator[Finding]:
    """What keeps workers from a GPU where none has one, as far as this host shows."""
    with reading() as session:
        fresh = fresh_since(now(session))
        served = select(Worker.name).where(Worker.heartbeat_at > fresh, Worker.device != "cpu")
        if session.scalars(served.limit(1)).first() is not None:
            return
    yield Finding("gpu", "warn", _gpus_here())


def _gpus_here() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return f"There is no nvidia-smi here. {_MEND_GPU}"
    words = [tool, "--query-gpu=driver_version,uuid", "--format=csv,noheader"]
    try:
        asked = subprocess.run(  # noqa: S603  the driver's own tool
            words, capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi does not answer ({error}). {_MEND_GPU}"
    said = (asked.stdout or asked.stderr).strip()
    first = said.partition("\n")[0]
    if asked.returncode:
        return f"nvidia-smi fails ({first}). {_MEND_GPU}"
    if not said:
        return f"nvidia-smi lists no GPU. {_MEND_GPU}"
    driver = first.partition(",")[0]
    series = driver.partition(".")[0]
    if series.isdecimal() and int(series) < DRIVER_SERIES:
        return f"The driver here is {driver}. {_MEND_GPU}"
    cards = [line.rpartition(", ")[2] for line in said.splitlines()]
    return (
        f"No worker has one, and here are {', '.join(cards)} (driver {driver}): start "
        "`sepgate worker --queue gpu` here, or start it again, with SEPGATE_DEVICE and "
        f"{workers.VISIBLE} unset."
    )


_MEND_GPU = (
    f"A GPU needs a driver of series {DRIVER_SERIES} or newer; in a container also "
    "nvidia-container-toolkit on its host and `devices` under `deploy` (or `gpus`) in the compose "
    "file, as worker-gpu has: `docker compose run --rm --no-deps worker-gpu sepgate doctor` looks "
    "there, or docker says what it lacks. SEPGATE_DEVICE=auto serves by the CPU, in compose "
    "without that entry."
)


def _card(worker: Worker) -> str:
    """UUIDs tell them apart everywhere, in a container that is made anew, too; numbers do not."""
    gpu = str(worker.gpu)
    return gpu if gpu.startswith(("GPU-", "MIG-")) else f"{gpu} of {worker.name.partition('/')[0]}"


def _sweep() -> Iterator[Finding]:
    with reading() as session:
        lock = session.get(Lock, SWEEP)
        alive = lock is not None and lock.expires_at > now(session)
    if lock is not None and alive:
        yield Finding("sweep", "ok", f"{lock.holder}, since {lock.taken_at:%Y-%m-%d %H:%M} UTC")
    else:
        yield Finding(
            "sweep",
            "fail",
            "None is at work: start `python -m worker.sweep`, or all with `sepgate serve`.",
        )


def _blobs() -> Iterator[Finding]:
    """Whether what rows promise is there, and is theirs: after a restore, above all."""
    with reading() as session:
        objection = adoption.objection(session)
    if objection is not None:
        yield Finding("blobs", "fail", objection)
        return
    promised = _promised()
    wrong = {key for key, size in promised.items() if storage.size_if_there(key) != size}
    wrong &= set(_promised()) if wrong else set()  # what was deleted meanwhile is not missed
    if wrong:
        text = (
            f"{len(wrong)} of {len(promised)} uploads and archives are missing or of another size, "
            f"{min(wrong)} to begin with; restore the blobs of the database's backup."
        )
        yield Finding("blobs", "fail", text)
    else:
        yield Finding("blobs", "ok", f"{len(promised)} uploads and archives, all there")


def _promised() -> dict[str, int | None]:
    """Keys and sizes of the blobs that rows say there are."""
    with reading() as session:
        uploads = session.execute(
            select(Dataset.id, Dataset.size_bytes).where(Dataset.error_code.is_(None))
        )
        promised: dict[str, int | None]
        promised = {storage.dataset_key(i, datasets.SOURCE): size for i, size in uploads}
        succeeded = Protection.state == ProtectionState.SUCCEEDED
        archives = session.execute(select(Protection.id, Protection.archive_bytes).where(succeeded))
        promised |= {storage.protection_key(i, protections.ARCHIVE): size for i, size in archives}
    return promised
