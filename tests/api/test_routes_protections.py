"""Asking, polling, cancelling and deleting over HTTP, by careful and by careless clients."""

import json
from datetime import timedelta
from functools import partial
from uuid import UUID

import httpx2
import pytest
from fastapi import Response

from api import endings, storage
from api.db import now, reading, transaction
from api.endings import Setback
from api.models import Protection, Queue, StepKind
from api.routes.deps import poll_again
from tests.api.conftest import JSON, blobs, protected, queued, together, uploaded
from tests.api.lives import (
    half_done_in_a_minute,
    must_claim,
    owner,
    requested,
    small_zip,
    step,
    succeed,
    train,
)
from tests.api.test_routes_datasets import problem

RESULTS = ("archive", "report", "report.html", "before-after.png")


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


def test_asking(client: httpx2.Client, ready_dataset: str) -> None:
    body = {"dataset_id": ready_dataset, "config": {"preset": "quick", "epsilon_levels": 4}}
    answer = client.post("/v1/protections", json=body)
    assert answer.status_code == 202
    shown = answer.json()
    assert answer.headers["Location"] == f"/v1/protections/{shown['id']}"
    assert int(answer.headers["Retry-After"]) > 0
    assert (shown["state"], shown["done"], shown["progress"]) == ("queued", False, 0.0)
    assert shown["requested"] == {
        "preset": "quick",
        "config": {"epsilon_levels": 4},
        "evaluation": {},
    }
    assert [shown[name] for name in ("config", "plan", "evaluation", "archive")] == [None] * 4
    assert [s["kind"] for s in shown["steps"]] == ["train", "package", "evaluate", "evaluate"]
    assert queued(Queue.GPU) == 1
    assert client.get(answer.headers["Location"]).json() == shown
    listed = client.get("/v1/protections").json()["items"]
    assert listed == [{k: v for k, v in shown.items() if k != "steps"}]


def test_the_default_is_left_open_until_it_is_planned(
    client: httpx2.Client, ready_dataset: str
) -> None:
    answer = client.post("/v1/protections", json={"dataset_id": ready_dataset})
    made = answer.json()
    assert made["requested"] == {"preset": "auto", "config": {}, "evaluation": {}}
    train(UUID(made["id"]))
    planned = client.get(f"/v1/protections/{made['id']}").json()
    assert planned["state"] == "running"
    assert planned["config"]["surrogate"] == "small"
    assert not {"seed", "target_map"} & set(planned["config"])  # keys are for the report
    assert planned["plan"]["precision"] == "float32"
    assert planned["progress"] == pytest.approx(4 / 15, abs=1e-4)
    assert planned["eta_seconds"] >= 0


def test_etas(client: httpx2.Client, ready_dataset: str) -> None:
    made = ask(client, ready_dataset, preset="quick")
    assert [s["eta_seconds"] for s in made["steps"]] == [None] * 4
    train(UUID(made["id"]))
    half_done_in_a_minute(must_claim(UUID(made["id"]), StepKind.PERTURB, 1))
    shown = client.get(f"/v1/protections/{made['id']}").json()
    etas = {(s["kind"], s["index"]): s["eta_seconds"] for s in shown["steps"]}
    assert etas.pop(("perturb", 1)) == pytest.approx(60, abs=5)
    assert set(etas.values()) == {None}


def test_nulls_are_as_good_as_nothing(client: httpx2.Client, ready_dataset: str) -> None:
    made = ask(client, ready_dataset, "k", epsilon_levels=None, seed=None, steps=3)
    assert made["requested"] == {"preset": "auto", "config": {"steps": 3}, "evaluation": {}}
    assert ask(client, ready_dataset, "k", steps=3)["id"] == made["id"]


def test_whole_numbers_and_lists_are_taken(client: httpx2.Client, ready_dataset: str) -> None:
    config: JSON = {
        "step_levels": 2,
        "milestones": [0.5, 0.75],
        "target_map": [1, 0],
        "flip": False,
    }
    assert ask(client, ready_dataset, preset="quick", **config)
    with reading() as session:
        asked = session.query(Protection).one().requested["config"]
    assert asked == config


