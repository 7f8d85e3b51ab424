"""What `sepgate` says of calls that can't be carried out: a line, and no trace of our own code."""

import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api import db, revision
from api.cli import app
from api.settings import Settings, settings
from tests import servers

# Hardly anything of it gets as far as the tables.
pytestmark = [
    pytest.mark.usefixtures("environment"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


def sepgate(*words: str) -> Result:
    return CliRunner().invoke(app, words, terminal_width=200)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.zip"
    path.write_bytes(b"PK")
    return path


def test_it_tells_its_version() -> None:
    assert sepgate("--version").output == f"sepgate {metadata.version('sepgate')}\n"


def test_without_a_key_nothing_is_uploaded(data: Path) -> None:
    result = sepgate("protect", str(data))
    assert result.exit_code == 2
    assert "expected an API key in --key or SEPGATE_API_KEY, got none" in result.stderr


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}", "nonsense", "ftp://127.0.0.1", "http://127.0.0.1:80a"]
)
def test_where_no_service_answers_it_says_where_it_looked(
    data: Path, tmp_path: Path, url: str
) -> None:
    out, where = tmp_path / "out", url.format(port=servers.free_port())
    result = sepgate("protect", str(data), "--key", "sg_1", "--url", where, "--out", str(out))
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert f"expected sepgate at {where}, got " in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--config", '{"epsilon_level": 4}'), "config.epsilon_level: Extra inputs are not"),
        (("--config", '{"epsilon_levels": 300}'), "config.epsilon_levels: Input should be less"),
        (("--preset", "best"), "config.preset: Input should be 'auto', 'quick'"),
        (("--evaluation", '{"seeds": 0}'), "evaluation.seeds: Input should be greater"),
    ],
)
def test_what_can_not_be_asked_for_is_refused_before_the_upload(
    data: Path, words: tuple[str, str], told: str
) -> None:
    result = sepgate("protect", str(data), "--key", "sg_1", *words)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("key", ["sg_secret…", "sg_sec ret", "sg_secret\tsg_secret"])
def test_a_key_of_other_letters_is_refused_and_not_shown(data: Path, key: str) -> None:
    result = sepgate("protect", str(data), "--key", key)
    assert result.exit_code == 2
    assert "expected an API key as it was shown" in result.stderr
    assert "secret" not in result.output


def test_where_no_results_can_be_written_nothing_is_uploaded(data: Path) -> None:
    result = sepgate("protect", str(data), "--key", "sg_1", "--out", "/proc/out")
    assert result.exit_code == 1
    assert "expected a folder to write results to, got /proc: " in result.output


@pytest.mark.parametrize(
    "words", [("keys", "list"), ("owners", "list"), ("keys", "revoke", "sg_1"), ("doctor",)]
)
def test_asking_makes_no_database(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "elsewhere" / "sepgate.sqlite3"
    monkeypatch.setenv("SEPGATE_DATABASE_URL", f"sqlite:///{path}")
    settings.cache_clear()
    result = sepgate(*words)
    assert result.exit_code == 1
    assert f"xpected a database at {path}, got none: start the service" in result.output
    assert not path.parent.exists()


def test_a_database_without_tables_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "empty.sqlite3"
    path.touch()
    monkeypatch.setenv("SEPGATE_DATABASE_URL", f"sqlite:///{path}")
    settings.cache_clear()
    db.engine.cache_clear()
    result = sepgate("keys", "list")
    assert result.exit_code == 1
    assert result.stderr.startswith("sqlite: expected migration ")
    assert "got None; run `sepgate migrate`" in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DATABASE_URL", "nonsense", "SEPGATE_DATABASE_URL: expected a URL of sqlite or "),
        ("DATABASE_URL", "mysql://me@host/x", "SEPGATE_DATABASE_URL: expected a URL of sqlite or "),
        ("DATABASE_URL", "postgresql://me@host:abc/x", "SEPGATE_DATABASE_URL: expected a URL of "),
        ("DATABASE_URL", "sqlite:////proc/file", "the database at SEPGATE_DATABASE_URL said: "),
        ("LEASE_SECONDS", "long", "SEPGATE_LEASE_SECONDS: Input should be a valid number"),
    ],
)
def test_settings_that_can_not_be_are_said_so(name: str, value: str, told: str) -> None:
    ran = subprocess.run(
        ["sepgate", "migrate"],
        env=os.environ | {f"SEPGATE_{name}": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in {1, 2}
    assert ran.stderr.splitlines()[-1].startswith(told)
    assert "Traceback" not in ran.stderr


def test_an_owner_has_no_spaces_around() -> None:
    revision.migrate()
    for owner in (" ann", "ann "):
        assert sepgate("keys", "create", "--owner", owner).exit_code == 0
    assert sepgate("owners", "list").stdout == "ann  limit none\n"
    result = sepgate("owners", "limit", "ann", str(2**31))
    assert result.exit_code == 2
    assert "2147483647" in result.stderr


@pytest.mark.parametrize("owner", ["", "  "])
def test_an_owner_has_a_name(owner: str) -> None:
    result = sepgate("keys", "create", "--owner", owner)
    assert result.exit_code == 2
    assert "expected a name in --owner" in result.stderr


def test_a_host_is_one() -> None:
    result = sepgate("serve", "--host", "no.such.host.invalid")
    assert result.exit_code == 1
    assert result.stderr.startswith("expected to listen at no.such.host.invalid:8000, got: ")


def test_a_port_is_one() -> None:
    result = sepgate("serve", "--port", "99999")
    assert result.exit_code == 2
    assert "65535" in result.stderr


def test_a_lease_is_renewed_in_its_time() -> None:
    """A short one would else be taken from healthy workers, again and again."""
    assert Settings(lease_seconds=9).lease_renew_seconds == 3
    assert Settings().lease_renew_seconds == 15
