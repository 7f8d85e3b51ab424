"""What `sepgate doctor` finds, and what it says is to be mended."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from fastapi import FastAPI, Request, Response
from redis import Redis

from api import keys
from api.commands import doctor
from api.db import transaction
from api.models import Queue, Worker
from api.scheduling import locks
from tests import servers
from tests.api.conftest import Change, beat, examined, serving
from tests.api.lives import requested, train


@pytest.fixture
def whole(environment: dict[str, str]) -> None:
    assert environment
    for queue in Queue:
        beat(queue)
    with transaction() as session:
        keys.create(session, "tester")
        assert locks.hold(session, locks.SWEEP, "host/1:1", 60)


@pytest.mark.usefixtures("whole")
def test_a_whole_set_up() -> None:
    status, found = examined()
    assert status == 0, found
    assert set(found) == {
        *("database", "queue", "storage", "disk", "clock", "workers", "sweep", "blobs")
    }
    assert found["queue"] == ["ok 0 messages in gpu, 0 messages in cpu"]
    assert found["workers"] == ["ok 1 serve gpu: H100", "ok 1 serve cpu: H100"]
    assert "migration 2026" in found["database"][0]
    assert [line.split()[0] for lines in found.values() for line in lines].count("fail") == 0


def test_without_keys_workers_and_sweep(environment: dict[str, str]) -> None:
    assert environment
    beat(Queue.GPU, silent_seconds=3600)
    status, found = examined()
    assert status == 1
    assert found["database"][1].startswith("warn No API key")
    assert [line[:22] for line in found["workers"]] == [
        "fail None serves gpu: ",
        "fail None serves cpu: ",
    ]
    assert "sepgate worker --queue gpu" in found["workers"][0]
    assert found["sweep"][0].startswith("fail None is at work: start `python -m worker.sweep`")


@pytest.mark.usefixtures("whole")
def test_plans_for_a_device_that_no_worker_has(owner_id: UUID, ready: UUID) -> None:
    train(requested(owner_id, ready))  # on a CPU
    status, found = examined()
    assert status == 1
    told = "fail 1 protections are planned for cpu, and no worker has one: start one."
    assert told in found["workers"]


@pytest.mark.usefixtures("whole")
def test_no_gpu_is_worth_a_word() -> None:
    with transaction() as session:
        for worker in session.query(Worker):
            worker.device = "cpu"
    status, found = examined()
    assert status == 0
    assert found["workers"][2].startswith("warn None has a GPU")


@pytest.mark.usefixtures("whole")
def test_a_gpu_of_which_nothing_is_heard() -> None:
    """But not where another worker, in another container maybe, serves it."""
    for seconds in (600.0, 700.0, 800.0, 0.5):
        beat(Queue.GPU, silent_seconds=seconds)
    cards = {600.0: "GPU-a1", 700.0: "GPU-b2", 800.0: "0", 0.5: "GPU-b2"}
    with transaction() as session:
        for seconds, card in cards.items():
            session.get_one(Worker, f"host/0:gpu-cuda-{seconds}").gpu = card
        session.get_one(Worker, "host/0:gpu-cuda-0.5").name = "another/0:gpu"
    status, found = examined()
    assert status == 0
    warned = sorted(line for line in found["workers"] if line.startswith("warn"))
    assert [line.partition(" has been silent")[0] for line in warned] == [
        "warn H100 0 of host",
        "warn H100 GPU-a1",
    ]


@pytest.mark.usefixtures("whole")
def test_parts_that_are_away(change: Change) -> None:
    change(REDIS_URL=f"redis://127.0.0.1:{servers.free_port()}/0", STORAGE_URL="file:///proc/none")
    status, found = examined()
    assert status == 1
    assert found["queue"][0].startswith("fail Expected a Redis at SEPGATE_REDIS_URL")
    assert found["storage"][0].startswith("fail Expected to write and read")
    assert found["workers"][0].startswith("ok")


@pytest.mark.usefixtures("whole")
def test_a_queue_that_follows_another_takes_no_messages(redis_url: str) -> None:
    with Redis.from_url(redis_url) as broker:
        broker.replicaof("127.0.0.1", str(servers.free_port()))
        try:
            status, found = examined()
        finally:
            broker.replicaof("NO", "ONE")
    assert status == 1
    assert found["queue"][0].startswith("fail The queue takes no messages: ")


@pytest.mark.usefixtures("whole")
def test_a_folder_for_temporary_files_that_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes another in silence, which may be memory, or small."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    status, found = examined()
    assert status == 1
    assert found["disk"] == [
        f"fail Expected to write in {tmp_path / 'none'} (TMPDIR), and could not."
    ]


@pytest.mark.usefixtures("whole")
def test_little_room(change: Change, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = (tiny_disk / "blobs").as_uri()
    change(STORAGE_URL=blobs)
    monkeypatch.setattr(tempfile, "tempdir", str(tiny_disk))
    status, found = examined()
    assert status == 0
    little = "0.1 GiB free: little for archives of photographs."
    assert found["storage"] == [f"warn {blobs}, {little}"]
    assert found["disk"] == [f"warn {tiny_disk}, {little}"]
    monkeypatch.setattr(doctor, "LOW_BYTES", 80 * 2**20)
    _, found = examined()
    assert found["storage"] == [f"ok {blobs}, 0.1 GiB free"]
    assert found["disk"] == [f"ok {tiny_disk}, 0.1 GiB free"]


def careless_store() -> FastAPI:
    """Takes what it is given in S3's way, and gives something else."""
    app = FastAPI()
    headers = {"ETag": '"1"', "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}

    @app.api_route("/{key:path}", methods=["GET", "PUT"])
    def answer(request: Request) -> Response:
        listing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
        is_listing = "list-type" in request.query_params
        return Response(listing if is_listing else b"others' bytes", headers=headers)

    return app


@pytest.mark.usefixtures("whole")
def test_a_storage_that_gives_other_bytes(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "tester")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with serving(careless_store()) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        change(STORAGE_URL="s3://sepgate")
        status, found = examined()
    assert status == 1
    assert found["storage"] == ["fail Read other bytes than were written."]


def test_a_database_without_tables_or_away(
    environment: dict[str, str], change: Change, tmp_path: Path
) -> None:
    assert environment
    (tmp_path / "empty.sqlite3").touch()
    change(DATABASE_URL=f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    status, found = examined()
    assert status == 1
    assert "got None; run `sepgate migrate`" in found["database"][0]
    assert "workers" not in found
    change(DATABASE_URL=f"postgresql+psycopg://x:secret@127.0.0.1:{servers.free_port()}/x")
    status, found = examined()
    assert status == 1
    assert found["database"][0].startswith("fail Expected a database at SEPGATE_DATABASE_URL")
    assert "secret" not in str(found)


@pytest.mark.usefixtures("whole")
def test_a_clock_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, _zone: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(minutes=2)

    monkeypatch.setattr("api.commands.doctor.datetime", Late)
    status, found = examined()
    assert status == 0
    assert found["clock"][0].startswith("warn This host is -120 s from the database")