REFUSED: list[tuple[JSON, str]] = [
    ({"epsilon_level": 8}, "epsilon_level"),
    ({"preset": "thorough"}, "preset"),
    ({"epsilon_levels": 0}, "epsilon_levels: expected 1 to 64, got 0"),
    ({"epsilon_levels": 10**30}, "epsilon_levels"),
    ({"epsilon_levels": -1}, "epsilon_levels"),
    ({"epsilon_levels": 1.5}, "epsilon_levels"),
    ({"steps": "many"}, "steps"),
    ({"epsilon_levels": "8"}, "epsilon_levels"),
    ({"epsilon_levels": True}, "epsilon_levels"),
    ({"step_levels": "1.0"}, "step_levels"),
    ({"learning_rate": True}, "learning_rate"),
    ({"flip": 1}, "flip"),
    ({"flip": "yes"}, "flip"),
    ({"milestones": ["0.5"]}, "milestones"),
    ({"milestones": 0.5}, "milestones"),
    ({"target_map": ["1", "0"]}, "target_map"),
    ({"target_map": [True, False]}, "target_map"),
    ({"target_map": [[1, 0]]}, "target_map"),
    ({"seed": 1}, "seed"),
    ({"checkpoints": 500}, "checkpoints"),
    ({"step_levels": float("nan")}, "step_levels"),
    ({"learning_rate": float("inf")}, "learning_rate"),
    ({"milestones": [float("nan")]}, "milestones"),
    ({"milestones": [0.9, 0.1]}, "milestones"),
    ({"target_map": [1, 2, 0]}, "target_map: expected one entry for each of 2 classes, got 3"),
    ({"target_map": [0, 1]}, "target_map"),
    ({"target_map": [float("inf")]}, "target_map"),
    ({"target_map": "upside-down"}, "target_map"),
    ({"seed": "0"}, "seed"),
    ({"seed": "\0" * 32}, "seed"),
    ({"seed": "\ud800" * 32}, "seed"),
    ({"\ud800": 1}, "config"),
    ({"variant": {"a": 1}}, "variant"),
    ({"protected_classes": []}, "protected_classes: expected names of classes, one or more"),
    ({"protected_classes": ["cat", "cat"]}, "protected_classes: expected names of classes"),
    ({"protected_classes": "cat"}, "protected_classes"),
    ({"protected_classes": [1]}, "protected_classes"),
    ({"protected_classes": ["cat", None]}, "protected_classes"),
    ({"protected_classes": ["\0"]}, "protected_classes"),
    ({"protected_classes": ["\ud800"]}, "protected_classes"),
    ({"protected_fraction": 0}, "protected_fraction: expected a share in (0, 1], got 0"),
    ({"protected_fraction": 1.5}, "protected_fraction: expected a share in (0, 1], got 1.5"),
    ({"protected_fraction": "0.5"}, "protected_fraction"),
    ({"protected_fraction": True}, "protected_fraction"),
    ({"protected_fraction": float("nan")}, "protected_fraction"),
]


def test_configurations_that_are_refused(client: httpx2.Client, ready_dataset: str) -> None:
    for config, named in REFUSED:
        assert named in refused(client, ready_dataset, **config), config


def test_a_class_that_the_data_do_not_have(client: httpx2.Client, ready_dataset: str) -> None:
    sentence = (
        "protected_classes: expected names of the data set's classes ('cat', 'dog'), got 'Dog'"
    )
    for preset in ("auto", "paper"):
        found = refused(client, ready_dataset, preset=preset, protected_classes=["cat", "Dog"])
        assert sentence in found


def test_some_classes_and_a_share_are_taken(client: httpx2.Client, ready_dataset: str) -> None:
    partly: JSON = {"protected_classes": ["dog"], "protected_fraction": 0.5}
    made = ask(client, ready_dataset, **partly)
    assert made["requested"]["config"] == partly
    train(UUID(made["id"]))
    planned = client.get(f"/v1/protections/{made['id']}").json()["config"]
    assert {name: planned[name] for name in partly} == partly  # they are no keys


