"""Every route and verb: without a key 401, somebody else's 404, a broken id 422; pages of lists."""

import base64
import socket
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx2
import pytest

from api import keys
from api.db import transaction
from api.main import build
from api.models import DatasetState, ProtectionState
from tests.api.asking import ask
from tests.api.conftest import protected, uploaded
from tests.api.lives import dataset, protection
from tests.api.test_routes_datasets import problem

PUBLIC = {"/livez", "/readyz", "/metrics"}
OPERATIONS = [
    (method.upper(), path)
    for path, operations in build().openapi()["paths"].items()
    for method in operations
]
GUARDED = [(method, path) for method, path in OPERATIONS if path not in PUBLIC]


def fill(path: str, identifier: object) -> str:
    return path.format(dataset_id=identifier, protection_id=identifier)


def refused(answer: httpx2.Response, status: int, code: str) -> None:
    if answer.request.method == "HEAD":
        assert answer.status_code == status
    else:
        problem(answer, status, code)


def test_all_routes_are_known() -> None:
    assert len(GUARDED) == 18
    assert ("HEAD", "/v1/protections/{protection_id}/archive") in GUARDED
    assert ("DELETE", "/v1/datasets/{dataset_id}") in GUARDED


@pytest.fixture
def headers(url: str) -> list[dict[str, str]]:
    """No key, odd ones, wrong ones and a revoked one."""
    assert url
    with transaction() as session:
        valid, revoked = keys.create(session, "carol"), keys.create(session, "carol")
        assert keys.revoke(session, "_".join(revoked.split("_")[:2])) == 1
    words = ("", "Bearer", "Basic YTpi", f"Basic {valid}", "Bearer sg_x", valid)
    changed = valid[:-1] + ("A" if valid[-1] != "A" else "B")
    tokens = (revoked, changed, valid.upper(), valid + "x", valid[:20], "x" * 9000)
    odd = [{"Authorization": word} for word in words]
    return [{}, *odd, *({"Authorization": f"Bearer {token}"} for token in tokens)]


def test_without_a_valid_key(anonymous: httpx2.Client, headers: list[dict[str, str]]) -> None:
    for method, path in GUARDED:
        for given in headers:
            answer = anonymous.request(method, fill(path, uuid4()), headers=given)
            refused(answer, 401, "UNAUTHENTICATED")
            assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_of_odd_bytes(anonymous: httpx2.Client) -> None:
    headers = {b"Authorization": b"Bearer \xff\xfe\x80"}
    refused(anonymous.get("/v1/datasets", headers=headers), 401, "UNAUTHENTICATED")


def test_an_upload_without_a_key_is_answered_before_it_has_come(url: str) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 401 ")


def test_somebody_elses_does_not_exist(client: httpx2.Client, other: httpx2.Client) -> None:
    made = uploaded(client)["id"]
    asked = protected(client, made)["id"]
    nowhere = str(uuid4())
    for method, path in GUARDED:
        if "{" not in path:
            continue
        mine = made if "dataset" in path else asked
        answers = [other.request(method, fill(path, found)) for found in (mine, nowhere)]
        for answer in answers:
            refused(answer, 404, "NOT_FOUND")
        # Nothing tells one that is somebody else's from one that is not.
        assert answers[0].text.replace(mine, nowhere) == answers[1].text
    refused(other.post("/v1/protections", json={"dataset_id": made}), 404, "NOT_FOUND")
    assert other.get("/v1/datasets").json()["items"] == []
    assert other.get("/v1/protections").json()["items"] == []
    assert dataset(UUID(made)).state is DatasetState.READY
    assert protection(UUID(asked)).state is ProtectionState.QUEUED
    assert not protection(UUID(asked)).cancel_requested


