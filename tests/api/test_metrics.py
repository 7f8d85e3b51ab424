"""What Prometheus reads is what the rows say."""

import json
import re
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from api import datasets
from api.db import now, transaction
from api.models import Protection, ProtectionState, Step, StepKind
from api.scheduling import endings, leases, locks
from api.scheduling.endings import Setback
from tests import servers
from tests.api.conftest import Change, beat, protected, uploaded
from tests.api.lives import claimed, must_claim, small_zip, step, succeed
from tests.api.test_routes_datasets import problem

Samples = dict[tuple[str, ...], float]


def read(client: httpx2.Client) -> dict[str, Samples]:
    """Values by name and by the values of the labels, in the order of these labels' names."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        family.name: {
            tuple(value for _, value in sorted(s.labels.items())): s.value for s in family.samples
        }
        for family in text_string_to_metric_families(answer.text)
    }


@pytest.fixture
def asked(client: httpx2.Client, ready_dataset: str) -> UUID:
    return UUID(protected(client, ready_dataset)["id"])


def test_without_a_key_and_with_nothing_to_tell(anonymous: httpx2.Client) -> None:
    found = read(anonymous)
    assert found["sepgate_workers"] == {("gpu",): 0, ("cpu",): 0}
    assert found["sepgate_oldest_ready_seconds"] == {("gpu",): 0, ("cpu",): 0}
    assert found["sepgate_sweep"] == {(): 0}
    assert found["sepgate_storage_free_bytes"][()] > 0


def test_what_waits_and_for_how_long(client: httpx2.Client, asked: UUID) -> None:
    with transaction() as session:
        ago = now(session) - timedelta(minutes=5)
        session.execute(
            update(Step).where(Step.id == step(asked, StepKind.TRAIN).id).values(ready_at=ago)
        )
    found = read(client)
    assert found["sepgate_steps"]["train", "gpu", "ready"] == 1
    assert found["sepgate_steps"]["evaluate", "gpu", "waiting"] == 2
    assert found["sepgate_steps"]["ingest", "cpu", "done"] == 1
    assert found["sepgate_oldest_ready_seconds"]["gpu",] == pytest.approx(300, abs=5)
    assert found["sepgate_oldest_ready_seconds"]["cpu",] == 0
    assert found["sepgate_protections"] == {("queued",): 1}
    assert found["sepgate_datasets"] == {("ready",): 1}
    must_claim(asked, StepKind.TRAIN)
    found = read(client)
    assert found["sepgate_steps"]["train", "gpu", "running"] == 1
    assert found["sepgate_oldest_ready_seconds"]["gpu",] == 0


@pytest.fixture
def gone_wrong(client: httpx2.Client, ready_dataset: str, asked: UUID) -> None:
    """A protection and the reading of an upload have failed, the step of another protection was
    set back, an upload was rejected."""
    broken = UUID(protected(client, ready_dataset)["id"])
    claim = must_claim(broken, StepKind.TRAIN)
    endings.end(claim, partial(endings.fail, code="BROKEN", message="It broke."))
    lost = Setback("WORKER_LOST", "It was lost.", suspect=False)
    endings.end(must_claim(asked, StepKind.TRAIN), partial(endings.set_back, setback=lost))
    uploaded(client, b"no zip")
    made = UUID(client.post("/v1/datasets", content=small_zip()).json()["id"])
    with transaction() as session:
        reading_it = datasets.ingest_step(session, made).id
    unread = claimed(reading_it)
    assert unread is not None
    endings.end(unread, partial(endings.fail, code="INTERNAL", message="It is a defect."))


@pytest.mark.usefixtures("gone_wrong")
def test_failures_and_setbacks_by_reason(client: httpx2.Client) -> None:
    found = read(client)
    assert found["sepgate_failures"] == {
        ("BROKEN", "protection"): 1,
        ("NOT_A_ZIP", "dataset"): 1,
        ("INTERNAL", "dataset"): 1,
    }
    assert found["sepgate_protections_failed_last_hour"] == {("BROKEN",): 1}
    assert found["sepgate_datasets_failed_last_hour"] == {("INTERNAL",): 1}
    assert found["sepgate_setbacks"] == {("WORKER_LOST",): 1}
    assert found["sepgate_oldest_ready_seconds"]["gpu",] == 0  # it is not to be done yet


@pytest.mark.usefixtures("gone_wrong")
def test_what_is_over_is_told_no_more(client: httpx2.Client, asked: UUID) -> None:
    with transaction() as session:
        session.execute(update(Step).values(not_before=None))
        ago = now(session) - timedelta(minutes=61)
        failed = Protection.state == ProtectionState.FAILED
        session.execute(update(Protection).where(failed).values(finished_at=ago))
    claim = must_claim(asked, StepKind.TRAIN)
    found = read(client)
    assert found["sepgate_failures"]["BROKEN", "protection"] == 1
    assert found["sepgate_protections_failed_last_hour"] == {}
    assert found["sepgate_setbacks"] == {("WORKER_LOST",): 1}  # it may hang again
    with transaction() as session:
        leases.report(session, claim, 3, 10)
    assert read(client)["sepgate_setbacks"] == {}


@pytest.mark.usefixtures("gone_wrong")
def test_steps_of_what_is_over_wait_for_nobody(client: httpx2.Client, asked: UUID) -> None:
    """They stay as they were, what they were set back for included."""
    steps = read(client)["sepgate_steps"]
    assert (steps["train", "gpu", "ready"], steps["evaluate", "gpu", "waiting"]) == (1, 2)
    assert client.post(f"/v1/protections/{asked}/cancel").is_success
    found = read(client)
    assert {state for _, _, state in found["sepgate_steps"]} == {"done", "failed"}
    assert found["sepgate_setbacks"] == {}


@pytest.mark.usefixtures("gone_wrong")
def test_what_waits_for_its_turn_is_set_back_no_more(client: httpx2.Client) -> None:
    with transaction() as session:
        ago = now(session) - timedelta(minutes=6)
        session.execute(update(Step).where(Step.not_before.is_not(None)).values(not_before=ago))
    assert read(client)["sepgate_setbacks"] == {}


def test_what_was_done_lately(client: httpx2.Client, asked: UUID) -> None:
    succeed(asked)
    with transaction() as session:
        for index, ago in ((0, 1), (1, 61)):
            part = session.get_one(Step, step(asked, StepKind.PERTURB, index).id)
            part.finished_at = now(session) - timedelta(minutes=ago)
            part.started_at = part.finished_at - timedelta(seconds=30)
            part.cost, part.output = 70.0, {"sha256": "0" * 64, "images": 500}
            part.progress_begun, part.progress_total = 3, 10  # an earlier attempt has kept that
    found = read(client)
    lately = {
        name.removeprefix("sepgate_steps_last_hour_"): samples["perturb",]
        for name, samples in found.items()
        if name.startswith("sepgate_steps_last_hour_")
    }
    assert lately == {"finished": 1, "seconds": 30, "expected_seconds": 49, "images": 500}


def test_images_of_kinds_that_count_them_and_nothing_of_a_baseline_found_done(
    client: httpx2.Client, asked: UUID
) -> None:
    succeed(asked)
    with transaction() as session:
        for index, reused in ((0, True), (1, False)):
            judged = session.get_one(Step, step(asked, StepKind.EVALUATE, index).id)
            assert judged.output is not None
            judged.output = judged.output | {"reused": reused}
            judged.started_at = now(session) - timedelta(seconds=30)
            judged.finished_at, judged.cost = now(session), 70.0
    found = read(client)
    assert found["sepgate_steps_last_hour_images"] == {("ingest",): 4, ("package",): 4}
    assert found["sepgate_steps_last_hour_finished"]["evaluate",] == 1
    assert found["sepgate_steps_last_hour_seconds"]["evaluate",] == pytest.approx(30, abs=1)
    assert found["sepgate_steps_last_hour_expected_seconds"]["evaluate",] == 70


def test_workers_and_what_they_use(client: httpx2.Client) -> None:
    for name, ago in (("gpu-1/a:1", 0), ("gpu-2/b:1", 3600)):
        beat(name=name, silent_seconds=ago, memory_bytes=80, memory_used_bytes=60, load=0.93)
    with transaction() as session:
        assert locks.hold(session, locks.SWEEP, "sweeper", 60)
    found = read(client)
    alive = {("H100", "gpu", "gpu-1/a:1")}
    assert found["sepgate_workers"] == {("gpu",): 1, ("cpu",): 0}
    assert set(found["sepgate_worker_load"]) == alive
    assert list(found["sepgate_worker_memory_used_bytes"].values()) == [60]
    assert found["sepgate_sweep"] == {(): 1}


def test_without_a_database_it_says_so(client: httpx2.Client, change: Change) -> None:
    change(DATABASE_URL=f"postgresql+psycopg://x@127.0.0.1:{servers.free_port()}/x")
    problem(client.get("/metrics"), 503, "UNAVAILABLE")


def test_without_storage_it_says_all_else(
    client: httpx2.Client, change: Change, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    change(STORAGE_URL=(tmp_path / "file" / "blobs").as_uri())
    found = read(client)
    assert "sepgate_storage_free_bytes" not in found
    assert found["sepgate_workers"]


MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"


def labels(client: httpx2.Client) -> dict[str, set[str]]:
    """Names of the labels of every metric that has something to tell, and of Prometheus' own."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = {
        family.name: {name for s in family.samples for name in s.labels} for family in families
    }
    return found | {"up": {"job", "instance"}}


