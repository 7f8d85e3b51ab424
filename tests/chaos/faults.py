"""What goes wrong: each does harm, and leaves a world that can be mended by waiting.

A fault tells what it did, or gives None where it found nothing to do harm to.
"""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from api.models import Queue, Step, StepKind, StepState
from api.scheduling.moves import lease_name
from tests.acceptance.stack import pid_of
from tests.chaos.world import MAX_ATTEMPTS, World

Fault = Callable[[World, random.Random], str | None]
TAKEN_SECONDS = 90
READ = re.compile(r"/(?P<folder>checkpoints|shards|encoded)/(\d+/)?(?P<index>\d+)\.(pt|bin|npy)$")
READERS = {
    "checkpoints": StepKind.PERTURB,
    "shards": StepKind.ENCODE,
    "encoded": StepKind.PACKAGE,
}
DAMAGED_SHARE = 0.5
UNDONE = StepState.WAITING, StepState.READY, StepState.RUNNING


def child_killed(world: World, draws: random.Random) -> str | None:
    """The process that computes, unless its step would be blamed for it once too often."""
    running = [
        found for found in world.running() if found[1].attempt < _most_attempts(found[1], world)
    ]
    if not running:
        return None
    part, step = draws.choice(running)
    pid = pid_of(step.lease_owner or "")
    if not _stopped([pid], world, step):
        return None
    _signal([pid], signal.SIGKILL)
    return f"{part} at {_named(step)}"


def worker_killed(world: World, draws: random.Random) -> str | None:
    """With its child, in the middle of a step."""
    running = world.running()
    if not running:
        return None
    part, step = draws.choice(running)
    if not _stopped([world.stack.pid(part), *world.children(part)], world, step):
        return None
    return f"{_part_killed(part, world, draws)} at {_named(step)}"


def api_killed(world: World, draws: random.Random) -> str | None:
    """Whatever it is asked."""
    return _part_killed("api", world, draws)


def sweep_killed(world: World, draws: random.Random) -> str | None:
    """Whatever it is at."""
    return _part_killed("sweep", world, draws)


def worker_drained(world: World, draws: random.Random) -> str | None:
    """As an upgrade does, in the middle of a step."""
    running = world.running()
    if not running:
        return None
    part, step = draws.choice(running)
    world.stack.stop(part)
    return f"{part} at {_named(step)}"


def worker_stopped(world: World, _draws: random.Random) -> str | None:
    """It wakes up as soon as its step was given to another, which it does not know."""
    running = world.running()
    if not running:
        return None
    part, step = running[0]  # of the oldest protection: its turn comes next when it is ready again
    pids = [world.stack.pid(part), *world.children(part)]
    if not _stopped(pids, world, step):
        return None
    try:
        taker = _taker(world, step)
    finally:
        _signal(pids, signal.SIGCONT)
    if taker is None or step.lease_token is None:
        return None
    world.taken_leases.add(lease_name(step.lease_token))
    return f"{part} at {_named(step)}, which {taker} took"


def queue_flushed(world: World, _draws: random.Random) -> str | None:
    """All messages are gone, and what Celery keeps there besides."""
    with suppress(RedisError), world.messages() as queue:
        lying = len(_lying(queue))
        if lying and queue.flushall():
            return f"with {lying}"
    return None


def queue_killed(world: World, draws: random.Random) -> str:
    """It comes back with what lay there, or empty."""
    seconds, is_lost = draws.uniform(0, 2), draws.random() < 0.5
    world.redis.end(signal.SIGKILL)
    if is_lost:
        for kept in world.folder.glob("appendonly*"):  # a file, or since Redis 7 a folder of them
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    time.sleep(seconds)
    world.redis.start()
    return f"for {seconds:.1f} s, and came back {'empty' if is_lost else 'as it was'}"


def messages_doubled(world: World, draws: random.Random) -> str | None:
    """Every message that lies there, and one of a step that is over."""
    doubled = 0
    with suppress(RedisError), world.messages() as queue:
        for name, message in _lying(queue):
            queue.lpush(name, *[message] * draws.randint(1, 3))
            doubled += 1
    over = world.steps(StepState.DONE)
    if not doubled or not over:
        return None
    step = draws.choice(over)
    world.knock(step)
    return f"{doubled}, and one of {_named(step)}, which is over"


def messages_dropped(world: World, _draws: random.Random) -> str | None:
    """Every message that lies there."""
    with suppress(RedisError), world.messages() as queue:
        lying = len(_lying(queue))
        if lying and queue.delete(*Queue):
            return str(lying)
    return None


