"""Faults at random while protections run, and what must hold when it is over."""

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any
from uuid import uuid4

import httpx2

from tests import pictures
from tests.acceptance.stack import SMALL_JOB
from tests.chaos.faults import FAULTS
from tests.chaos.world import World, world

AT_ONCE = 3
SEEDS = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")
PATIENCE_SECONDS = 600
COLLECT_SECONDS = 60


class Client:
    """Who asks again until it is heard, by keys that make asking twice harmless."""

    def __init__(self, made: World) -> None:
        key = made.stack.authorisation
        self._http = httpx2.Client(
            base_url=made.stack.url, timeout=10, headers={"Authorization": key}
        )

    def close(self) -> None:
        """Its connections."""
        self._http.close()

    def ask(self, dataset_id: str, seed: str) -> str:
        """A protection's id."""
        body = {"dataset_id": dataset_id, "config": SMALL_JOB | {"seed": seed}}
        headers = {"Idempotency-Key": uuid4().hex}
        return str(
            self._patiently("POST", "/v1/protections", json=body, headers=headers).json()["id"]
        )

    def show(self, path: str) -> Any:
        """A resource."""
        return self._patiently("GET", path).json()

    def content(self, path: str) -> bytes:
        """A download."""
        return self._patiently("GET", path).content

    def delete(self, path: str) -> None:
        """A resource, which may be gone already if the answer was lost."""
        self._patiently("DELETE", path, gone=True)

    def _patiently(
        self, method: str, path: str, *, gone: bool = False, **more: Any
    ) -> httpx2.Response:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, **more)
            except httpx2.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500:
                absent = gone and answer.status_code == 404
                assert answer.is_success or absent, f"{method} {path}: {answer.text}"
                return answer
            assert time.monotonic() < deadline, f"{method} {path}: no answer"
            time.sleep(0.2)


class Asked:
    """Protections that were asked for, and are checked and deleted when they have ended."""

    def __init__(self, made: World, dataset_id: str) -> None:
        self._made, self._dataset_id = made, dataset_id
        self.client = Client(made)
        self._going: dict[str, str] = {}
        self._whole: dict[str, bytes] = {}
        self.ended = 0
        self.setbacks: Counter[str] = Counter()

    def ask(self, seed: str) -> None:
        """One more."""
        self._going[self.client.ask(self._dataset_id, seed)] = seed

    @property
    def going(self) -> int:
        """How many have not been seen to end."""
        return len(self._going)

    def look(self) -> None:
        """Check and delete what has ended. The first of each seed is what the others must equal."""
        for protection_id, seed in list(self._going.items()):
            shown = self.client.show(f"/v1/protections/{protection_id}")
            if not shown["done"]:
                continue
            assert shown["state"] == "succeeded", f"{protection_id}: {shown['error']}"
            found = self.client.content(f"/v1/protections/{protection_id}/archive")
            assert found == self._whole.setdefault(seed, found), f"{protection_id}: other bytes"
            self.setbacks += _check_events(self.client, shown)
            self.client.delete(f"/v1/protections/{protection_id}")
            del self._going[protection_id]
            self.ended += 1

    def close(self) -> None:
        """Its connections."""
        self.client.close()

    def finish(self) -> None:
        """Until all have ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._going:
            assert time.monotonic() < deadline, f"these do not end: {list(self._going)}"
            self._made.supervise()
            self.look()
            time.sleep(0.3)


def storm(database: str, faults: int, seed: int, tell: Callable[[str], None]) -> None:
    """Do harm so many times, let all protections end, and check what is left.

    Raises:
        AssertionError: something was lost, accepted twice, changed or left behind.
    """
    draws = random.Random(seed)
    with world(database) as made:
        dataset_id = made.stack.upload(pictures.zipped(pictures.class_folders(60, 12)))
        assert made.stack.finish(f"/v1/datasets/{dataset_id}")["state"] == "ready"
        with closing(Asked(made, dataset_id)) as asked:
            for each in SEEDS:
                asked.ask(each)
            asked.finish()  # undisturbed
            for number in range(faults):
                while asked.going < AT_ONCE:
                    asked.ask(draws.choice(SEEDS))
                fault = draws.choice(FAULTS)
                told = fault(made, draws)
                tell(f"{number + 1}/{faults} {fault.__name__} {told}")
                time.sleep(draws.uniform(0, 2))
                made.supervise()
                asked.look()
            asked.finish()
        tell(f"{asked.ended} protections, each to the bytes of an undisturbed one")
        tell(f"steps were begun again because of {dict(asked.setbacks)}")
        _check_blobs(made)
        made.stack.stop_all()
        assert made.processes() == []


def _check_events(client: Client, shown: dict[str, Any]) -> Counter[str]:
    """No step's result was accepted twice, and every one was. Why steps were begun again."""
    done: Counter[tuple[str, int]] = Counter()
    setbacks: Counter[str] = Counter()
    after: int | None = 0
    while after is not None:
        page = client.show(f"/v1/protections/{shown['id']}/events?limit=200&after={after}")
        for event in page["items"]:
            if event["what"] == "step.done":
                done[event["data"]["kind"], event["data"]["index"]] += 1
            if event["what"] == "step.ready" and event["data"].get("error_code"):
                setbacks[event["data"]["error_code"]] += 1
        after = page["next_after"]
    assert done == {(step["kind"], step["index"]): 1 for step in shown["steps"]}
    return setbacks


def _check_blobs(made: World) -> None:
    """Every protection was deleted: not a file of one is left."""
    made.stack.kill("sweep")  # it collects when it starts, and then every few minutes
    made.supervise()
    deadline = time.monotonic() + COLLECT_SECONDS
    while (extra := _files(made)) and time.monotonic() < deadline:
        time.sleep(1)
    assert not extra


def _files(made: World) -> list[str]:
    folder = made.blobs / "protections"
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