def queries() -> list[tuple[str, str]]:
    """Each with the text in which its labels are shown."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    shown: list[tuple[Any, Any]] = [(each["expr"], each["legendFormat"]) for each in targets]
    return shown + [(rule["expr"], rule["annotations"]["summary"]) for rule in group["rules"]]


def listed(words: str, expr: str) -> set[str]:
    """Labels in the brackets behind one of these words."""
    lists = re.findall(rf"\b(?:{words})\s*\(([^)]*)\)", expr)
    return {name for each in lists for name in re.findall(r"\w+", each)}


@pytest.mark.usefixtures("gone_wrong")
def test_dashboard_and_alerts_name_what_there_is(client: httpx2.Client) -> None:
    beat(memory_used_bytes=60, load=0.93)
    known, named = labels(client), set()
    for expr, shown in queries():
        metrics = set(re.findall(r"\b(?:sepgate_[a-z_]+|up)\b", expr))
        assert metrics <= set(known), expr
        named |= metrics
        common = set.intersection(*(known[name] for name in metrics))
        grouped = listed("by", expr)
        used = set(re.findall(r"(\w+)\s*[=!][=~]?\s*\"", expr))
        assert used | grouped | listed("on|ignoring|without", expr) <= common, expr
        told = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)", shown))
        assert told <= (grouped or common), (expr, shown)
    assert len(named) > 10
