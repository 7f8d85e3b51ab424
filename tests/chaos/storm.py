"""Faults at random while protections run, and what must hold when it is over."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx2

from tests import pictures
from tests.acceptance.stack import SMALL_JOB
from tests.chaos.faults import FAULTS
from tests.chaos.world import World, world

T = TypeVar("T")

AT_ONCE = 3
SEEDS = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")
PATIENCE_SECONDS = 600
COLLECT_SECONDS = 60
KEPT = {"archive.zip", "before-after.png", "record.json", "worst.png", "checkpoints"}


class Client:
    """Who asks again until it is heard, by keys that make asking twice harmless."""

    def __init__(self, made: World) -> None:
        key = made.stack.authorisation
        self._http = httpx2.Client(
            base_url=made.stack.url, timeout=10, headers={"Authorization": key}
        )

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

    def _patiently(self, method: str, path: str, **more: Any) -> httpx2.Response:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, **more)
            except httpx2.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500:
                assert answer.is_success, f"{method} {path}: {answer.text}"
                return answer
            assert time.monotonic() < deadline, f"{method} {path}: no answer"
            time.sleep(0.2)


def storm(folder: Path, database: str, faults: int, seed: int, tell: Callable[[str], None]) -> None:
    """Do harm so many times, let all protections end, and check what is left.

    Raises:
        AssertionError: something was lost, accepted twice, changed or left behind.
    """
    draws = random.Random(seed)
    with world(folder, database) as made:
        client = Client(made)
        dataset_id = made.stack.upload(pictures.zipped(pictures.class_folders(60, 12)))
        assert made.stack.finish(f"/v1/datasets/{dataset_id}")["state"] == "ready"
        asked = {client.ask(dataset_id, seed): seed for seed in SEEDS}
        whole = {
            asked[undisturbed]: client.content(f"/v1/protections/{undisturbed}/archive")
            for undisturbed in _ended(made, client, list(asked))
        }
        for number in range(faults):
            running = [i for i in asked if not client.show(f"/v1/protections/{i}")["done"]]
            for _ in range(AT_ONCE - len(running)):
                chosen = draws.choice(SEEDS)
                asked[client.ask(dataset_id, chosen)] = chosen
            fault = draws.choice(FAULTS)
            told = fault(made, draws)
            tell(f"{number + 1}/{faults} {fault.__name__} {told}")
            time.sleep(draws.uniform(0, 2))
            made.supervise()
        setbacks: Counter[str] = Counter()
        for protection_id in _ended(made, client, list(asked)):
            found = client.content(f"/v1/protections/{protection_id}/archive")
            assert found == whole[asked[protection_id]], f"{protection_id} has other bytes"
            setbacks += _check_events(client, protection_id)
        tell(f"{len(asked)} protections, each to the bytes of an undisturbed one")
        tell(f"steps were begun again because of {dict(setbacks)}")
        _check_blobs(made, list(asked))
        made.stack.stop_all()
        assert made.processes() == []


def _ended(made: World, client: Client, asked: list[str]) -> Iterator[str]:
    """Each when it has succeeded."""
    for protection_id in asked:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (shown := client.show(f"/v1/protections/{protection_id}"))["done"]:
            assert time.monotonic() < deadline, f"{protection_id} does not end: {shown}"
            made.supervise()
            time.sleep(0.3)
        assert shown["state"] == "succeeded", f"{protection_id}: {shown['error']}"
        yield protection_id


def _check_events(client: Client, protection_id: str) -> Counter[str]:
    """No step's result was accepted twice, and every one was. Why steps were begun again."""
    shown = client.show(f"/v1/protections/{protection_id}")
    done: Counter[tuple[str, int]] = Counter()
    setbacks: Counter[str] = Counter()
    after: int | None = 0
    while after is not None:
        page = client.show(f"/v1/protections/{protection_id}/events?limit=200&after={after}")
        for event in page["items"]:
            if event["what"] == "step.done":
                done[event["data"]["kind"], event["data"]["index"]] += 1
            if event["what"] == "step.ready" and event["data"].get("error_code"):
                setbacks[event["data"]["error_code"]] += 1
        after = page["next_after"]
    assert done == {(step["kind"], step["index"]): 1 for step in shown["steps"]}
    return setbacks


def _check_blobs(made: World, asked: list[str]) -> None:
    """Of each protection what it keeps, and not a file of anything else."""
    made.stack.kill("sweep")  # it collects when it starts, and then every few minutes
    made.supervise()
    deadline = time.monotonic() + COLLECT_SECONDS
    while (extra := _extra(made, asked)) and time.monotonic() < deadline:
        time.sleep(1)
    assert not extra


def _extra(made: World, asked: list[str]) -> list[str]:
    folder = made.blobs / "protections"
    files = [path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()]
    return ["/".join(parts) for parts in files if parts[0] not in asked or parts[1] not in KEPT]
