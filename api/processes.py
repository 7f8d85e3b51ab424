"""What the launcher asks of its parts, and a worker of its children."""

import ctypes
import os

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
