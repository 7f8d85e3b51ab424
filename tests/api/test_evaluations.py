"""What judges a protection: asked for over HTTP, checked, frozen, shown, a step a cell."""

import hashlib
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.models import StepKind
from api.plans import weights
from api.settings import Settings
from sep_core.cells import Cell, Evaluation, cell_config, cells, named, weights_sha256
from sep_core.config import COUNTERMEASURES, Countermeasure, NetworkName
from sep_core.presets import PAPER, QUICK
from tests.api.conftest import JSON, Change, give_weights
from tests.api.lives import protection, states, train
from tests.api.test_routes_datasets import problem

NETWORKS: tuple[NetworkName, ...] = ("small", "linear", "mlp")
chosen = st.lists(st.sampled_from(COUNTERMEASURES), min_size=1, max_size=6, unique=True)
trained = st.lists(st.sampled_from(NETWORKS), max_size=3, unique=True)


def ask(client: httpx2.Client, dataset_id: str, evaluation: object, key: str = "") -> Any:
    body = {"dataset_id": dataset_id, "config": {"preset": "quick"}, "evaluation": evaluation}
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/v1/protections", json=body, headers=headers)


@given(chosen, trained, st.integers(1, 5))
def test_cells_are_the_whole_matrix_once(
    countermeasures: list[Countermeasure], networks: list[NetworkName], seeds: int
) -> None:
    evaluation = Evaluation(
        countermeasures=tuple(countermeasures), networks=tuple(networks), seeds=seeds
    )
    found = cells(named(evaluation, QUICK))
    assert len(found) == evaluation.trainings == len(set(found))
    assert {cell.network for cell in found} == set(evaluation.networks or ("small",))
    assert {cell.countermeasure for cell in found} == set(evaluation.countermeasures)
    assert {cell.seed for cell in found} == set(range(1, evaluation.seeds + 1))
    for clean, protected in zip(found[::2], found[1::2], strict=True):
        assert (clean.clean, protected.clean) == (True, False)
        assert Cell(clean.network, clean.countermeasure, clean.seed, clean=False) == protected
        assert cell_config(PAPER, clean) == cell_config(PAPER, protected)
    assert found[0].countermeasure == countermeasures[0]


def test_cells_draw_by_their_number_alone() -> None:
    one, two = (Cell("mlp", "grey", seed, clean=True) for seed in (1, 2))
    secret = cell_config(QUICK, one).seed
    assert secret == cell_config(PAPER, one).seed != cell_config(PAPER, two).seed
    assert cell_config(PAPER, one).appropriator == "mlp"


def test_cells_of_unnamed_networks_are_a_defect() -> None:
    with pytest.raises(ValueError, match="networks: expected at least one"):
        cells(Evaluation())


def test_asking(client: httpx2.Client, ready_dataset: str) -> None:
    evaluation = {"countermeasures": ["crop-flip", "adversarial-4"], "seeds": 2}
    answer = ask(client, ready_dataset, evaluation)
    assert answer.status_code == 202, answer.text
    shown: JSON = answer.json()
    assert shown["requested"]["evaluation"] == evaluation
    assert shown["evaluation"] is None
    made = UUID(shown["id"])
    assert [kind for kind, _ in states(made)].count(StepKind.EVALUATE) == 8
    train(made)
    frozen = client.get(f"/v1/protections/{made}").json()["evaluation"]
    assert frozen == evaluation | {"networks": ["small"], "weights": {}}
    assert protection(made).evaluation == frozen


def test_nothing_asked_is_one_training_of_each(client: httpx2.Client, ready_dataset: str) -> None:
    for nothing in ({}, {"seeds": None, "networks": None}):
        shown = ask(client, ready_dataset, nothing).json()
        assert shown["requested"]["evaluation"] == {}
        assert [s["kind"] for s in shown["steps"]].count("evaluate") == 2
    train(UUID(shown["id"]))
    frozen = client.get(f"/v1/protections/{shown['id']}").json()["evaluation"]
    assert frozen == {
        "countermeasures": ["crop-flip"],
        "networks": ["small"],
        "seeds": 1,
        "weights": {},
    }


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("evaluation", "code", "sentence"),
    [
        (None, "INVALID_REQUEST", "evaluation"),
        ({"epochs": 3}, "INVALID_REQUEST", "epochs"),
        ({"countermeasures": ["prayer"]}, "INVALID_REQUEST", "got 'prayer'"),
        ({"countermeasures": "grey"}, "INVALID_REQUEST", "countermeasures"),
        ({"networks": ["resnet19"]}, "INVALID_REQUEST", "networks"),
        ({"seeds": "2"}, "INVALID_REQUEST", "seeds: Input should be a valid integer, got '2'"),
        ({"seeds": True}, "INVALID_REQUEST", "seeds"),
        ({"countermeasures": []}, "INVALID_EVALUATION", "countermeasures: expected at least one"),
        ({"countermeasures": ["grey", "grey"]}, "INVALID_EVALUATION", "expected different ones"),
        ({"networks": ["mlp", "mlp"]}, "INVALID_EVALUATION", "expected different ones"),
        ({"seeds": 0}, "INVALID_REQUEST", "evaluation.seeds: Input should be greater"),
        ({"seeds": 10**30}, "INVALID_REQUEST", "evaluation.seeds: Input should be less"),
        ({"seeds": 251}, "INVALID_EVALUATION", "at most 500 trainings"),
        ({"countermeasures": ["none", "grey"], "seeds": 126}, "INVALID_EVALUATION", "got 504"),
        ({"weights": {"small": "0" * 64}}, "INVALID_REQUEST", "weights"),
        (
            {"countermeasures": ["none", "pretrained-frozen"]},
            "PRETRAINED_UNAVAILABLE",
            "got none for small; this service has one for no network",
        ),
    ],
)
def test_evaluations_that_are_refused(
    client: httpx2.Client, ready_dataset: str, evaluation: object, code: str, sentence: str
) -> None:
    found = problem(ask(client, ready_dataset, evaluation), 422, code)
    assert sentence in str(found)
    assert client.get("/v1/protections").json()["items"] == []


