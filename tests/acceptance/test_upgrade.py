"""Tables that a later version changes under the processes of this one, in the middle of their work:
they go on, to the same bytes. Afterwards they say that they are no longer the newest."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.config import Config

from api import revision
from api.db import Base
from api.models import StepKind
from tests import pictures, servers
from tests.acceptance.stack import running
from tests.acceptance.test_violence import finished, wait_for_the_middle_of

DATA = pictures.zipped(pictures.class_folders(90, 18, size=(64, 64)))
MIGRATION = '''"""Of a later version.

Revision: {name}, after {before}
"""

import sqlalchemy as sa
from alembic import op

revision = "{name}"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade():
    for table in {tables}:
        op.add_column(table, sa.Column("{name}", sa.Integer(), nullable=False, server_default="0"))
        op.create_index("ix_{name}_" + table, table, ["{name}"])
'''
NAMES = [f"later_{number:02d}" for number in range(60)]
LEAST, PAUSE_SECONDS = 3, 0.2


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that no other test uses."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'upgraded.sqlite3'}"
        return
    server = request.getfixturevalue("postgres_url")
    with servers.database(server, f"upgraded_{uuid4().hex}") as url:
        yield url


@pytest.fixture
def later(tmp_path: Path) -> Config:
    """This version's migrations, and later ones, each of which changes every table."""
    scripts, folder, before = revision.config(), tmp_path / "later", revision.needed()
    folder.mkdir()
    for name in NAMES:
        tables = list(Base.metadata.tables)
        text = MIGRATION.format(name=name, before=before, tables=tables)
        (folder / f"{name}.py").write_text(text)
        before = name
    places = [str(revision.MIGRATIONS / "versions"), str(folder)]
    scripts.set_main_option("version_locations", "\n".join(places))
    scripts.set_main_option("path_separator", "newline")
    return scripts


def test_old_processes_go_on_while_the_tables_move_on(
    environment: dict[str, str], later: Config, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    with running(environment, tmp_path / "logs") as stack:
        dataset_id = stack.upload(DATA)
        assert stack.finish(f"/v1/datasets/{dataset_id}")["state"] == "ready"
        undisturbed = finished(stack, stack.ask(dataset_id))
        going = stack.ask(dataset_id)
        wait_for_the_middle_of(StepKind.TRAIN)
        made = 0
        for name in NAMES:
            if stack.show(f"/v1/protections/{going}")["done"]:
                break
            revision.migrate(later, name)
            made += 1
            time.sleep(PAUSE_SECONDS)
        assert made >= LEAST
        assert finished(stack, going) == undisturbed
        # What is begun by them afterwards goes on as well: no row of theirs is refused.
        again = stack.upload(pictures.zipped(pictures.class_folders(8, 4)))
        assert stack.finish(f"/v1/datasets/{again}")["state"] == "ready"
        finished(stack, stack.ask(again))
        with pytest.raises(subprocess.CalledProcessError) as found:
            stack.doctor()
        assert f"expected migration {revision.needed()}, got later_" in found.value.stdout
