"""`sepgate demo`: the README's first command, on a small archive of somebody's own."""

import fcntl
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import pictures
from tests.acceptance.test_serve import mentioning

SECONDS = 900


def demo(folder: Path, data: Path) -> "subprocess.CompletedProcess[str]":
    """As in the shell of an operator whose service is another one."""
    return subprocess.run(
        ["sepgate", "demo", "--out", "out", "--data", str(data)],
        env={name: value for name, value in os.environ.items() if not name.startswith("SEPGATE_")}
        | {
            "SEPGATE_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/nothing",
            "SEPGATE_REDIS_URL": "redis://127.0.0.1:1/0",
            "SEPGATE_STORAGE_URL": "file:///nowhere",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_it_protects_and_leaves_nothing_but_results_and_logs(tmp_path: Path) -> None:
    data = tmp_path / "mine.zip"
    data.write_bytes(pictures.zipped(pictures.class_folders(20, 6)))
    ran = demo(tmp_path, data)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    out = tmp_path / "out"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    results = {"protected.zip", "report.json", "report.html", "before-after.png"}
    assert {name for name in files if not name.startswith("service/logs/")} == results
    assert "service/logs/api.log" in files
    assert {path.name for path in tmp_path.iterdir()} == {"mine.zip", "out"}
    record = json.loads((out / "report.json").read_bytes())
    digest = hashlib.sha256((out / "protected.zip").read_bytes()).hexdigest()
    assert digest in ran.stdout
    assert record["change"]["largest_change_levels"] <= record["config"]["epsilon_levels"]
    assert "trained on protected:" in ran.stdout
    assert mentioning(out / "service") == []


def test_a_folder_that_no_demo_has_made_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "service"
    (theirs / "src").mkdir(parents=True)
    (theirs / "src" / "main.py").write_text("print()")
    (theirs / ".env").write_text("A=1")
    data = tmp_path / "mine.zip"
    data.write_bytes(b"no archive")
    ran = demo(tmp_path, data)
    assert ran.returncode == 1
    told = f"expected {theirs} to be a demo's, got .env, src in it: give another --out"
    assert ran.stdout == told + "\n"
    assert {path.name for path in theirs.rglob("*")} == {"src", "main.py", ".env"}
    # What a demo that was killed has left is its own, but not what one is at.
    with (theirs / "made-by-sepgate-demo").open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        ran = demo(tmp_path, data)
        assert ran.returncode == 1
        assert ran.stdout.startswith(f"expected {theirs} to be free, got another demo in it")
        assert (theirs / "src" / "main.py").exists()
    assert "NOT_A_ZIP" in demo(tmp_path, data).stdout
    assert [path.name for path in theirs.iterdir()] == ["logs"]


def test_what_is_no_archive_is_refused_in_words(tmp_path: Path) -> None:
    data = tmp_path / "mine.zip"
    data.write_bytes(b"no archive")
    ran = demo(tmp_path, data)
    assert ran.returncode == 1
    assert "NOT_A_ZIP" in ran.stdout
    # All parts had one folder, and it has gone with them.
    assert {path.name for path in tmp_path.iterdir()} == {"mine.zip", "out"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["service"]
    assert [path.name for path in (tmp_path / "out" / "service").iterdir()] == ["logs"]
    assert mentioning(tmp_path / "out" / "service") == []
