"""What goes wrong: each does harm, and leaves a world that can be mended by waiting."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from redis.exceptions import RedisError

from tests.chaos.world import QUEUES, WORKERS, World

Fault = Callable[[World, random.Random], str]


def child_killed(world: World, draws: random.Random) -> str:
    """The process that computes."""
    part = draws.choice(WORKERS)
    for pid in world.children(part):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return part


def part_killed(world: World, draws: random.Random) -> str:
    """A worker with its child, the API or the sweep; it is started again a little later."""
    part = draws.choice((*WORKERS, "api", "sweep"))
    world.stack.kill(part)
    time.sleep(draws.uniform(0, 1))
    return part


def worker_drained(world: World, draws: random.Random) -> str:
    """As an upgrade does."""
    part = draws.choice(WORKERS)
    world.stack.stop(part)
    return part


def worker_stopped(world: World, draws: random.Random) -> str:
    """It wakes up after its lease was given to another, which it does not know."""
    part = draws.choice(WORKERS)
    pids = [world.stack.pid(part), *world.children(part)]
    seconds = float(world.environment["SEPGATE_LEASE_SECONDS"]) + draws.uniform(1, 3)
    _signal(pids, signal.SIGSTOP)

    def wake() -> None:
        time.sleep(seconds)
        _signal(pids, signal.SIGCONT)

    Thread(target=wake).start()
    return f"{part} for {seconds:.1f} s"


def queue_flushed(world: World, _draws: random.Random) -> str:
    """All messages are gone, and what Celery keeps there besides."""
    with suppress(RedisError), world.messages() as queue:
        queue.flushall()
    return ""


def queue_killed(world: World, draws: random.Random) -> str:
    """It comes back empty."""
    world.redis.end(signal.SIGKILL)
    time.sleep(draws.uniform(0, 2))
    world.redis.start()
    return ""


def messages_doubled(world: World, draws: random.Random) -> str:
    """Every message that lies there, and one of a step that is over."""
    doubled = 0
    with suppress(RedisError), world.messages() as queue:
        for name in QUEUES:
            for message in queue.lrange(name, 0, -1):
                queue.lpush(name, *[message] * draws.randint(1, 3))
                doubled += 1
    return str(doubled)


def messages_dropped(world: World, _draws: random.Random) -> str:
    """Every message that lies there."""
    with suppress(RedisError), world.messages() as queue:
        return str(sum(queue.delete(name) for name in QUEUES))
    return ""


def database_restarted(world: World, draws: random.Random) -> str:
    """By a kill of all its processes, or in order."""
    if world.postgres is None:
        return "not here: a file"
    how = draws.choice((signal.SIGQUIT, signal.SIGINT))
    world.postgres.end(how)
    time.sleep(draws.uniform(0, 3))
    world.postgres.start()
    return how.name


def disk_filled(world: World, draws: random.Random) -> str:
    """To the last byte, for a while."""
    if not world.has_disk:
        return "not here: no right to mount"
    filler = world.blobs / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    time.sleep(draws.uniform(1, 4))
    filler.unlink()
    return ""


FAULTS: tuple[Fault, ...] = (
    child_killed,
    part_killed,
    worker_drained,
    worker_stopped,
    queue_flushed,
    queue_killed,
    messages_doubled,
    messages_dropped,
    database_restarted,
    disk_filled,
)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
