"""A served application, clients with keys, and the lives of data sets and protections in steps."""

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from uuid import UUID, uuid4

import httpx2
import pytest
import uvicorn
from sqlalchemy import select
from typer.testing import CliRunner

from api import (
    datasets,
    db,
    keys,
    leases,
    main,
    planning,
    protections,
    queue,
    steps,
    storage,
    weights,
    workload,
)
from api.cli import app as command
from api.leases import Claim
from api.models import Dataset, Protection, Queue, Step, StepKind, StepState, Worker
from api.routes.requests import Requests
from api.settings import settings
from sep_core.cells import named
from sep_core.config import NetworkName
from tests import servers
from tests.api.archives import two_classes, zip_bytes
from tests.conftest import use_broker
from worker import tasks

logging.root.handlers.clear()  # `api.main` has configured them; pytest captures by its own

Change = Callable[..., None]
JSON = dict[str, Any]

ARCHIVE_BYTES = bytes(range(256)) * 40
CPU = workload.Device("cpu", bfloat16=False, threads=1, memory_bytes=2**33)
COSTS = {
    StepKind.TRAIN: [4.0],
    StepKind.PERTURB: [2.0, 2.0],
    StepKind.PACKAGE: [1.0],
    StepKind.EVALUATE: [3.0, 3.0],
}


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Iterator[Change]:
    """Gives settings other values for the rest of the test."""
    assert environment

    def changed(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"SEPGATE_{name}", str(value))
        settings.cache_clear()
        storage._store.cache_clear()
        if "DATABASE_URL" in variables:
            db.engine().dispose()
            db.engine.cache_clear()
        if "REDIS_URL" in variables:
            use_broker(settings().broker)

    yield changed
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The application, served once: it keeps nothing that is not in database or storage."""
    with serving(Requests(main.build())) as address:
        yield address


@pytest.fixture
def url(server: str, environment: dict[str, str]) -> str:
    """Where the application is served, on a fresh database, queue and storage."""
    assert environment
    return server


class serving:  # noqa: N801  reads as a function at its call
    """A real server in a thread of this process."""

    def __init__(self, app: Any) -> None:
        self.port = servers.free_port()
        config = uvicorn.Config(
            app, port=self.port, log_level="critical", lifespan="off", ws="none", access_log=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> str:
        self._thread.start()
        servers.wait_for(lambda: self._server.started, 10, "the server")
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    """Alice, with her key."""
    with keyed(url, "alice") as made:
        yield made


@pytest.fixture
def other(url: str) -> Iterator[httpx2.Client]:
    """Bob, with his."""
    with keyed(url, "bob") as made:
        yield made


@pytest.fixture
def anonymous(url: str) -> Iterator[httpx2.Client]:
    """Nobody: without a key."""
    with web(url) as made:
        yield made


@pytest.fixture
def owner_id(environment: dict[str, str]) -> UUID:
    """An owner, for tests below HTTP."""
    assert environment
    return owner("alice")


@pytest.fixture
def ready(owner_id: UUID) -> UUID:
    """A data set of that owner that has been ingested."""
    return ingested(owner_id)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 96 MiB."""
    if os.getuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def ready_dataset(client: httpx2.Client) -> str:
    """Id of a data set that Alice uploaded and that is ready."""
    return str(uploaded(client)["id"])


def keyed(url: str, name: str) -> httpx2.Client:
    with db.transaction() as session:
        key = keys.create(session, name)
    return web(url, Authorization=f"Bearer {key}")


def web(url: str, **headers: str) -> httpx2.Client:
    # Without certificates to load, which takes longer than most tests.
    return httpx2.Client(base_url=url, headers=headers, timeout=20, verify=False)


def owner(name: str) -> UUID:
    with db.transaction() as session:
        return keys.authenticate(session, keys.create(session, name)).owner_id


def give_weights(network: NetworkName, content: bytes) -> None:
    """Put a file where the operator would: the application looks no further into it."""
    file = weights.path(network)
    file.parent.mkdir(parents=True, exist_ok=True)
    other = file.with_suffix(".new")
    other.write_bytes(content)
    other.replace(file)


def small_zip(**more: bytes) -> bytes:
    return zip_bytes(two_classes(**more))


