"""`validate_only`: what a request would come to, and that nothing comes of it."""

import hashlib
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import func, select

from api import datasets, storage
from api.db import reading
from api.models import Dataset, Protection, Queue, Step, StepKind
from api.plans import speeds, workload
from tests.api.conftest import JSON, beat, give_weights
from tests.api.lives import small_zip
from tests.api.test_routes_datasets import problem

MATRIX = {"countermeasures": ["crop-flip", "adversarial-2"], "seeds": 3}


def plan(client: httpx2.Client, dataset_id: str, **body: Any) -> Any:
    return client.post(
        "/v1/protections", json={"dataset_id": dataset_id, "validate_only": True} | body
    )


def planned(client: httpx2.Client, dataset_id: str, **body: Any) -> JSON:
    answer = plan(client, dataset_id, **body)
    assert answer.status_code == 200, answer.text
    found: JSON = answer.json()
    return found


def worker(name: str, gradient: float | None, training: float | None, **others: Any) -> None:
    row: dict[str, Any] = {"device": "cpu", "device_name": "a processor"}
    row |= {"memory_bytes": 2**33, "bfloat16": False, "threads": 2}
    if gradient and training:
        at_32 = {"input_pixels": 32, "gradient_gflops": gradient, "training_gflops": training}
        halved = {"gradient_gflops": gradient / 2, "training_gflops": training / 2}
        row["speeds"] = [at_32, halved | {"input_pixels": 64}]
    beat(**{"name": name} | row | others)


def rows() -> tuple[int | None, int | None]:
    with reading() as session:
        steps = select(func.count()).select_from(Step).where(Step.protection_id.is_not(None))
        return session.scalar(select(func.count()).select_from(Protection)), session.scalar(steps)


def test_a_plan_without_workers(client: httpx2.Client, ready_dataset: str) -> None:
    found = planned(client, ready_dataset, config={"preset": "quick", "epsilon_levels": 4})
    assert found["config"]["epsilon_levels"] == 4
    assert not {"seed", "target_map"} & set(found["config"])
    assert (found["plan"]["device"], found["plan"]["precision"]) == ("cpu", "float32")
    assert found["evaluation"]["networks"] == ["small"]
    once = {"train": 1, "perturb": 1, "encode": 1, "package": 1}
    assert found["steps"] == once | {"evaluate": 2}
    assert (found["workers"], found["seconds"]) == (0, None)
    assert rows() == (0, 0)


def test_images_that_are_not_protected_are_no_work(
    client: httpx2.Client, ready_dataset: str
) -> None:
    whole = planned(client, ready_dataset, config={"preset": "quick"})["gflop"]
    for partly in ({"protected_classes": ["cat"]}, {"protected_fraction": 0.5}):
        gflop = planned(client, ready_dataset, config={"preset": "quick"} | partly)["gflop"]
        assert gflop["perturb"] == pytest.approx(whole["perturb"] / 2, abs=2e-3)
        assert gflop["train"] == whole["train"]
        assert gflop["evaluate"] == whole["evaluate"]


def test_work_is_what_the_papers_arithmetic_says(client: httpx2.Client, ready_dataset: str) -> None:
    """`small` takes 0.07 GFLOP an image; a training image three of them, a gradient pass two."""
    found = planned(client, ready_dataset, config={"preset": "quick"}, evaluation=MATRIX)
    shown = client.get(f"/v1/datasets/{ready_dataset}").json()
    # Of each class one image is set aside.
    train = sum(shown["counts"]["train"].values()) - len(shown["classes"])
    images = sum(sum(of_split.values()) for of_split in shown["counts"].values())
    config, gflop = found["config"], found["gflop"]
    training = 3 * 0.07 * train
    patterns = 2 * 0.07 * config["class_steps"] * 2 * train  # two passes a step of so few images
    assert gflop["train"] == pytest.approx(training * config["epochs"] + patterns, rel=1e-2)
    passes = config["steps"] * config["checkpoints_per_step"]
    assert gflop["perturb"] == pytest.approx(2 * 0.07 * images * passes, rel=1e-2)
    plain = training * config["appropriator_epochs"]
    assert gflop["evaluate"] == pytest.approx(2 * 3 * (plain + 3 * plain), rel=1e-2)
    parts = gflop["train"] + gflop["perturb"] + gflop["evaluate"]
    assert gflop["total"] == pytest.approx(parts)
    assert found["steps"]["evaluate"] == 12