def test_bodies_that_are_refused(client: httpx2.Client, ready_dataset: str) -> None:
    for body in (
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"dataset_id": "12"}',
        '{"dataset_id": "\\ud800"}',
        '{"\\ud800": 1}',
        '{"dataset_id": null}',
        f'{{"dataset_id": "{ready_dataset}", "config": null}}',
        f'{{"dataset_id": "{ready_dataset}", "config": {{"preset": null}}}}',
        f'{{"dataset_id": "{ready_dataset}", "more": 1}}',
    ):
        assert refused_body(client, body), body


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe{", b'{"config": {"steps": ' + b"9" * 5000 + b"}}", b"[" * 100_000],
    ids=["no UTF-8", "a number of 5000 digits", "deep"],
)
def test_bodies_that_break_parsers(client: httpx2.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/protections", content=body, headers=headers)
    assert answer.status_code in {400, 422}, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_document_of_megabytes_is_not_read(client: httpx2.Client) -> None:
    body = b'{"dataset_id": "' + b"x" * 2**21 + b'"}'
    for content in (body, iter([body])):
        headers = {"Content-Type": "application/json"}
        answer = client.post("/v1/protections", content=content, headers=headers)
        problem(answer, 413, "CONTENT_TOO_LARGE")


@pytest.mark.parametrize(
    ("eta_seconds", "seconds"), [(None, 1), (0.0, 1), (90.0, 1), (400.0, 8), (1e7, 15)]
)
def test_who_polls_comes_more_often_near_the_end(eta_seconds: float | None, seconds: int) -> None:
    response = Response()
    poll_again(response, done=False, eta_seconds=eta_seconds)
    assert response.headers["Retry-After"] == str(seconds)


def test_the_time_that_is_left_says_when_to_come_again(
    client: httpx2.Client, ready_dataset: str
) -> None:
    made = ask(client, ready_dataset, preset="quick")
    train(UUID(made["id"]))
    with transaction() as session:
        protection = session.get_one(Protection, UUID(made["id"]))
        protection.started_at = now(session) - timedelta(hours=1)
    answer = client.get(f"/v1/protections/{made['id']}")
    assert answer.json()["eta_seconds"] > 1000
    assert answer.headers["Retry-After"] == "15"


def test_a_data_set_that_is_not_ready(client: httpx2.Client) -> None:
    made = client.post("/v1/datasets", content=small_zip()).json()["id"]
    answer = client.post("/v1/protections", json={"dataset_id": made})
    problem(answer, 409, "DATASET_NOT_READY")
    assert int(answer.headers["Retry-After"]) > 0
    assert rows() == 0


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


def test_what_is_no_json_by_its_header_is_told_so(
    client: httpx2.Client, ready_dataset: str
) -> None:
    body = f'{{"dataset_id": "{ready_dataset}"}}'
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for headers, got in ((form, form["Content-Type"]), ({}, "none")):
        answer = client.post("/v1/protections", content=body, headers=headers)
        found = problem(answer, 422, "INVALID_REQUEST")
        assert found["detail"] == f"body: Expected Content-Type: application/json, got {got}"
    empty = problem(client.post("/v1/protections"), 422, "INVALID_REQUEST")
    assert empty["detail"] == "body: Field required"


def test_a_key_of_any_bytes(client: httpx2.Client, ready_dataset: str) -> None:
    headers = {b"Idempotency-Key": "clé ü".encode()}
    answers = [
        client.post("/v1/protections", json={"dataset_id": ready_dataset}, headers=headers)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert rows() == 1


def test_cancelling_what_is_queued(client: httpx2.Client, ready_dataset: str) -> None:
    made = protected(client, ready_dataset)["id"]
    for _ in range(2):
        answer = client.post(f"/v1/protections/{made}/cancel")
        assert answer.status_code == 202
        assert (answer.json()["state"], answer.json()["done"]) == ("cancelled", True)
        assert "Retry-After" not in answer.headers
    assert blobs("protections") == []
    for result in RESULTS:
        answer = client.get(f"/v1/protections/{made}/{result}")
        problem(answer, 409, "PROTECTION_WITHOUT_RESULT")
        assert "Retry-After" not in answer.headers
    assert client.delete(f"/v1/protections/{made}").status_code == 204
    problem(client.post(f"/v1/protections/{made}/cancel"), 404, "NOT_FOUND")


def test_trying_again_what_failed(client: httpx2.Client, ready_dataset: str) -> None:
    made = protected(client, ready_dataset)["id"]
    problem(client.post(f"/v1/protections/{made}/retry"), 409, "PROTECTION_NOT_FAILED")
    claim = must_claim(UUID(made), StepKind.TRAIN)
    endings.end(claim, partial(endings.fail, code="BROKEN", message="It broke."))
    shown = client.get(f"/v1/protections/{made}").json()
    assert (shown["state"], shown["error_code"], shown["done"]) == ("failed", "BROKEN", True)
    sent = queued(Queue.GPU)
    answer = client.post(f"/v1/protections/{made}/retry")
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    assert "Retry-After" in answer.headers
    assert queued(Queue.GPU) == sent + 1
    assert client.get(f"/v1/protections/{made}").json()["error"] is None


def test_a_step_that_waits_says_why_and_until_when(
    client: httpx2.Client, ready_dataset: str
) -> None:
    made = protected(client, ready_dataset)["id"]
    claim = must_claim(UUID(made), StepKind.TRAIN)
    lost = Setback("WORKER_LOST", "It was lost.", suspect=False)
    endings.end(claim, partial(endings.set_back, setback=lost))
    waits = client.get(f"/v1/protections/{made}").json()["steps"][0]
    assert (waits["state"], waits["error_code"], waits["error"]) == (
        *("ready", "WORKER_LOST", "It was lost."),
    )
    assert waits["next_attempt_at"] > waits["started_at"]


@pytest.mark.parametrize("priority", [11, "1", 0.5, True])
def test_a_priority_is_a_small_whole_number(
    client: httpx2.Client, ready_dataset: str, priority: object
) -> None:
    body = {"dataset_id": ready_dataset, "priority": priority}
    found = problem(client.post("/v1/protections", json=body), 422, "INVALID_REQUEST")
    assert "priority" in json.dumps(found)
    assert rows() == 0
    answer = client.post("/v1/protections", json=body | {"priority": -10})
    assert answer.json()["priority"] == -10


def test_while_it_runs(client: httpx2.Client, ready_dataset: str) -> None:
    made = protected(client, ready_dataset)["id"]
    must_claim(UUID(made), StepKind.TRAIN)
    problem(client.delete(f"/v1/protections/{made}"), 409, "PROTECTION_ACTIVE")
    for result in RESULTS:
        answer = client.get(f"/v1/protections/{made}/{result}")
        problem(answer, 409, "PROTECTION_NOT_FINISHED")
        assert int(answer.headers["Retry-After"]) > 0
    answer = client.post(f"/v1/protections/{made}/cancel")
    assert (answer.json()["state"], answer.json()["cancel_requested"]) == ("running", True)
    assert answer.headers["Retry-After"]
    assert step(UUID(made), StepKind.TRAIN).state == "running"


def test_what_succeeded(client: httpx2.Client, ready_dataset: str) -> None:
    made = requested(owner("alice"), UUID(ready_dataset))
    succeed(made)
    shown = client.get(f"/v1/protections/{made}").json()
    assert (shown["state"], shown["done"], shown["progress"]) == ("succeeded", True, 1.0)
    assert shown["archive"]["url"] == f"/v1/protections/{made}/archive"
    problem(client.post(f"/v1/protections/{made}/cancel"), 409, "PROTECTION_FINISHED")
    report = client.get(f"/v1/protections/{made}/report")
    assert len(report.json()["config"]["seed"]) == 32
    assert "seed" not in shown["config"]
    page = client.get(f"/v1/protections/{made}/report.html")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    picture = client.get(f"/v1/protections/{made}/before-after.png")
    assert picture.headers["content-type"] == "image/png"
    for answer in (report, page, picture):
        assert "no-store" in answer.headers["Cache-Control"]
    assert client.delete(f"/v1/datasets/{ready_dataset}").status_code == 204
    gone = problem(client.get(f"/v1/protections/{made}/before-after.png"), 404, "NOT_FOUND")
    assert "went with its data set's originals" in gone["detail"]
    assert client.delete(f"/v1/protections/{made}").status_code == 204
    assert blobs("protections") == []
    for path in ("", *(f"/{result}" for result in RESULTS)):
        problem(client.get(f"/v1/protections/{made}{path}"), 404, "NOT_FOUND")


def test_results_whose_blobs_have_just_gone(client: httpx2.Client, ready_dataset: str) -> None:
    """As a deletion leaves them between a look at the row and a look at storage."""
    made = requested(owner("alice"), UUID(ready_dataset))
    succeed(made)
    storage.remove(storage.protection_key(made))
    for result in RESULTS:
        problem(client.get(f"/v1/protections/{made}/{result}"), 404, "NOT_FOUND")


def test_a_download_beside_a_deletion(client: httpx2.Client, ready_dataset: str) -> None:
    """Whole, refused, or visibly broken off; never short without a sign."""
    alice = owner("alice")
    for _ in range(4):
        made = requested(alice, UUID(ready_dataset))
        data = bytes(1_000_003) * 6
        succeed(made, data)
        got, deleted = together(
            partial(client.get, f"/v1/protections/{made}/archive"),
            partial(client.delete, f"/v1/protections/{made}"),
        )
        assert deleted.status_code == 204
        if isinstance(got, httpx2.RemoteProtocolError):
            continue
        assert got.status_code in {200, 404}
        assert got.status_code == 404 or got.content == data
