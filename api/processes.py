"""What the launcher asks of its parts, and a worker of its children."""

import ctypes

PR_SET_PDEATHSIG = 1


def die_with_parent(number: int) -> None:
    """Have Linux send this process a signal as soon as its parent has ended."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