def test_pretrained_rows_are_planned_with_their_files(
    client: httpx2.Client, ready_dataset: str
) -> None:
    """A frozen backbone is passed forward alone: a third of the work."""
    give_weights("small", b"weights")
    rows_ = ["crop-flip", "pretrained-frozen", "pretrained-tuned"]
    plain, frozen, tuned = (
        planned(
            client, ready_dataset, config={"preset": "quick"}, evaluation={"countermeasures": [row]}
        )
        for row in rows_
    )
    digest = hashlib.sha256(b"weights").hexdigest()
    assert frozen["evaluation"]["weights"] == tuned["evaluation"]["weights"] == {"small": digest}
    assert plain["evaluation"]["weights"] == {}
    assert tuned["gflop"]["evaluate"] == plain["gflop"]["evaluate"]
    assert frozen["gflop"]["evaluate"] == pytest.approx(plain["gflop"]["evaluate"] / 3, rel=1e-2)
    assert rows() == (0, 0)


@pytest.mark.parametrize("seconds_a_pixel", [0.25, 2.5e-13])
def test_images_are_encoded_while_others_are_perturbed(
    client: httpx2.Client,
    ready_dataset: str,
    monkeypatch: pytest.MonkeyPatch,
    seconds_a_pixel: float,
) -> None:
    """Whichever of both takes longer, and by however many workers."""
    a_pixel = {StepKind.ENCODE: seconds_a_pixel, StepKind.PACKAGE: 0.0}
    monkeypatch.setattr(speeds, "SECONDS_A_PIXEL", a_pixel)
    monkeypatch.setattr(workload, "SHARD_IMAGES", 1)
    monkeypatch.setattr(workload, "BATCH_SIZE", {"cpu": 1})
    worker("one", 1.0, 20.0)
    spent = []
    for number in range(2):
        worker(f"encodes {number}", None, None, queue=Queue.CPU)
        asked = planned(client, ready_dataset, config={"preset": "quick"})
        assert asked["steps"]["encode"] == asked["steps"]["perturb"] > 2
        seconds = asked["seconds"]
        beside = min(seconds["perturb"], seconds["encode"])
        whole = sum(seconds[kind] for kind in asked["steps"])
        assert seconds["total"] == pytest.approx(whole - beside, abs=0.3)
        spent.append(seconds["encode"])
    assert spent[1] == pytest.approx(spent[0] / 2, abs=0.1)
    assert (spent[0] > seconds["perturb"] > 1) is (seconds_a_pixel > 0.1)


def test_seconds_on_the_workers_present(client: httpx2.Client, ready_dataset: str) -> None:
    worker("slow", 10.0, 5.0)
    worker("fast", 40.0, 20.0, bfloat16=True)
    worker("gone", 1e9, 1e9, silent_seconds=3600, device="cuda")
    worker("other", None, None, queue=Queue.CPU, threads=64)
    found = planned(client, ready_dataset, config={"preset": "quick"}, evaluation=MATRIX)
    assert found["workers"] == 2
    assert (found["plan"]["precision"], found["plan"]["threads"]) == ("bfloat16", 2)
    gflop, seconds = found["gflop"], found["seconds"]
    assert seconds["train"] == pytest.approx(gflop["train"] / 20, abs=0.1)
    # One shard: the fastest takes it. Twelve trainings: both share them.
    assert seconds["perturb"] == pytest.approx(gflop["perturb"] / 40, abs=0.1)
    assert seconds["evaluate"] == pytest.approx(gflop["evaluate"] / 25, abs=0.1)
    assert seconds["total"] == pytest.approx(sum(seconds[kind] for kind in found["steps"]), abs=0.3)
    assert rows() == (0, 0)


def test_larger_images_have_a_speed_of_their_own(client: httpx2.Client, ready_dataset: str) -> None:
    worker("one", 40.0, 20.0)
    found = [
        planned(client, ready_dataset, config={"preset": "quick", "input_pixels": side})
        for side in (16, 32, 128)
    ]
    per_second = [plan["gflop"]["train"] / plan["seconds"]["train"] for plan in found]
    assert per_second == pytest.approx([20, 20, 10], rel=0.05)


