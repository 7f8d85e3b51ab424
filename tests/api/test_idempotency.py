"""Idempotency keys: the same request twice makes one protection."""

import httpx2
import pytest

from tests.api.asking import ask, rows
from tests.api.conftest import together, uploaded
from tests.api.test_routes_datasets import problem


def test_the_same_request_twice(client: httpx2.Client, ready_dataset: str) -> None:
    first = ask(client, ready_dataset, "key", steps=3)
    assert ask(client, ready_dataset, "key", steps=3)["id"] == first["id"]
    assert rows() == 1
    for config in ({"steps": 4}, {"steps": 3, "preset": "paper"}):
        body = {"dataset_id": ready_dataset, "config": config}
        answer = client.post("/v1/protections", json=body, headers={"Idempotency-Key": "key"})
        found = problem(answer, 422, "IDEMPOTENCY_KEY_REUSED")
        assert first["id"] in found["detail"]
    assert ask(client, ready_dataset, steps=3)["id"] != first["id"]
    assert ask(client, ready_dataset, "another", steps=3)["id"] != first["id"]


def test_the_same_request_after_its_end(client: httpx2.Client, ready_dataset: str) -> None:
    first = ask(client, ready_dataset, "key")
    client.post(f"/v1/protections/{first['id']}/cancel")
    body = {"dataset_id": ready_dataset, "config": {}}
    answer = client.post("/v1/protections", json=body, headers={"Idempotency-Key": "key"})
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert "Retry-After" not in answer.headers


def test_the_same_request_twice_at_once(client: httpx2.Client, ready_dataset: str) -> None:
    made = together(*[lambda: ask(client, ready_dataset, "key") for _ in range(4)])
    assert len({found["id"] for found in made}) == 1
    assert rows() == 1


def test_keys_are_each_owners_own(
    client: httpx2.Client, other: httpx2.Client, ready_dataset: str
) -> None:
    theirs = str(uploaded(other)["id"])
    assert ask(client, ready_dataset, "key")["id"] != ask(other, theirs, "key")["id"]


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_keys_that_are_refused(client: httpx2.Client, ready_dataset: str, key: str) -> None:
    body = {"dataset_id": ready_dataset}
    answer = client.post("/v1/protections", json=body, headers={"Idempotency-Key": key})
    found = problem(answer, 422, "INVALID_REQUEST")
    assert found["errors"][0]["field"] == "header.idempotency-key"


def test_a_key_of_any_bytes(client: httpx2.Client, ready_dataset: str) -> None:
    headers = {b"Idempotency-Key": "clé ü".encode()}
    answers = [
        client.post("/v1/protections", json={"dataset_id": ready_dataset}, headers=headers)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert rows() == 1
