"""The C library's allocator: a training's time on a CPU depends on its habits, the more the larger
the images are."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MOST_KEPT_BYTES = 2**31 - 1
"""The most that `mallopt(3)` takes."""


def keep_for_the_next_batch() -> None:
    """What was freed so far goes back to the system; what is freed from now on stays for reuse,
    until the next training or the end of the process.

    glibc gives large blocks back at once by default, and the system clears them anew page by page
    for the next batch. With another C library nothing changes.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        # No block is the system's own, whatever its size: above 32 MiB no threshold would help.
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES)