def test_odd_requests(client: httpx2.Client) -> None:
    for method, path in GUARDED:
        if "{" in path:
            answer = client.request(method, fill(path, "not-an-id"))
            refused(answer, 422, "INVALID_REQUEST")
    refused(client.get("/v1/nothing"), 404, "NOT_FOUND")
    refused(client.get("/nothing"), 404, "NOT_FOUND")
    refused(client.get("/v1/datasets/"), 404, "NOT_FOUND")
    for method, path, allowed in (
        ("PUT", "/v1/datasets", "GET, POST"),
        ("POST", "/readyz", "GET"),
        ("PATCH", fill("/v1/datasets/{dataset_id}", str(uuid4())), "DELETE, GET"),
    ):
        answer = client.request(method, path)
        refused(answer, 405, "METHOD_NOT_ALLOWED")
        assert answer.headers["Allow"] == allowed


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def test_cursors(client: httpx2.Client) -> None:
    made = client.post("/v1/datasets", content=b"x").json()["id"]
    future = datetime(2100, 1, 1, tzinfo=UTC).isoformat()
    for path in ("/v1/datasets", "/v1/protections"):
        for garbage in (
            "",
            "%%%",
            "ü",
            "====",
            "a",
            encoded("no bar"),
            encoded(f"yesterday|{made}"),
            encoded(f"{future}|not an id"),
            encoded(f"{future}|{made}|more"),
            encoded(f"0001-01-01T00:00:00+14:00|{made}"),
            base64.urlsafe_b64encode(b"\xff\xfe|\xff").decode(),
        ):
            answer = client.get(path, params={"cursor": garbage})
            assert problem(answer, 422, "INVALID_CURSOR"), garbage
        refused(client.get(path, params={"cursor": "x" * 201}), 422, "INVALID_REQUEST")
        for limit in ("0", "-1", "201", "x", "9" * 30, "1e9", "nan"):
            refused(client.get(path, params={"limit": limit}), 422, "INVALID_REQUEST")
    for cursor in (encoded(f"{future}|{made}"), encoded(f"2100-01-01T00:00:00|{made}")):
        page = client.get("/v1/datasets", params={"cursor": cursor}).json()
        assert [item["id"] for item in page["items"]] == [made]
    past = encoded(f"1970-01-01T00:00:00+00:00|{made}")
    assert client.get("/v1/datasets", params={"cursor": past}).json()["items"] == []


def test_protections_page_by_page(client: httpx2.Client, other: httpx2.Client) -> None:
    mine, theirs = uploaded(client)["id"], uploaded(other)["id"]
    made = [protected(client, mine)["id"] for _ in range(3)]
    protected(other, theirs)
    first = client.get("/v1/protections", params={"limit": 2}).json()
    last = client.get("/v1/protections", params={"cursor": first["next_cursor"]}).json()
    assert [item["id"] for item in first["items"] + last["items"]] == made[::-1]
    assert last["next_cursor"] is None


def test_lists_are_filtered(client: httpx2.Client, ready_dataset: str) -> None:
    made = ask(client, ready_dataset)["id"]
    dataset = client.get(f"/v1/datasets/{ready_dataset}").json()

    def found(path: str, **wanted: str) -> list[str]:
        answer = client.get(f"/v1/{path}", params=wanted)
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()["items"]]

    assert found("datasets", state="ready", sha256=dataset["sha256"]) == [ready_dataset]
    assert found("datasets", state="rejected") == found("datasets", sha256="0" * 64) == []
    assert found("protections", state="queued", dataset_id=ready_dataset) == [made]
    assert found("protections", state="failed") == []
    assert found("protections", dataset_id=made) == []


def test_a_parameter_that_is_none_is_refused(client: httpx2.Client, ready_dataset: str) -> None:
    """Whoever deletes all that a list shows must not get the whole list for a slip."""
    made = ask(client, ready_dataset)["id"]
    for path in ("datasets", "protections", f"protections/{made}/events"):
        for wrong in ({"status": "ready"}, {"limit": "0"}, {"cursors": "x"}):
            refused(client.get(f"/v1/{path}", params=wrong), 422, "INVALID_REQUEST")