def database_restarted(world: World, draws: random.Random) -> str:
    """By a kill of all its processes, or in order."""
    assert world.postgres is not None
    how = draws.choice((signal.SIGQUIT, signal.SIGINT))
    world.postgres.end(how)
    time.sleep(draws.uniform(0, 3))
    world.postgres.start()
    return how.name


def disk_filled(world: World, draws: random.Random) -> str | None:
    """To the last byte, for a while."""
    assert world.has_disk
    filler = world.blobs / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    is_full = shutil.disk_usage(world.blobs).free == 0
    seconds = draws.uniform(1, 4)
    time.sleep(seconds)
    filler.unlink()
    return f"for {seconds:.1f} s" if is_full else None


def blob_lost(world: World, draws: random.Random) -> str | None:
    """Or damaged: what a step has stored and another is still to read; once in a protection."""
    blobs = [path for path in world.blobs.rglob("*") if _is_to_be_read(path, world)]
    if not blobs:
        return None
    path = draws.choice(sorted(blobs))
    damaged = draws.random() < DAMAGED_SHARE
    try:
        _damage(path) if damaged else path.unlink()
    except FileNotFoundError:  # it was read meanwhile
        return None
    world.robbed.add(_protection_of(path, world))
    return f"{'/'.join(path.parts[-3:])} {'damaged' if damaged else 'lost'}"


def _is_to_be_read(path: Path, world: World) -> bool:
    """By a step that has not begun, of a protection that was not harmed so before.

    What it is to be of depends on the protection: else it would always be what is stored first.
    """
    found = READ.search(str(path))
    if found is None or _protection_of(path, world) in world.robbed:
        return False
    if found["folder"] != list(READERS)[_protection_of(path, world).int % len(READERS)]:
        return False
    kind, index = READERS[found["folder"]], int(found["index"])
    steps = [
        step
        for state in UNDONE
        for step in world.steps(state)
        if step.protection_id == _protection_of(path, world)
    ]
    readers = [
        step.state is not StepState.RUNNING
        for step in steps
        if step.kind is kind and (kind is not StepKind.ENCODE or step.index == index)
    ]
    return bool(readers) and all(readers) and all(_may_be_blamed(step, world) for step in steps)


def _protection_of(path: Path, world: World) -> UUID:
    return UUID(path.relative_to(world.blobs).parts[1])


def _damage(path: Path) -> None:
    """Not in place: who has mapped it or has read half of it has what was there."""
    content, other = path.read_bytes(), path.with_name("damaged")
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    other.rename(path)


def _may_be_blamed(step: Step, world: World) -> bool:
    """Whether it may have one more attempt for nothing, and after that another."""
    begun = step.attempt + (step.state is not StepState.RUNNING)
    return begun < _most_attempts(step, world)


def _most_attempts(step: Step, world: World) -> int:
    """Of which one more may come to nothing; one is left to what its protection has lost."""
    return MAX_ATTEMPTS - (step.protection_id in world.robbed)


FAULTS: tuple[Fault, ...] = (
    child_killed,
    worker_killed,
    api_killed,
    sweep_killed,
    worker_drained,
    worker_stopped,
    queue_flushed,
    queue_killed,
    messages_doubled,
    messages_dropped,
    database_restarted,
    disk_filled,
    blob_lost,
)


def possible(world: World) -> list[Fault]:
    """Those that there can be here: a file is no server, and not everybody may mount a disk."""
    absent: list[Fault] = []
    absent += [database_restarted] if world.postgres is None else []
    absent += [] if world.has_disk else [disk_filled]
    return [fault for fault in FAULTS if fault not in absent]


def _part_killed(part: str, world: World, draws: random.Random) -> str | None:
    """It is started again a little later."""
    if world.stack.has_ended(part):
        return None
    world.stack.kill(part)
    time.sleep(draws.uniform(0, 1))
    return part


def _stopped(pids: list[int], world: World, step: Step) -> bool:
    """Stop processes; they go on at once if the step is theirs no more."""
    _signal(pids, signal.SIGSTOP)
    if world.holds(step):
        return True
    _signal(pids, signal.SIGCONT)
    return False


def _taker(world: World, step: Step) -> str | None:
    """Who was given the step of a process that is stopped; None if nobody is for a long time."""
    deadline = time.monotonic() + TAKEN_SECONDS
    while time.monotonic() < deadline:
        found = world.step(step.id)
        if found is not None and found.lease_token not in {step.lease_token, None}:
            return found.lease_owner
        time.sleep(0.05)
    return None


def _lying(queue: Redis) -> list[tuple[Queue, bytes | str]]:
    return [(name, message) for name in Queue for message in queue.lrange(name, 0, -1)]


def _named(step: Step) -> str:
    return f"{step.kind} {step.index}"


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
