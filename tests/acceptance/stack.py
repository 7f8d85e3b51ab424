"""The service as docker-compose.yml describes it: its very commands, as processes here."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.acceptance.hosts import Host
from tests.servers import free_port, wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("api", "worker-gpu", "worker-cpu", "sweep")
READY_SECONDS = 180
JOB_SECONDS = 480
LAST_WORDS = 12
USUAL = re.compile('"level": "(debug|info)"')
POLL_SECONDS = 0.3
"""Polling takes its share of two cores from what is waited for."""

# Whoever is killed is noticed within seconds, and no slow machine uses up the attempts.
IMPATIENT = {
    "SEPGATE_LEASE_SECONDS": "4",
    "SEPGATE_LEASE_RENEW_SECONDS": "1",
    "SEPGATE_SWEEP_SECONDS": "0.5",
    "SEPGATE_RESEND_SECONDS": "1",
    "SEPGATE_MAX_ATTEMPTS": "20",
    "SEPGATE_DRAIN_SECONDS": "1",
    "SEPGATE_DEVICE": "auto",  # as the compose file does not say
}

SMALL_JOB = {
    "preset": "quick",
    "seed": "0123456789abcdef0123456789abcdef",
    "epochs": 4,
    "checkpoints": 2,
    "appropriator_epochs": 4,
    "input_pixels": 32,
    "batch_size": 32,
    "steps": 4,
    "class_steps": 4,
}


class Stack:
    """Processes by the names of the compose file's services."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        self.logs = logs
        self._compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._http = httpx2.Client(base_url=self.url, timeout=30)

    def command(self, part: str) -> list[str]:
        """What the compose file starts, on a free port."""
        words = [str(word) for word in self._service(part)["command"]]
        return [word.replace("--port=8000", f"--port={self.port}") for word in words]

    def environment(self, part: str) -> dict[str, str]:
        """The variables that the compose file sets; those that say where things are, for here."""
        named = {k: str(v) for k, v in self._service(part)["environment"].items()}
        named.pop("PGPASSWORD", None)  # that of the compose file's server, not of this one
        as_they_are = {"SEPGATE_WORKER_QUEUE", "SEPGATE_LOG_FORMAT"}
        missing = set(named) - set(self._environment) - as_they_are
        assert not missing, f"{part} names {missing}, which this test does not know"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **named, **self._environment, "PATH": path}

    def _service(self, part: str) -> dict[str, Any]:
        """`worker-gpu#2` is another one of `worker-gpu`."""
        service: dict[str, Any] = self._compose[part.partition("#")[0]]
        return service

    def run(self, part: str) -> None:
        """Run a one-shot service to its end."""
        subprocess.run(self.command(part), env=self.environment(part), check=True, cwd=ROOT)

    def start(self, part: str, on: Host | None = None) -> None:
        """Start a service, its output going to a log; on another host if one is named."""
        host = on or Host("this", {})
        with (self.logs / f"{part}.log").open("ab") as log:
            self._processes[part] = subprocess.Popen(
                host.words + self.command(part),
                env=self.environment(part) | host.variables,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def pid(self, part: str) -> int:
        """Of a service's main process."""
        return self._processes[part].pid

    def has_ended(self, part: str) -> bool:
        """Whether a service is not running."""
        return part not in self._processes or self._processes[part].poll() is not None

    def stop_all(self) -> None:
        """SIGTERM to every service; until all have ended."""
        for part, process in self._processes.items():
            if not self.has_ended(part):
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            process.wait(60)

    def kill(self, part: str) -> None:
        """kill -9 of a service's main process."""
        self._processes[part].kill()
        self._processes[part].wait()

    def stop(self, part: str) -> float:
        """SIGTERM; returns the seconds that it took to end."""
        began = time.monotonic()
        self._processes[part].send_signal(signal.SIGTERM)
        self._processes[part].wait(60)
        return time.monotonic() - began

    def pause(self, part: str) -> None:
        """SIGSTOP of a service's main process: it takes no message; what it has begun goes on."""
        self._processes[part].send_signal(signal.SIGSTOP)

    def resume(self, part: str) -> None:
        """SIGCONT."""
        self._processes[part].send_signal(signal.SIGCONT)

    def doctor(self) -> str:
        """What `sepgate doctor` says; it must find nothing to mend."""
        words = ["sepgate", "doctor"]
        return subprocess.run(
            words, env=self.environment("api"), check=True, capture_output=True, text=True, cwd=ROOT
        ).stdout

    def log_ends(self) -> dict[Path, int]:
        """Of each log, how many lines it has."""
        return {file: len(file.read_text().splitlines()) for file in self.logs.glob("*.log")}

    def logged(
        self, since: Mapping[Path, int] | None = None, by: str = "*"
    ) -> list[dict[str, Any]]:
        """Every line of these services since `log_ends` said so, or all; each a JSON object."""
        found = []
        for file in sorted(self.logs.glob(f"{by}.log")):
            whole, _, _ = file.read_text().rpartition("\n")  # the next is being written
            found += whole.splitlines()[(since or {}).get(file, 0) :]
        return [json.loads(line) for line in found]

    def wait_for_workers(self, queue: str, number: int) -> None:
        """Until so many serve a queue."""
        there = f'sepgate_workers{{queue="{queue}"}} {number}.0'
        wait_for(
            lambda: there in self._http.get("/metrics").text, READY_SECONDS, f"{number} workers"
        )

    def wait_until_ready(self) -> None:
        """Until /readyz says so."""
        wait_for(self._is_ready, READY_SECONDS, "readiness")

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def last_words(self) -> list[str]:
        """What each service complained of last, for when its logs are gone."""
        found = []
        for file in sorted(self.logs.glob("*.log")):
            lines = file.read_text(errors="replace").splitlines()
            complaints = [line for line in lines if not USUAL.search(line)]
            found += [f"{file.stem}: {line}" for line in complaints[-LAST_WORDS:]]
        return found

    def close(self) -> None:
        """Kill what still runs; pytest shows what it complained of if the test failed."""
        print(*self.last_words(), sep="\n")
        self._http.close()
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    @property
    def authorisation(self) -> str:
        """The header that names who asks."""
        return str(self._http.headers["Authorization"])

    def new_key(self) -> None:
        """Make an API key by the command that the README names, and use it."""
        words = ["sepgate", "keys", "create", "--owner", "tester"]
        made = subprocess.run(
            words, env=self.environment("api"), check=True, capture_output=True, text=True, cwd=ROOT
        )
        self._http.headers["Authorization"] = f"Bearer {made.stdout.strip()}"

    def use_key(self, authorisation: str) -> None:
        """Ask as somebody else, by the header that `authorisation` gave."""
        self._http.headers["Authorization"] = authorisation

    def protect(
        self, data: Path, out: Path, config: str, evaluation: str = "{}", *options: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run `sepgate protect`."""
        key = self._http.headers["Authorization"].removeprefix("Bearer ")
        words = ["sepgate", "protect", str(data), "--out", str(out)]
        words += ["--config", config, "--evaluation", evaluation, *options]
        where = {"SEPGATE_URL": self.url, "SEPGATE_API_KEY": key}
        environment = self.environment("api") | where
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    def upload(self, archive: bytes) -> str:
        """Upload; returns the id at once."""
        answer = self._http.post("/v1/datasets", params={"name": "test"}, content=archive)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def ask(
        self, dataset_id: str, evaluation: dict[str, Any] | None = None, **config: object
    ) -> str:
        """Ask for a protection; returns the id at once."""
        body = {"dataset_id": dataset_id, "config": SMALL_JOB | config}
        body |= {"evaluation": evaluation} if evaluation else {}
        answer = self._http.post("/v1/protections", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def show(self, path: str) -> dict[str, Any]:
        """GET a resource."""
        answer = self._http.get(path)
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def post(self, path: str) -> httpx2.Response:
        """POST without a body."""
        return self._http.post(path)

    def delete(self, path: str) -> int:
        """DELETE; returns the status."""
        return self._http.delete(path).status_code

    def finish(self, path: str) -> dict[str, Any]:
        """Poll until done."""
        wait_for(
            lambda: bool(self.show(path)["done"]), JOB_SECONDS, f"the end of {path}", POLL_SECONDS
        )
        return self.show(path)

    def archive(self, protection_id: str) -> bytes:
        """Download."""
        answer = self._http.get(f"/v1/protections/{protection_id}/archive")
        assert answer.status_code == 200, answer.text
        return answer.content


@contextmanager
def running(environment: dict[str, str], logs: Path) -> Iterator[Stack]:
    """All of it, migrated, ready and with a key."""
    stack = Stack(environment | IMPATIENT, logs)
    try:
        stack.run("migrate")
        for part in PARTS:
            stack.start(part)
        stack.wait_until_ready()
        stack.new_key()
        yield stack
    finally:
        stack.close()


def pid_of(worker: str) -> int:
    """The process behind a worker's name, on this host."""
    name, _, pid = worker.rpartition(":")
    assert name.partition("/")[0] == socket.gethostname()
    return int(pid)
