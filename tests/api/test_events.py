"""What has happened is on record: in order, for its owner alone, page by page and as it happens."""

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from itertools import islice, pairwise
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import delete, select

from api import events, keys
from api.db import reading, transaction
from api.models import Event, Step, StepKind
from api.scheduling import endings
from api.scheduling.endings import Setback
from api.scheduling.moves import lease_name
from tests.api.conftest import JSON, protected, together
from tests.api.lives import finish, ingested, must_claim, requested, succeed, train
from tests.api.test_routes_datasets import problem

LOST = Setback("WORKER_LOST", "It was lost.", suspect=False)


@pytest.fixture
def asked(client: httpx2.Client, ready_dataset: str) -> str:
    return str(protected(client, ready_dataset)["id"])


def whole(client: httpx2.Client, protection_id: str) -> list[JSON]:
    found: list[JSON] = []
    after: int | None = 0
    while after is not None:
        params = {"after": after, "limit": 3}
        page = client.get(f"/v1/protections/{protection_id}/events", params=params).json()
        found += page["items"]
        after = page["next_after"]
    return found


def names(found: list[JSON]) -> list[str]:
    return [
        f"{event['what']} {event['data']['kind']}" if "kind" in event["data"] else event["what"]
        for event in found
    ]


def test_the_life_of_a_protection(client: httpx2.Client, asked: str) -> None:
    claim = must_claim(UUID(asked), StepKind.TRAIN)
    endings.end(claim, partial(endings.set_back, setback=LOST))
    assert names(whole(client, asked)) == [
        "protection.queued",
        "step.running train",
        "protection.running",
        "step.ready train",
    ]
    lost = whole(client, asked)[-1]["data"]
    assert (lost["error_code"], lost["error"]) == ("WORKER_LOST", "It was lost.")
    assert lost["not_before"]


def test_a_claim_is_told_by_its_name_and_its_end_with_who_wrote_it(
    client: httpx2.Client, asked: str
) -> None:
    lost = must_claim(UUID(asked), StepKind.TRAIN)
    endings.end(lost, partial(endings.set_back, setback=LOST))
    with transaction() as session:
        session.get_one(Step, lost.step_id).not_before = None
    claim = must_claim(UUID(asked), StepKind.TRAIN)
    finish(claim)
    found = whole(client, asked)
    told = [event["data"] for event in found if event["what"].startswith("step.")]
    assert [data["lease"] for data in told] == [
        lease_name(c.token) for c in (lost, lost, claim, claim)
    ]
    assert [data["process"].rpartition(":")[2] for data in told[1::2]] == [str(os.getpid())] * 2
    assert not any(str(c.token) in json.dumps(found) for c in (lost, claim))


def test_a_success_a_deletion_and_what_stays(client: httpx2.Client, asked: str) -> None:
    succeed(UUID(asked))
    found = names(whole(client, asked))
    assert found.count("step.done perturb") == 2
    assert found[-1] == "protection.succeeded"
    assert client.delete(f"/v1/protections/{asked}").status_code == 204
    problem(client.get(f"/v1/protections/{asked}"), 404, "NOT_FOUND")
    assert names(whole(client, asked)) == [*found, "protection.deleted"]


def test_one_from_before_there_were_events_has_none(client: httpx2.Client, asked: str) -> None:
    with transaction() as session:
        session.execute(delete(Event))
    assert whole(client, asked) == []


def test_of_another_owner_there_are_none(
    client: httpx2.Client, other: httpx2.Client, asked: str
) -> None:
    assert whole(client, asked)
    for path in ("events", "events/stream"):
        problem(other.get(f"/v1/protections/{asked}/{path}"), 404, "NOT_FOUND")
        problem(client.get(f"/v1/protections/{UUID(int=1)}/{path}"), 404, "NOT_FOUND")


def test_a_data_set_s_are_kept_too(owner_id: UUID) -> None:
    dataset_id = ingested(owner_id)
    with reading() as session:
        query = select(Event.what).where(Event.dataset_id == dataset_id).order_by(Event.id)
        found = session.scalars(query).all()
    assert found == ["dataset.ingesting", "step.running", "step.done", "dataset.ready"]


def received(answer: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Server-sent events off the wire; comments apart."""
    fields: dict[str, Any] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if not line and fields:
            yield fields | {"data": json.loads(fields["data"])}
            fields = {}
        elif name:
            fields[name] = value


def test_a_stream_tells_what_happens_and_goes_on_after_what_is_known(
    client: httpx2.Client, asked: str
) -> None:
    address = f"/v1/protections/{asked}/events/stream"
    with client.stream("GET", address, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = received(answer)
        first = next(stream)
        assert (first["event"], first["data"]["what"]) == ("protection.queued",) * 2
        assert next(stream)["event"] == "progress"
        claim = must_claim(UUID(asked), StepKind.TRAIN)
        seen = [event["event"] for event in islice(stream, 2)]
        assert seen == ["step.running", "protection.running"]
    client.post(f"/v1/protections/{asked}/cancel")
    finish(claim)
    with client.stream("GET", address, headers={"Last-Event-ID": first["id"]}) as answer:
        rest = list(received(answer))  # it ends
    assert [event["event"] for event in rest] == [
        "step.running",
        "protection.running",
        "protection.cancel_requested",
        "step.done",
        "protection.cancelled",
    ]
    # A browser that connects again with what it knows is told not to.
    again = client.get(address, headers={"Last-Event-ID": rest[-1]["id"]})
    assert (again.status_code, again.content) == (204, b"")


def test_a_stream_ends_when_its_key_is_revoked(client: httpx2.Client, asked: str) -> None:
    with client.stream("GET", f"/v1/protections/{asked}/events/stream", timeout=30) as answer:
        stream = received(answer)
        assert next(stream)["event"] == "protection.queued"
        with transaction() as session:
            (key, _), *_ = keys.listing(session)
            assert keys.revoke(session, key.prefix) == 1
        assert [event["event"] for event in stream] == ["progress"]


@pytest.mark.parametrize("last", ["-1", "x", "1.5", str(2**63)])
def test_a_last_event_that_is_none(client: httpx2.Client, asked: str, last: str) -> None:
    answer = client.get(f"/v1/protections/{asked}/events/stream", headers={"Last-Event-ID": last})
    assert "last-event-id" in json.dumps(problem(answer, 422, "INVALID_REQUEST")).lower()


@pytest.mark.parametrize("_again", range(4))
def test_who_has_read_one_has_read_all_before_it(owner_id: UUID, ready: UUID, _again: int) -> None:
    """However steps end at once: an event that is committed late has no smaller number."""
    protection_id = requested(owner_id, ready)
    train(protection_id)
    claims = [must_claim(protection_id, StepKind.PERTURB, index) for index in (0, 1)]
    over, reads = threading.Event(), list[list[int]]()

    def read() -> None:
        while not over.is_set():
            with reading() as session:
                found = events.after(session, owner_id, protection_id, 0, 100)
                reads.append([event.id for event in found])

    def end() -> None:
        together(*[partial(finish, claim) for claim in claims])
        over.set()

    together(read, end)
    for earlier, later in pairwise(reads):
        assert later[: len(earlier)] == earlier
