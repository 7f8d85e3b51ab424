"""What a policy deletes, what it leaves, and what is on record of it."""

import time
from datetime import timedelta
from threading import Thread
from uuid import UUID

import httpx2
from sqlalchemy import select, update

from api import datasets, retention, storage
from api.db import now, transaction
from api.models import Dataset, Event, Protection, Step
from tests.api.conftest import Change, protected, uploaded
from tests.api.lives import succeed


def age(model: type[Dataset] | type[Protection], row_id: str, days: float) -> None:
    """As if it had ended, and all that is known of it had happened, so long ago."""
    of = Event.dataset_id if model is Dataset else Event.protection_id
    with transaction() as session:
        at = now(session) - timedelta(days=days)
        session.execute(update(model).where(model.id == UUID(row_id)).values(finished_at=at))
        session.execute(update(Event).where(of == UUID(row_id)).values(at=at))


def reasons(what: str) -> list[str | None]:
    with transaction() as session:
        events = session.scalars(select(Event).where(Event.what == what).order_by(Event.id))
        return [event.data.get("why") for event in events]


def succeeded(client: httpx2.Client, dataset_id: str) -> str:
    made: str = protected(client, dataset_id)["id"]
    succeed(UUID(made))
    return made


def blobs(kind: str) -> set[UUID]:
    return storage.idle_owners(kind, -1)


def test_nothing_is_deleted_by_default(client: httpx2.Client) -> None:
    made = uploaded(client)["id"]
    age(Dataset, made, 10_000)
    retention.expire()
    assert client.get(f"/v1/datasets/{made}").status_code == 200


def test_protections_go_with_their_blobs_when_their_time_is_over(
    client: httpx2.Client, change: Change
) -> None:
    made = uploaded(client)["id"]
    old, young = (succeeded(client, made) for _ in range(2))
    active = protected(client, made)["id"]
    age(Protection, old, 31)
    age(Protection, young, 29)
    change(KEEP_PROTECTIONS_DAYS=30)
    shown = client.get(f"/v1/protections/{young}").json()
    assert shown["kept_until"] > shown["finished_at"]
    assert client.get(f"/v1/protections/{active}").json()["kept_until"] is None
    retention.expire()
    left = {item["id"] for item in client.get("/v1/protections").json()["items"]}
    assert left == {young, active}
    assert UUID(old) not in blobs("protections")
    assert UUID(young) in blobs("protections")
    assert reasons("protection.deleted") == ["It was kept for 30 days."]


def test_data_sets_go_when_they_were_not_used_for_so_long(
    client: httpx2.Client, change: Change
) -> None:
    unused, used, busy, fresh = (uploaded(client)["id"] for _ in range(4))
    for made in (unused, used, busy):
        age(Dataset, made, 100)
    lately = succeeded(client, used)
    age(Protection, lately, 5)
    protected(client, busy)
    change(KEEP_DATASETS_DAYS=30)
    retention.expire()
    left = {item["id"] for item in client.get("/v1/datasets").json()["items"]}
    assert left == {used, busy, fresh}
    assert UUID(unused) not in blobs("datasets")
    assert reasons("dataset.deleted") == ["It was kept for 30 days."]
    age(Protection, lately, 31)
    retention.expire()
    assert used not in {item["id"] for item in client.get("/v1/datasets").json()["items"]}
    assert client.get(f"/v1/protections/{lately}").json()["archive"] is not None


def test_a_use_counts_though_the_protection_is_gone(client: httpx2.Client, change: Change) -> None:
    made = uploaded(client)["id"]
    age(Dataset, made, 40)
    age(Protection, succeeded(client, made), 8)
    change(KEEP_DATASETS_DAYS=30, KEEP_PROTECTIONS_DAYS=7)
    retention.expire()
    assert client.get("/v1/protections").json()["items"] == []
    assert client.get(f"/v1/datasets/{made}").status_code == 200


def test_an_owner_who_deletes_at_the_same_time_is_not_waited_for_in_turns(
    client: httpx2.Client, change: Change
) -> None:
    """Whoever changes a data set locks its step first: else each has what the other waits for."""
    dataset_id = UUID(uploaded(client)["id"])
    change(keep_datasets_days=3)
    age(Dataset, str(dataset_id), 4)
    policy = Thread(target=retention.expire)
    with transaction() as session:
        session.execute(select(Step.id).where(Step.dataset_id == dataset_id).with_for_update())
        policy.start()
        time.sleep(0.5)  # it has locked what it locks first
        datasets.lock(session, dataset_id)
    policy.join()
    with transaction() as session:
        assert session.get(Dataset, dataset_id) is None
