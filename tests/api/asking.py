"""Asking for a protection over HTTP, and being refused."""

import json

import httpx2

from api.db import reading
from api.models import Protection
from tests.api.conftest import JSON


def rows() -> int:
    with reading() as session:
        return session.query(Protection).count()


def ask(client: httpx2.Client, dataset_id: str, key: str | None = None, **config: object) -> JSON:
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"dataset_id": dataset_id, "config": config}
    answer = client.post("/v1/protections", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    shown: JSON = answer.json()
    return shown


def refused(client: httpx2.Client, dataset_id: str, **config: object) -> str:
    body = json.dumps({"dataset_id": dataset_id, "config": config})
    return refused_body(client, body)


def refused_body(client: httpx2.Client, body: str | bytes) -> str:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/protections", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert rows() == 0
    return str(answer.json()["detail"])
