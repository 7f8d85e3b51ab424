"""The whole job through the commands of the compose file, on real servers."""

import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from api.scheduling.joins import ORDER
from tests import pictures
from tests.acceptance.stack import PARTS, SMALL_JOB, Stack, running
from tests.conftest import DATABASES, fresh_database, service_environment
from tests.servers import wait_for

STOP_SECONDS = 15
# Who takes messages, the heartbeat, and warnings, which come from anywhere.
BETWEEN_STEPS = ("celery", "kombu", "redis", "py.warnings", "worker.facts", "worker.usage")


@pytest.fixture(scope="module", params=DATABASES)
def stack(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One for all tests of this file, which leave there what they uploaded."""
    folder = tmp_path_factory.mktemp("job")
    url = fresh_database(request.param, request, folder)
    with (
        service_environment(url, redis_url, folder) as variables,
        # So that libraries have something to say within steps, too.
        running(variables | {"SEPGATE_LOG_LEVEL": "DEBUG"}, folder) as it,
    ):
        yield it


@pytest.fixture(autouse=True)
def left_as_it_was(stack: Stack) -> Iterator[None]:
    """What a test that failed has left running, or stopped, is no other's."""
    yield
    for part in PARTS:
        if stack.has_ended(part):
            stack.start(part)
    stack.wait_until_ready()
    for protection in stack.show("/v1/protections")["items"]:
        if not protection["done"]:
            stack.post(f"/v1/protections/{protection['id']}/cancel")


@pytest.fixture
def folder(stack: Stack) -> Path:
    """The stack's: logs, and blobs below it."""
    return stack.logs


def blobs(folder: Path) -> set[Path]:
    """But for the marker, which lies beside all kinds."""
    return {path for path in (folder / "blobs").glob("*/**/*") if path.is_file()}


def _check_logs(lines: list[dict[str, Any]], protection_id: str) -> None:
    """All are JSON; those of a step say which, those of a request too."""
    of_steps = [line for line in lines if line["logger"] == "worker.tasks"]
    assert all("step_id" in line for line in of_steps)
    begun = [line["step"] for line in of_steps if line.get("protection_id") == protection_id]
    assert {f"{kind} 0" for kind in ORDER} | {"evaluate 1"} <= set(begun)
    asked = [line for line in lines if line["logger"] == "sepgate.requests"]
    (made,) = (line["request_id"] for line in asked if "POST /v1/protections:" in line["event"])
    ours = [line for line in of_steps if line.get("protection_id") == protection_id]
    assert {line["request_id"] for line in ours} == {made}  # of steps made by workers, too
    assert len({line["request_id"] for line in asked}) == len(asked) > 0
    assert any(line.get("protection_id") == protection_id for line in asked)


def _check_whose(stack: Stack) -> None:
    """Whoever logs, and from whichever thread, in a request or a step: it says which."""
    for line in stack.logged(by="api"):
        assert "request_id" in line or line["logger"] in {"uvicorn.error", "asyncio"}, line
    libraries = set()
    for line in stack.logged(by="worker-*"):
        if not line["logger"].startswith(BETWEEN_STEPS):
            assert {"step", "step_id", "request_id"} <= line.keys(), line
            assert {"dataset_id", "protection_id"} & line.keys(), line
            libraries.add(line["logger"].partition(".")[0])
    assert {"PIL", "worker"} <= libraries
    assert stack.logged(by="sweep")


def test_whole_job(stack: Stack, folder: Path) -> None:
    kept, logged = blobs(folder), stack.log_ends()
    files = pictures.class_folders(20, 6)
    dataset_id = stack.upload(pictures.zipped(files | {"train/ant/notes.txt": b"not an image"}))
    dataset = stack.finish(f"/v1/datasets/{dataset_id}")
    assert dataset["state"] == "ready"
    assert dataset["images"] == len(files)
    assert [refused["name"] for refused in dataset["refused"]] == ["train/ant/notes.txt"]

    # So many epochs that what it learns does not hang on how a processor rounds.
    asked = stack.ask(dataset_id, appropriator_epochs=12)
    protection = stack.finish(f"/v1/protections/{asked}")
    assert protection["state"] == "succeeded", protection["error"]
    assert protection["progress"] == 1.0
    with zipfile.ZipFile(io.BytesIO(stack.archive(protection["id"]))) as released:
        assert sorted(released.namelist()) == sorted([*files, "manifest.json"])
        manifest = json.loads(released.read("manifest.json"))
        largest = {entry["name"]: entry["largest_change_levels"] for entry in manifest["files"]}
        for name, original in files.items():
            before, after = (
                np.asarray(Image.open(io.BytesIO(data)), np.int16)
                for data in (original, released.read(name))
            )
            change = np.abs(after - before).max()
            assert 0 < change <= protection["config"]["epsilon_levels"]
            assert change == largest[name]

    report = stack.show(f"/v1/protections/{protection['id']}/report")
    assert report["training"]["held_out_from"] == "test"
    assert report["accuracy"]["clean"]["accuracy_last"] > 0.6
    assert [refused["name"] for refused in report["refused"]] == ["train/ant/notes.txt"]

    _check_logs(stack.logged(logged), protection["id"])
    _check_whose(stack)
    assert "1 serve gpu" in stack.doctor()
    assert stack.delete(f"/v1/protections/{protection['id']}") == 204
    assert stack.delete(f"/v1/datasets/{dataset_id}") == 204
    assert not blobs(folder) - kept


def test_the_command_takes_fields_of_the_configuration(stack: Stack, tmp_path: Path) -> None:
    data, out = tmp_path / "data.zip", tmp_path / "out"
    data.write_bytes(pictures.zipped(pictures.class_folders(20, 6)))
    refused = stack.protect(data, out, "{'epochs': 4}")
    assert refused.returncode == 2
    assert "--config: expected a JSON object" in refused.stderr
    assert not out.exists()

    config = json.dumps(SMALL_JOB | {"protected_classes": ["ant"]})
    done = stack.protect(data, out, config, '{"countermeasures": ["crop-flip", "grey"]}')
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_bytes())
    assert not report["verdict"]["worked"]  # a part never holds
    assert report["config"]["protected_classes"] == ["ant"]
    assert report["evaluation"]["countermeasures"] == ["crop-flip", "grey"]
    assert f"asked for {stack.url}/v1/protections/{report['protection_id']}" in done.stdout
    with zipfile.ZipFile(out / "protected.zip") as released:
        manifest = json.loads(released.read("manifest.json"))
    changed = [entry["name"] for entry in manifest["files"] if entry["largest_change_levels"]]
    assert {name.split("/")[1] for name in changed} == {"ant"}


