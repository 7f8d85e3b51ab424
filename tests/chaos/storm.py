"""Faults at random while protections run, and what must hold when it is over."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice

from tests import pictures
from tests.chaos import history, store
from tests.chaos.client import PATIENCE_SECONDS, Client
from tests.chaos.faults import Fault, worker_stopped
from tests.chaos.faults import possible as faults_of
from tests.chaos.world import World, world

AT_ONCE = 3
SEEDS = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210")
FAULT_SECONDS = 30
"""For a fault to find something to do harm to, before another takes its place."""
KINDS_IN_VAIN = 5


class Asked:
    """Protections that were asked for, and are checked when they have ended.

    Each is deleted when the next has ended, so that there always is one to be kept.
    """

    def __init__(self, made: World) -> None:
        self._made = made
        self.client = Client(made)
        self._dataset = made.stack.upload(pictures.zipped(pictures.class_folders(60, 12)))
        assert made.stack.finish(f"/v1/datasets/{self._dataset}")["state"] == "ready"
        self._going: dict[str, str] = {}
        self._whole: dict[str, bytes] = {}
        self._kept: str | None = None
        self.ended = 0
        self.setbacks: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.lost_leases: set[str] = set()

    def ask(self, seed: str) -> None:
        """One more."""
        self._going[self.client.ask(self._dataset, seed)] = seed

    def tend(self, draws: random.Random) -> None:
        """Start again what was killed, look at what has ended, and ask for others instead."""
        self._made.supervise()
        self.look()
        while len(self._going) < AT_ONCE:
            self.ask(draws.choice(SEEDS))

    def look(self) -> None:
        """Check what has ended. The first of each seed is what the others must equal."""
        for protection_id, seed in list(self._going.items()):
            shown = self.client.show(f"/v1/protections/{protection_id}")
            if not shown["done"]:
                continue
            assert shown["state"] == "succeeded", f"{protection_id}: {shown['error']}"
            found = self.client.content(f"/v1/protections/{protection_id}/archive")
            assert found == self._whole.setdefault(seed, found), f"{protection_id}: other bytes"
            told = history.told(self.client.events(protection_id))
            assert told.done == {(step["kind"], step["index"]): 1 for step in shown["steps"]}
            self.setbacks += told.setbacks
            self.accepted += Counter(kind for kind, _ in told.done)
            self.lost_leases |= told.lost
            self.forget()
            self._kept = protection_id
            del self._going[protection_id]
            self.ended += 1

    def forget(self) -> None:
        """Delete the one that is kept."""
        if self._kept is not None:
            self.client.delete(f"/v1/protections/{self._kept}")
        self._kept = None

    def forget_all(self) -> None:
        """The data set, too."""
        self.forget()
        self.client.delete(f"/v1/datasets/{self._dataset}")

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


def storm(
    database: str, faults: int, seed: int, tell: Callable[[str], None], only: str = ""
) -> None:
    """Do harm so many times, let all protections end, and check what is left.

    Args:
        only: the name of a fault, if there is to be no other.

    Raises:
        AssertionError: something was lost, accepted twice, changed or left behind.
    """
    draws = random.Random(seed)
    with world(database) as made, closing(Asked(made)) as asked:
        for each in SEEDS:
            asked.ask(each)
        asked.finish()
        tell("undisturbed ones ended")
        possible = [kind for kind in faults_of(made) if only in {"", kind.__name__}]
        kinds = _cycle(possible, random.Random(seed))
        done: Counter[Fault] = Counter()
        for number in range(faults):
            fault, told = _harm(made, asked, draws, kinds)
            tell(f"{number + 1}/{faults} {fault.__name__} {told}")
            done[fault] += 1
            time.sleep(draws.uniform(0, 2))
        store.check(made)
        asked.finish()
        tell(f"by kind: {', '.join(f'{kind.__name__} {done[kind]}' for kind in possible)}")
        tell(f"{asked.ended} protections, each to the bytes of an undisturbed one")
        tell(f"steps accepted once each: {dict(asked.accepted)}")
        tell(f"steps were begun again because of {dict(asked.setbacks)}")
        taken = made.taken_leases & asked.lost_leases
        tell(f"{len(taken)} leases changed hands while those who had held them lived on")
        assert len(taken) == done[worker_stopped]
        store.check(made)
        asked.forget_all()
        store.check(made)
        made.stack.stop_all()
        assert made.processes() == []
        tell("no result accepted twice, no blob without a row, no process left")


def _cycle(kinds: Sequence[Fault], draws: random.Random) -> Iterator[Fault]:
    """All of them in some order, then in another, and so on."""
    while True:
        yield from draws.sample(kinds, len(kinds))


def _harm(
    made: World, asked: Asked, draws: random.Random, kinds: Iterator[Fault]
) -> tuple[Fault, str]:
    """The next fault that finds something to do harm to, and what it did."""
    for fault in islice(kinds, KINDS_IN_VAIN):
        deadline = time.monotonic() + FAULT_SECONDS
        while time.monotonic() < deadline:
            asked.tend(draws)
            told = fault(made, draws)
            if told is not None:
                return fault, told
            time.sleep(0.2)
    raise AssertionError("expected something to do harm to, found nothing")