def uploaded(client: httpx2.Client, body: bytes | None = None, name: str = "pets") -> JSON:
    """Upload a data set over HTTP and ingest it here."""
    answer = client.post("/v1/datasets", params={"name": name}, content=body or small_zip())
    assert answer.status_code == 202, answer.text
    work()
    shown: JSON = client.get(answer.headers["Location"]).json()
    return shown


def protected(client: httpx2.Client, dataset_id: str, **config: object) -> JSON:
    body = {"dataset_id": dataset_id, "config": config}
    answer = client.post("/v1/protections", json=body)
    assert answer.status_code == 202, answer.text
    created: JSON = answer.json()
    return created


def ingested(owner_id: UUID, name: str = "pets") -> UUID:
    """A data set without HTTP."""
    dataset_id = uuid4()
    data = small_zip()
    digest = storage.write(storage.dataset_key(dataset_id, datasets.SOURCE), data)
    with db.transaction() as session:
        datasets.create(session, owner_id, dataset_id, name, digest, len(data))
    work()
    return dataset_id


def work() -> None:
    """Run what the `cpu` workers would run, here: the real task on the real database."""
    with db.reading() as session:
        waiting = select(Step.id).where(Step.state == StepState.READY, Step.kind == StepKind.INGEST)
        ready = session.scalars(waiting).all()
    for step_id in ready:
        tasks.run_step(str(step_id))


def requested(
    owner_id: UUID, dataset_id: UUID, key: str | None = None, **evaluation: object
) -> UUID:
    """A queued protection."""
    request = protections.Request(dataset_id, "quick", {}, evaluation)
    with db.transaction() as session:
        return protections.create(session, owner_id, request, key).id


def steps_of(protection_id: UUID) -> list[Step]:
    with db.reading() as session:
        return steps.of(session, protection_id)


def step(protection_id: UUID, kind: StepKind, index: int = 0) -> Step:
    return next(s for s in steps_of(protection_id) if (s.kind, s.index) == (kind, index))


def states(protection_id: UUID) -> list[tuple[StepKind, StepState]]:
    return [(each.kind, each.state) for each in steps_of(protection_id)]


def protection(protection_id: UUID) -> Protection:
    with db.reading() as session:
        return session.get_one(Protection, protection_id)


def dataset(dataset_id: UUID) -> Dataset:
    with db.reading() as session:
        return session.get_one(Dataset, dataset_id)


def claimed(step_id: UUID, worker: str = "worker") -> Claim | None:
    with db.transaction() as session:
        claim = leases.claim(session, step_id, worker)
        if claim is not None and claim.protection_id is not None:
            steps.start(session, claim)
    return claim


def must_claim(protection_id: UUID, kind: StepKind, index: int = 0) -> Claim:
    claim = claimed(step(protection_id, kind, index).id)
    assert claim is not None
    return claim


def half_done_in_a_minute(claim: Claim) -> None:
    with db.transaction() as session:
        session.get_one(Step, claim.step_id).started_at = db.now(session) - timedelta(minutes=1)
        leases.report(session, claim, 5, 10)


def freeze(claim: Claim) -> None:
    """As the `train` step does: a plan with two shards."""
    with db.transaction() as session:
        requested = session.get_one(Protection, claim.protection_id).requested
        config, plan = planning.freeze(requested, 2, 5_000, 32, CPU)
        evaluation = named(planning.load_evaluation(requested["evaluation"]), config)
        costs = COSTS | {StepKind.EVALUATE: [3.0] * evaluation.trainings}
        steps.freeze(session, claim, config, plan, evaluation, costs)
        steps.release(session, claim)


def finish(claim: Claim, output: JSON | None = None) -> None:
    with db.transaction() as session:
        ended = steps.finish(session, claim, output or {})
    protections.clean(ended)


def examined() -> tuple[int, dict[str, list[str]]]:
    """What `sepgate doctor` says: the exit status, and by part `state text`."""
    result = CliRunner().invoke(command, ["doctor"])
    found: dict[str, list[str]] = {}
    for line in result.output.splitlines():
        state, part, text = line.split(maxsplit=2)
        found.setdefault(part, []).append(f"{state} {text}")
    return result.exit_code, found


