"""Asking, polling, cancelling and deleting over HTTP."""

from datetime import timedelta
from functools import partial
from uuid import UUID

import httpx2
import pytest
from fastapi import Response

from api import storage
from api.db import now, transaction
from api.models import Protection, Queue, StepKind
from api.routes.deps import poll_again
from api.scheduling import endings
from api.scheduling.endings import Setback
from tests.api.asking import ask, rows
from tests.api.conftest import blobs, protected, queued, together
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
    assert listed == [{k: v for k, v in shown.items() if k not in {"steps", "released_before"}}]


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


def test_an_upload_that_was_released_before_is_told(
    client: httpx2.Client, ready_dataset: str
) -> None:
    """Whoever has two changed versions of an image knows much of the original."""
    first = ask(client, ready_dataset)["id"]
    assert client.get(f"/v1/protections/{first}").json()["released_before"] == []
    succeed(UUID(first))
    second = ask(client, ready_dataset)["id"]
    assert client.get(f"/v1/protections/{second}").json()["released_before"] == [first]
    assert client.get(f"/v1/protections/{first}").json()["released_before"] == []
    body = {"dataset_id": ready_dataset, "validate_only": True}
    assert client.post("/v1/protections", json=body).json()["released_before"] == [first]


def test_results_that_storage_does_not_have_now(client: httpx2.Client, ready_dataset: str) -> None:
    """Not as those of one that was deleted: its volume may be back in a moment."""
    made = requested(owner("alice"), UUID(ready_dataset))
    succeed(made)
    storage.remove(storage.protection_key(made))
    for result in RESULTS:
        answer = client.get(f"/v1/protections/{made}/{result}")
        assert "Its operator can tell why" in problem(answer, 503, "UNAVAILABLE")["detail"]


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
