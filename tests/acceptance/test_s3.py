"""Three hosts that share a database, a queue and an S3 server: the same bytes as one with a folder.

The second and the third are network namespaces with names and folders of their own; where this
machine allows none of these, workers with folders of their own.
"""

import socket
from pathlib import Path
from typing import Any

import pytest

from api import adoption
from tests import pictures, servers
from tests.acceptance.hosts import hosts
from tests.acceptance.stack import Stack, running

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

SEEDS = 4


def job(stack: Stack, data: bytes) -> tuple[dict[str, Any], bytes]:
    dataset_id = stack.upload(data)
    assert stack.finish(f"/v1/datasets/{dataset_id}")["state"] == "ready"
    asked = stack.ask(dataset_id, {"seeds": SEEDS})
    protection = stack.finish(f"/v1/protections/{asked}")
    assert protection["state"] == "succeeded", protection["error"]
    return protection, stack.archive(asked)


def forget(stack: Stack, protection: dict[str, Any]) -> None:
    assert stack.delete(f"/v1/protections/{protection['id']}") == 204
    assert stack.delete(f"/v1/datasets/{protection['dataset_id']}") == 204


def test_three_hosts_finish_one_protection(environment: dict[str, str], tmp_path: Path) -> None:
    data = pictures.zipped(pictures.class_folders(20, 6))
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
    with running(environment, tmp_path / "one") as stack:
        protection, expected = job(stack, data)
        forget(stack, protection)  # its blobs lie where the next does not look
    with (
        servers.s3_server() as variables,
        running(environment | variables, tmp_path / "three") as stack,
        hosts(2, environment | variables, tmp_path) as others,
    ):
        for host in others:
            stack.start(f"worker-gpu#{host.name}", on=host)
        stack.wait_for_workers("gpu", 3)
        protection, found = job(stack, data)
        assert found == expected
        judged = [step for step in protection["steps"] if step["kind"] == "evaluate"]
        assert len(judged) == 2 * SEEDS
        workers = {step["worker"] for step in judged}
        assert len(workers) == 3
        if any(host.words for host in others):
            names = {worker.partition("/")[0] for worker in workers}
            assert names == {socket.gethostname(), "host-2", "host-3"}
        for host in others:
            stack.stop(f"worker-gpu#{host.name}")
        forget(stack, protection)
        assert "s3://sepgate" in stack.doctor()
        assert servers.s3_keys(variables) == [adoption.MARKER]
