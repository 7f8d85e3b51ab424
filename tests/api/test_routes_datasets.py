"""Uploads as clients make them, whole and broken, and what is left behind."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from api import datasets
from api.db import now, reading, transaction
from api.models import Dataset, DatasetState, Queue, StepState
from tests import servers
from tests.api.archives import png, zip_bytes
from tests.api.conftest import JSON, Change, blobs, left, protected, queued, uploaded
from tests.api.lives import (
    claimed,
    half_done_in_a_minute,
    owner,
    requested,
    small_zip,
    succeed,
    work,
)


def rows() -> int:
    with reading() as session:
        return session.query(Dataset).count()


def problem(answer: httpx2.Response, status: int, code: str) -> JSON:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: JSON = answer.json()
    assert (found["status"], found["code"]) == (status, code)
    assert found["detail"]
    return found


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_upload(client: httpx2.Client, chunked: bool) -> None:
    data = small_zip(notes__readme=b"read me")
    content = pieces(data) if chunked else data
    answer = client.post("/v1/datasets", params={"name": "pets"}, content=content)
    assert answer.status_code == 202
    shown = answer.json()
    assert answer.headers["Location"] == f"/v1/datasets/{shown['id']}"
    assert int(answer.headers["Retry-After"]) > 0
    assert (shown["state"], shown["done"], shown["name"]) == ("ingesting", False, "pets")
    assert shown["sha256"] == hashlib.sha256(data).hexdigest()
    assert shown["size_bytes"] == len(data)
    assert blobs() == [f"datasets/{shown['id']}/source.zip"]
    assert queued(Queue.CPU) == 1

    polled = client.get(answer.headers["Location"])
    assert polled.headers["Retry-After"]
    assert polled.json()["done"] is False
    work()
    ready = client.get(answer.headers["Location"])
    assert "Retry-After" not in ready.headers
    found = ready.json()
    assert (found["state"], found["done"], found["progress"]) == ("ready", True, 1.0)
    assert found["counts"] == {"train": {"cat": 2, "dog": 2}}
    assert (found["sizes"], found["median_side"]) == ({"10x12": 4}, 10)
    assert (found["images"], found["refused_count"]) == (4, 1)
    assert [refused["name"] for refused in found["refused"]] == ["notes/readme"]
    assert found["refused"][0]["reason"]


def test_a_form_is_no_archive(client: httpx2.Client) -> None:
    """Its framing would be stored with it."""
    answer = client.post("/v1/datasets", files={"file": ("my.zip", small_zip())})
    told = problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert "Expected the archive itself as the body" in str(told)
    assert client.get("/v1/datasets").json()["items"] == []


def test_the_eta_of_an_ingestion(client: httpx2.Client) -> None:
    made = client.post("/v1/datasets", content=small_zip()).json()
    assert made["eta_seconds"] is None
    with reading() as session:
        claim = claimed(datasets.ingest_step(session, UUID(made["id"])).id)
    assert claim is not None
    half_done_in_a_minute(claim)
    shown = client.get(f"/v1/datasets/{made['id']}").json()
    assert shown["progress"] == 0.5
    assert shown["eta_seconds"] == pytest.approx(60, abs=5)
    assert client.get("/v1/datasets").json()["items"][0]["eta_seconds"] <= 65
    with transaction() as session:
        datasets.ready(session, claim, {"summary": {}, "refused": []})
    assert client.get(f"/v1/datasets/{made['id']}").json()["eta_seconds"] is None


def test_an_empty_body_is_rejected_by_the_worker(client: httpx2.Client) -> None:
    answer = client.post("/v1/datasets")
    assert answer.status_code == 202
    assert answer.json()["size_bytes"] == 0
    work()
    found = client.get(answer.headers["Location"]).json()
    assert (found["state"], found["done"]) == ("rejected", True)
    assert found["error_code"] == "NOT_A_ZIP"
    assert found["error"].endswith(".")
    assert blobs() == []
    refused = client.post("/v1/protections", json={"dataset_id": found["id"]})
    assert "NOT_A_ZIP" not in problem(refused, 409, "DATASET_REJECTED")["detail"]
    assert found["error"] in refused.json()["detail"]


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "unannounced"])
def test_too_large(client: httpx2.Client, change: Change, chunked: bool) -> None:
    change(MAX_UPLOAD_BYTES=3000)
    data = b"x" * 3001
    content = pieces(data) if chunked else data
    detail = problem(client.post("/v1/datasets", content=content), 413, "UPLOAD_TOO_LARGE")
    assert "3000" in detail["detail"]
    assert (left(), rows()) == ([], 0)
    assert client.post("/v1/datasets", content=data[:3000]).status_code == 202


def test_no_room(client: httpx2.Client, change: Change) -> None:
    change(MIN_FREE_BYTES=2**62)
    problem(client.post("/v1/datasets", content=small_zip()), 507, "STORAGE_FULL")
    problem(client.post("/v1/datasets", content=pieces(small_zip())), 507, "STORAGE_FULL")
    assert (left(), rows()) == ([], 0)


def test_a_disk_that_fills_up(client: httpx2.Client, change: Change, tiny_disk: Path) -> None:
    change(STORAGE_URL=(tiny_disk / "blobs").as_uri())
    long = (b"x" * 2**20 for _ in range(128))
    problem(client.post("/v1/datasets", content=long), 507, "STORAGE_FULL")
    assert (left(), rows()) == ([], 0)
    assert client.post("/v1/datasets", content=small_zip()).status_code == 202


def test_the_reserve_is_kept_without_an_announced_length(
    client: httpx2.Client, change: Change, tiny_disk: Path
) -> None:
    change(STORAGE_URL=(tiny_disk / "blobs").as_uri(), MIN_FREE_BYTES=40 * 2**20)
    fits = (b"x" * 2**20 for _ in range(92))  # on the disk, but not beside the reserve
    found = problem(client.post("/v1/datasets", content=fits), 507, "STORAGE_FULL")
    assert "reserve" in found["detail"]
    assert (left(), rows()) == ([], 0)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_upload_that_is_broken_off(client: httpx2.Client, chunked: bool) -> None:
    framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 40000000"
    part = b"x" * 2**20
    body = b"%x\r\n%s\r\n" % (len(part), part) if chunked else part
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        head = f"POST /v1/datasets HTTP/1.1\r\nHost: x\r\n{framing}\r\n"
        raw.sendall(f"{head}Authorization: {client.headers['Authorization']}\r\n\r\n".encode())
        for _ in range(12):
            raw.sendall(body)
        servers.wait_for(lambda: bool(blobs()), 10, "the first bytes")
    servers.wait_for(lambda: not left(), 10, "the half upload to go")
    assert rows() == 0
    assert client.get("/v1/datasets").json() == {"items": [], "next_cursor": None}


def test_a_row_whose_commit_was_not_answered_has_its_blob(client: httpx2.Client) -> None:
    """The connection breaks after the database has committed: the client is told to try again."""

    def break_off(session: Session) -> None:
        if any(isinstance(row, Dataset) for row in session):
            raise OperationalError("COMMIT", {}, ConnectionResetError("gone"))

    event.listen(Session, "after_commit", break_off)
    try:
        problem(client.post("/v1/datasets", content=small_zip()), 503, "UNAVAILABLE")
    finally:
        event.remove(Session, "after_commit", break_off)
    assert rows() == 1
    (shown,) = client.get("/v1/datasets").json()["items"]
    assert blobs() == [f"datasets/{shown['id']}/source.zip"]


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "", "x" * 201, "\x7f"])
def test_names_that_are_refused(client: httpx2.Client, name: str) -> None:
    answer = client.post("/v1/datasets", params={"name": name}, content=small_zip())
    assert problem(answer, 422, "INVALID_REQUEST")["errors"][0]["field"] == "query.name"
    assert (left(), rows()) == ([], 0)


def test_a_name_of_any_script(client: httpx2.Client) -> None:
    name = "Hunde & 猫 <b>"
    assert uploaded(client, name=name)["name"] == name


def test_lists_page_by_page(client: httpx2.Client, other: httpx2.Client) -> None:
    mine = [client.post("/v1/datasets", content=b"x").json()["id"] for _ in range(5)]
    theirs = [other.post("/v1/datasets", content=b"x").json()["id"] for _ in range(2)]
    for who, made in ((client, mine), (other, theirs)):
        found: list[str] = []
        cursor, calls = None, 0
        while calls == 0 or cursor:
            query = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = who.get("/v1/datasets", params=query).json()
            assert 0 < len(page["items"]) <= 2
            found += [item["id"] for item in page["items"]]
            cursor, calls = page["next_cursor"], calls + 1
        assert found == made[::-1]
        assert calls == -(-len(made) // 2)


def test_deleting(client: httpx2.Client) -> None:
    first = client.post("/v1/datasets", content=small_zip()).json()["id"]
    work()
    made = protected(client, first)["id"]
    found = problem(client.delete(f"/v1/datasets/{first}"), 409, "DATASET_BUSY")
    assert found["protections"] == [made]
    assert client.post(f"/v1/protections/{made}/cancel").json()["state"] == "cancelled"
    gone = client.delete(f"/v1/datasets/{first}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert blobs() == []
    problem(client.get(f"/v1/datasets/{first}"), 404, "NOT_FOUND")
    problem(client.delete(f"/v1/datasets/{first}"), 404, "NOT_FOUND")


def test_an_archive_outlives_its_originals(client: httpx2.Client, ready_dataset: str) -> None:
    made = requested(owner("alice"), UUID(ready_dataset))
    succeed(made)
    assert client.delete(f"/v1/datasets/{ready_dataset}").status_code == 204
    shown = client.get(f"/v1/protections/{made}").json()
    assert (shown["dataset_id"], shown["dataset_name"]) == (None, "pets")
    assert client.get(f"/v1/protections/{made}/archive").status_code == 200
    assert client.get(f"/v1/protections/{made}/report").json()["dataset"]["name"] == "pets"


def test_refused_files_are_listed(client: httpx2.Client) -> None:
    broken = {"cat/broken.png": png(1)[:60], "dog/tale.txt": b"once", "cat/empty.jpg": b""}
    good = {f"{name}/{number}.png": png(number) for name in ("cat", "dog") for number in (7, 8)}
    found = uploaded(client, zip_bytes(good | broken))
    assert (found["state"], found["images"], found["refused_count"]) == ("ready", 4, 3)
    assert {refused["name"] for refused in found["refused"]} == set(broken)
    assert all(refused["code"].isupper() and refused["reason"] for refused in found["refused"])
    assert "refused" not in client.get("/v1/datasets").json()["items"][0]


def test_only_what_was_rejected_for_no_fault_of_its_own_is_read_again(
    client: httpx2.Client, ready_dataset: str
) -> None:
    refused = client.post(f"/v1/datasets/{ready_dataset}/retry")
    problem(refused, 409, "DATASET_NOT_RETRIABLE")
    with transaction() as session:
        row = session.get_one(Dataset, UUID(ready_dataset))
        row.state, row.error_code, row.finished_at = DatasetState.REJECTED, "INTERNAL", now(session)
        datasets.ingest_step(session, row.id).state = StepState.FAILED
    answer = client.post(f"/v1/datasets/{ready_dataset}/retry")
    assert (answer.status_code, answer.json()["state"]) == (202, "ingesting")
    work()
    assert client.get(f"/v1/datasets/{ready_dataset}").json()["state"] == "ready"
