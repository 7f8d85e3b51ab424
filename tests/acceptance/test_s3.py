"""The whole job with blobs on an S3 server: the same bytes as with a folder, and nothing left."""

from pathlib import Path

import pytest

from tests import pictures, servers
from tests.acceptance.stack import Stack, running

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def job(stack: Stack, data: bytes) -> tuple[str, bytes]:
    dataset_id = stack.upload(data)
    assert stack.finish(f"/v1/datasets/{dataset_id}")["state"] == "ready"
    protection = stack.finish(f"/v1/protections/{stack.ask(dataset_id)}")
    assert protection["state"] == "succeeded", protection["error"]
    return dataset_id, stack.archive(protection["id"])


def test_the_same_archive_from_s3_as_from_a_folder(
    environment: dict[str, str], tmp_path: Path
) -> None:
    data = pictures.zipped(pictures.class_folders(20, 6))
    folders = [tmp_path / name for name in ("folder", "s3")]
    for folder in folders:
        folder.mkdir()
    with running(environment, folders[0]) as stack:
        _, expected = job(stack, data)
    with (
        servers.s3_server() as variables,
        running(environment | variables, folders[1]) as stack,
    ):
        dataset_id, found = job(stack, data)
        assert found == expected
        made = stack.show("/v1/protections")["items"][0]["id"]
        assert stack.delete(f"/v1/protections/{made}") == 204
        assert stack.delete(f"/v1/datasets/{dataset_id}") == 204
        assert "s3://sepgate" in stack.doctor()
        assert servers.s3_keys(variables) == []
