"""The C library's allocator: a training's time on a CPU depends on its habits, the more the larger
the images are."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MOST_KEPT_BYTES = 2**31 - 1
"""At the heap's end: so that what is idle does not hold all that the largest training took."""


def keep_for_the_next_batch() -> None:
    """What is freed from now on stays for reuse, until `give_back`; what was freed so far goes.

    glibc gives large blocks back at once by default, and the system clears them anew page by page
    for the next batch. Of the main thread's blocks, where trainings run, none is the system's own
    from now on, whatever its size: a threshold above 32 MiB is not promised by `mallopt(3)`. With
    another C library nothing changes.
    """
    give_back()
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES)


def give_back() -> None:
    """What was freed goes back to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