PRETRAINED_ROWS = ["grey", "pretrained-frozen", "pretrained-tuned"]


def test_pretrained_rows_where_there_are_weights_for_every_network(
    client: httpx2.Client, ready_dataset: str
) -> None:
    give_weights("mlp", b"weights")
    for networks, missing in ((["mlp", "small"], "small"), (["vgg16"], "vgg16"), (None, "small")):
        asked = {"countermeasures": PRETRAINED_ROWS, "networks": networks}
        found = problem(ask(client, ready_dataset, asked), 422, "PRETRAINED_UNAVAILABLE")
        assert found["detail"] == (
            "pretrained-frozen, pretrained-tuned: expected a file of pretrained weights for every "
            f"network, got none for {missing}; this service has one for mlp."
        )
    asked = {"countermeasures": PRETRAINED_ROWS, "networks": ["mlp"]}
    answer = ask(client, ready_dataset, asked)
    assert answer.status_code == 202, answer.text
    assert [s["kind"] for s in answer.json()["steps"]].count("evaluate") == 6


def test_what_may_judge_has_weights_on_every_kind_of_device(
    client: httpx2.Client, ready_dataset: str
) -> None:
    """`auto` is `quick` with `small` on a CPU, and `fast` with a ResNet-18 on a GPU."""
    body = {"dataset_id": ready_dataset, "evaluation": {"countermeasures": PRETRAINED_ROWS}}
    give_weights("small", b"weights")
    found = problem(client.post("/v1/protections", json=body), 422, "PRETRAINED_UNAVAILABLE")
    assert "got none for resnet18; this service has one for small." in found["detail"]
    give_weights("resnet18", b"weights")
    assert client.post("/v1/protections", json=body).status_code == 202


def test_a_folder_of_the_operators(
    client: httpx2.Client, ready_dataset: str, change: Change, tmp_path: Path
) -> None:
    asked = {"countermeasures": PRETRAINED_ROWS, "networks": ["mlp"]}
    give_weights("mlp", b"weights")
    change(WEIGHTS_DIR=tmp_path / "elsewhere")
    problem(ask(client, ready_dataset, asked), 422, "PRETRAINED_UNAVAILABLE")
    give_weights("mlp", b"weights")
    assert (tmp_path / "elsewhere/mlp.pt").exists()
    assert ask(client, ready_dataset, asked).status_code == 202


def test_the_folder_is_in_the_data_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEPGATE_WEIGHTS_DIR", raising=False)
    assert Settings(data_dir=Path("/data")).weights == Path("/data/weights")
    assert Settings(data_dir=Path("here")).weights == Path("here/weights").absolute()


def test_a_digest_is_of_the_file_as_it_is(owner_id: UUID) -> None:
    assert owner_id
    for content in (b"some", b"more"):
        give_weights("mlp", content)
        assert weights.sha256("mlp") == hashlib.sha256(content).hexdigest()


def test_a_pretrained_training_without_a_digest_is_a_defect() -> None:
    evaluation = Evaluation(networks=("mlp", "small"), weights={"mlp": "0" * 64})
    assert weights_sha256(evaluation, "mlp", "pretrained-tuned") == "0" * 64
    assert weights_sha256(evaluation, "small", "grey") is None
    with pytest.raises(ValueError, match="expected a digest for small"):
        weights_sha256(evaluation, "small", "pretrained-tuned")


def test_an_evaluation_counts_in_what_a_key_stands_for(
    client: httpx2.Client, ready_dataset: str
) -> None:
    first = ask(client, ready_dataset, {"seeds": 2}, "key")
    assert ask(client, ready_dataset, {"seeds": 2}, "key").json()["id"] == first.json()["id"]
    for other in ({"seeds": 3}, {}):
        problem(ask(client, ready_dataset, other, "key"), 422, "IDEMPOTENCY_KEY_REUSED")