def test_a_large_network_has_a_speed_of_its_own(client: httpx2.Client, ready_dataset: str) -> None:
    """`small` trains and perturbs at 20 and 40 GFLOP/s, a ResNet-18 trains at 500."""
    small = {"input_pixels": 32, "gradient_gflops": 40, "training_gflops": 20}
    large = {"gradient_gflops": 900, "training_gflops": 500, "network": "resnet18"}
    worker("one", None, None, speeds=[small | {"network": "small"}, small | large])
    found = planned(
        client,
        ready_dataset,
        config={"preset": "quick"},
        evaluation={"networks": ["small", "resnet18", "mlp"]},
    )
    gflop, seconds = found["gflop"], found["seconds"]
    assert seconds["train"] == pytest.approx(gflop["train"] / 20, abs=0.1)
    assert seconds["perturb"] == pytest.approx(gflop["perturb"] / 40, abs=0.1)
    alone = planned(client, ready_dataset, config={"preset": "quick"})["gflop"]["evaluate"]
    mlp = {"networks": ["mlp"]}
    flat = planned(client, ready_dataset, config={"preset": "quick"}, evaluation=mlp)["gflop"]
    large_gflop = gflop["evaluate"] - alone - flat["evaluate"]
    expected = (alone + flat["evaluate"]) / 20 + large_gflop / 500
    assert seconds["evaluate"] == pytest.approx(expected, abs=0.1)


def test_large_images_take_the_time_of_their_pixels(
    client: httpx2.Client, ready_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the worker that is fastest at that, or by both as far as there are shards for both."""
    at_32 = {"input_pixels": 32, "gradient_gflops": 1e9, "training_gflops": 1e9}
    for name, walked in (("slow", 1e2), ("fast", 3e2)):
        worker(
            name, None, None, speeds=[at_32 | {"walked_pixels": walked, "of a later version": 1}]
        )
    found = planned(client, ready_dataset, config={"preset": "quick"})
    with reading() as session:
        dataset = session.get_one(Dataset, UUID(ready_dataset))
        pixels = sum(each.height * each.width for each in datasets.load_index(dataset.id).records)
    assert found["steps"]["perturb"] == 1
    expected = found["config"]["steps"] * pixels / 3e2
    assert expected > 5
    assert found["seconds"]["perturb"] == pytest.approx(expected, abs=0.1)
    monkeypatch.setattr(workload, "SHARD_IMAGES", 1)
    monkeypatch.setattr(workload, "BATCH_SIZE", {"cpu": 1})
    found = planned(client, ready_dataset, config={"preset": "quick"})
    assert found["steps"]["perturb"] > 2
    assert found["seconds"]["perturb"] == pytest.approx(expected * 3 / 4, rel=0.01)


def test_a_gpu_that_is_present_is_planned_for(client: httpx2.Client, ready_dataset: str) -> None:
    worker("a", 10.0, 5.0)
    worker("b", 1e5, 1e5, device="cuda", bfloat16=True)
    found = planned(client, ready_dataset)
    assert (found["plan"]["device"], found["config"]["appropriator"]) == ("cuda", "resnet18")


def test_a_worker_that_does_not_know_its_speed(client: httpx2.Client, ready_dataset: str) -> None:
    worker("mute", None, None)
    found = planned(client, ready_dataset)
    assert (found["workers"], found["seconds"]) == (1, None)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_would_be_refused_is_refused(
    client: httpx2.Client, other: httpx2.Client, ready_dataset: str
) -> None:
    problem(plan(client, ready_dataset, config={"checkpoints": 99}), 422, "INVALID_CONFIG")
    problem(
        plan(client, ready_dataset, evaluation={"countermeasures": []}), 422, "INVALID_EVALUATION"
    )
    unavailable = {"countermeasures": ["pretrained-tuned"]}
    problem(plan(client, ready_dataset, evaluation=unavailable), 422, "PRETRAINED_UNAVAILABLE")
    problem(plan(client, ready_dataset, validate_only="yes"), 422, "INVALID_REQUEST")
    problem(plan(other, ready_dataset), 404, "NOT_FOUND")
    made = client.post("/v1/datasets", content=small_zip()).json()["id"]
    problem(plan(client, made), 409, "DATASET_NOT_READY")
    storage.remove_one(storage.dataset_key(UUID(ready_dataset), datasets.INDEX))
    problem(plan(client, ready_dataset), 404, "NOT_FOUND")


def test_it_binds_no_idempotency_key(client: httpx2.Client, ready_dataset: str) -> None:
    headers = {"Idempotency-Key": "key"}
    body = {"dataset_id": ready_dataset, "validate_only": True}
    for _ in range(2):
        assert client.post("/v1/protections", json=body, headers=headers).status_code == 200
    real = client.post("/v1/protections", json={"dataset_id": ready_dataset}, headers=headers)
    assert real.status_code == 202
