"""Three hosts that share a database, a queue and an S3 server: the same bytes as one with a folder.

A host here is a worker with folders of its own.
"""

from pathlib import Path
from typing import Any

import pytest

from tests import pictures, servers
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
    for name in ("one", "three", "tmp-2", "tmp-3"):
        (tmp_path / name).mkdir()
    with running(environment, tmp_path / "one") as stack:
        protection, expected = job(stack, data)
        forget(stack, protection)  # its blobs lie where the next does not look
    with (
        servers.s3_server() as variables,
        running(environment | variables, tmp_path / "three") as stack,
    ):
        for host in (2, 3):
            stack.start(
                f"worker-gpu#{host}",
                SEPGATE_DATA_DIR=str(tmp_path / f"data-{host}"),
                TMPDIR=str(tmp_path / f"tmp-{host}"),
            )
        stack.wait_for_workers("gpu", 3)
        protection, found = job(stack, data)
        assert found == expected
        judged = [step for step in protection["steps"] if step["kind"] == "evaluate"]
        assert len(judged) == 2 * SEEDS
        assert len({step["worker"] for step in judged}) == 3
        forget(stack, protection)
        assert "s3://sepgate" in stack.doctor()
        assert servers.s3_keys(variables) == []
