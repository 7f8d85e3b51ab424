"""Three hosts that share a database, a queue and an S3 server: the same bytes as one with a folder.

The second and the third are network namespaces with names and folders of their own; where this
machine allows none of these, workers with folders of their own.
"""

import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api import adoption
from tests import pictures, servers
from tests.acceptance.hosts import Host, hosts
from tests.acceptance.stack import Stack, running

pytestmark = [
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
    pytest.mark.timeout(1200),  # two whole jobs, and workers of three hosts on few cores
]

SEEDS = 4
STEPS = 40
"""So that a shard takes long enough for the others to come and take some."""
SIZE = (224, 224)
"""A batch has 20 images of that size on a CPU, and 83 on a GPU; there are 78."""


def job(stack: Stack, data: bytes) -> tuple[dict[str, Any], bytes]:
    dataset_id = stack.upload(data)
    assert stack.finish(f"/v1/datasets/{dataset_id}")["state"] == "ready"
    asked = stack.ask(dataset_id, {"seeds": SEEDS}, steps=STEPS)
    protection = stack.finish(f"/v1/protections/{asked}")
    assert protection["state"] == "succeeded", protection["error"]
    return protection, stack.archive(asked)


def forget(stack: Stack, protection: dict[str, Any]) -> None:
    assert stack.delete(f"/v1/protections/{protection['id']}") == 204
    assert stack.delete(f"/v1/datasets/{protection['dataset_id']}") == 204


@contextmanager
def shared(environment: dict[str, str], folder: Path) -> Iterator[tuple[Stack, list[Host]]]:
    """A service in which a batch is a shard, and two hosts more that see what it stores."""
    environment = environment | {"SEPGATE_SHARD_SECONDS": "0.001"}
    with (
        running(environment, folder / "three") as stack,
        hosts(2, environment, folder) as others,
    ):
        yield stack, others


def test_three_hosts_finish_one_protection(environment: dict[str, str], tmp_path: Path) -> None:
    data = pictures.zipped(pictures.class_folders(20, 6, SIZE))
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
    with running(environment, tmp_path / "one") as stack:
        protection, expected = job(stack, data)
        forget(stack, protection)  # its blobs lie where the next does not look
    with (
        servers.s3_server() as variables,
        shared(environment | variables, tmp_path) as (stack, others),
    ):
        for host in others:
            stack.start(f"worker-gpu#{host.name}", on=host)
        stack.wait_for_workers("gpu", 3)
        protection, found = job(stack, data)
        assert found == expected
        batch = protection["plan"]["max_batch_pixels"] // math.prod(SIZE)
        shards = math.ceil(3 * (20 + 6) / batch)
        kinds = [step["kind"] for step in protection["steps"]]
        assert kinds.count("perturb") == kinds.count("encode") == shards
        perturbed = [step for step in protection["steps"] if step["kind"] == "perturb"]
        assert len({step["worker"] for step in perturbed}) >= min(shards, 2)
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