def test_cancel_in_the_middle_of_training_leaves_nothing(stack: Stack, folder: Path) -> None:
    kept = blobs(folder)
    dataset_id = stack.upload(pictures.zipped(pictures.class_folders(40)))
    stack.finish(f"/v1/datasets/{dataset_id}")
    path = f"/v1/protections/{stack.ask(dataset_id, epochs=5000, checkpoints=500)}"
    wait_for(lambda: stack.show(path)["steps"][0]["progress"] > 0, 60, "progress of the training")
    before = time.monotonic()
    assert stack.post(f"{path}/cancel").status_code == 202
    cancelled = stack.finish(path)
    assert time.monotonic() - before < 10
    assert cancelled["state"] == "cancelled"
    source_and_index = 2
    wait_for(lambda: len(blobs(folder) - kept) == source_and_index, 5, "the checkpoints to go")
    assert stack.post(f"{path}/cancel").status_code == 202

    # The worker is free again at once.
    protection = stack.finish(f"/v1/protections/{stack.ask(dataset_id)}")
    assert protection["state"] == "succeeded"


def test_a_worker_that_is_stopped_gives_its_step_back(stack: Stack) -> None:
    dataset_id = stack.upload(pictures.zipped(pictures.class_folders(40)))
    stack.finish(f"/v1/datasets/{dataset_id}")
    path = f"/v1/protections/{stack.ask(dataset_id, epochs=40, appropriator_epochs=1)}"
    wait_for(lambda: stack.show(path)["steps"][0]["progress"] > 0, 60, "progress of the training")
    assert stack.stop("worker-gpu") < STOP_SECONDS
    train = stack.show(path)["steps"][0]
    assert train["state"] == "ready"
    assert train["attempt"] == 0  # a drain is nobody's fault
    stack.start("worker-gpu")
    assert stack.finish(path)["state"] == "succeeded"


def with_entry(name: str, content: bytes, mode: int = 0o100644) -> bytes:
    """A good archive with one more entry."""
    file = io.BytesIO(pictures.zipped(pictures.class_folders(3)))
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, mode << 16
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def test_hostile_archives_are_refused_and_leave_nothing(stack: Stack, folder: Path) -> None:
    kept = blobs(folder)
    hostile = {
        "ARCHIVE_UNSAFE_PATH": with_entry("../../etc/passwd", b"x"),
        "ARCHIVE_LINK": with_entry("train/ant/link.png", b"/etc/passwd", 0o120777),
        "ARCHIVE_BOMB": with_entry("train/ant/bomb.png", bytes(2**27)),
        "NOT_A_ZIP": b"hello",
    }
    for code, archive in hostile.items():
        dataset = stack.finish(f"/v1/datasets/{stack.upload(archive)}")
        assert dataset["state"] == "rejected"
        assert dataset["error_code"] == code
    wait_for(lambda: not blobs(folder) - kept, 5, "the refused archives to go")
