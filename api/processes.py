"""Child processes: started, started again when they die, stopped, and never left behind."""

import ctypes
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1


def die_with_parent(number: int, parent: int) -> None:
    """Have Linux send this process a signal as soon as its parent, that process, has ended.

    Nothing happens in that process itself: a worker that forks no children calls this all the same.
    """
    if os.getpid() == parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before we could ask
        os.kill(os.getpid(), number)


@dataclass
class Part:
    """One child process; without a log it writes where its parent does.

    Attributes:
        answers: whether it works; one that was not started here is adopted for as long as it does.
        lock: a file that is locked for as long as the process lives, or a child of its; where
            another has it none is started.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    answers: Callable[[], bool] = lambda: False
    lock: Path | None = None
    process: "subprocess.Popen[bytes] | None" = None
    restarts: int = 0

    def start(self) -> None:
        """Start it unless it works already, its output going to its log."""
        if self.answers():
            return
        with ExitStack() as files:
            log = files.enter_context(self.log.open("ab")) if self.log is not None else None
            lock = files.enter_context(self.lock.open("ab")) if self.lock is not None else None
            if lock is not None and not _is_locked(lock):
                return
            self.process = subprocess.Popen(  # noqa: S603  our own commands
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                pass_fds=[lock.fileno()] if lock else [],
                start_new_session=True,  # Ctrl-C is for us: we stop them in order
                preexec_fn=partial(die_with_parent, signal.SIGTERM, os.getpid()),  # noqa: PLW1509  we start no threads
            )

    def ended(self) -> bool:
        """Whether it is not running, and does not work all the same."""
        return (self.process is None or self.process.poll() is not None) and not self.answers()

    def restart_if_ended(self) -> None:
        """Start it again, the later the oftener that was needed."""
        if not self.ended():
            return
        self.restarts += 1
        where = f" ({self.log})" if self.log else ""
        print(f"{self.name} ended; it is started again{where}", flush=True)
        time.sleep(min(self.restarts, 10))
        self.start()


def _is_locked(file: IO[bytes]) -> bool:
    """By us from now on, for as long as a process has it open; False where it is by another."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def watch(parts: Sequence[Part]) -> None:
    """Start what has not been started, and again what dies, until SIGINT or SIGTERM.

    SIGINT too is asked for: a shell has its background jobs ignore it, and they inherit that.
    """
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        for part in parts:
            if part.process is None:
                part.start()
        while True:
            time.sleep(1)
            for part in parts:
                part.restart_if_ended()
    except KeyboardInterrupt:
        return


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def stop(processes: Sequence["subprocess.Popen[bytes]"], seconds: float) -> None:
    """SIGTERM, some time to give steps back, then SIGKILL."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
