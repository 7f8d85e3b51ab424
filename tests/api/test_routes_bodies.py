"""What a request may say, and what it may not."""

import json
from uuid import UUID

import httpx2
import pytest

from api.db import reading
from api.models import Protection
from tests.api.asking import ask, refused, refused_body, rows
from tests.api.conftest import JSON
from tests.api.lives import train
from tests.api.test_routes_datasets import problem


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
    ({"epsilon_levels": 0}, "epsilon_levels: Input should be greater than or equal to 1, got 0"),
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
    ({"milestones": [0.9, 0.1]}, "milestones: expected rising shares in (0, 1), got [0.9, 0.1]"),
    ({"protected_classes": ["ant", "ant"]}, 'none twice, got ["ant", "ant"]'),
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