def beat(
    queue: Queue = Queue.GPU, device: str = "cuda", silent_seconds: float = 0, **fields: Any
) -> None:
    """A worker registers, or did and has said nothing for so long."""
    told = {
        "name": f"host/0:{queue}-{device}-{silent_seconds}",
        "queue": queue,
        "device": device,
        "device_name": "H100",
        "memory_bytes": 1,
        "bfloat16": True,
        "threads": 1,
        "versions": {},
    }
    with db.transaction() as session:
        at = db.now(session) - timedelta(seconds=silent_seconds)
        session.add(Worker(started_at=at, heartbeat_at=at, **told | fields))


def train(protection_id: UUID) -> None:
    """Run the `train` step: what follows are two ready shards."""
    claim = must_claim(protection_id, StepKind.TRAIN)
    freeze(claim)
    storage.write(storage.protection_key(protection_id, "checkpoints/000.pt"), b"key")
    finish(claim, TRAINED)


def succeed(protection_id: UUID, data: bytes = ARCHIVE_BYTES) -> None:
    """Run every step to its end, with outputs and blobs like real ones."""
    train(protection_id)
    for index in (0, 1):
        storage.write(storage.protection_key(protection_id, f"shards/{index:05d}.bin"), b"pixels")
        finish(must_claim(protection_id, StepKind.PERTURB, index), {"sha256": "0" * 64})
    digest = storage.write(storage.protection_key(protection_id, protections.ARCHIVE), data)
    record = b'{"files": [], "refused": [{"name": "a.txt", "code": "C", "reason": "no image"}]}'
    storage.write(storage.protection_key(protection_id, protections.RECORD), record)
    for name in (protections.PREVIEW, protections.WORST):
        storage.write(storage.protection_key(protection_id, name), b"\x89PNG")
    packaged = {"archive_sha256": digest, "archive_bytes": len(data), **CHANGE}
    finish(must_claim(protection_id, StepKind.PACKAGE), packaged)
    for each in steps_of(protection_id):
        if each.kind is StepKind.EVALUATE:
            last = 0.3 if each.index % 2 else 0.9
            finish(must_claim(protection_id, each.kind, each.index), accuracy(last))


def accuracy(last: float, peak: float | None = None, **by_class: float) -> JSON:
    """Of an `evaluate` step; of each class the last accuracy where another is given."""
    curve = [0.5, last if peak is None else peak, last]
    return {
        "accuracy_by_epoch": curve,
        "accuracy_last": last,
        "accuracy_peak": max(curve),
        "by_class": {
            name: {
                "images": images,
                "recognised_last": round(images * by_class.get(name, last)),
                "recognised_peak": round(images * max(curve)),
            }
            for name, images in (("cat", 40), ("dog", 40))
        },
    }


TRAINED = {
    "checkpoints": [{"epoch": 20, "sha256": "1" * 64}],
    "train_images": 4,
    "held_out_images": 2,
    "held_out_from": "test",
}
CHANGE = {
    "images": 4,
    "largest_change_levels": 8,
    "changed_share": 0.97,
    "unchanged_images": 0,
    "ssim_mean": 0.95,
    "ssim_p5": 0.9,
    "psnr_db": 32.1,
    "histogram": [3, 0, 0, 0, 0, 0, 0, 0, 97] + [0] * 56,
    "shows": {"ssim_below": 0.92, "images": 1, "share": 0.25},
    "may_show": {"ssim_below": 0.95, "images": 3, "share": 0.75},
    "worst": [{"name": "a.png", "ssim": 0.9, "psnr_db": None, "changed_share": 0.0}],
}


def blob_folder() -> Path:
    return Path(unquote(urlparse(settings().storage).path))


def blobs(prefix: str = "") -> list[str]:
    """Every file in storage below a prefix, half-written ones included."""
    top = blob_folder()
    files = (path for path in (top / prefix).rglob("*") if path.is_file())
    return sorted(str(path.relative_to(top)) for path in files)


def left() -> list[str]:
    """Everything in storage, empty folders included."""
    return [
        str(path)
        for kind in ("datasets", "protections")
        for path in (blob_folder() / kind).glob("*")
    ]


def queued(name: Queue) -> int:
    return queue.waiting(name)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls at the same moment, a thread each; their results or exceptions in order."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(index: int, call: Callable[[], Any]) -> None:
        barrier.wait(10)
        try:
            results[index] = call()
        except Exception as error:  # noqa: BLE001  the test looks at it
            results[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results
