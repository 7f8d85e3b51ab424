"""A child that its parent leaves behind."""

import subprocess
import sys
from textwrap import dedent

# The child waits until its parent is gone, and only then asks: too late for Linux to tell it.
ORPHAN = """
    import os, signal, sys, time
    from api.processes import die_with_parent

    parent = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == parent:
        time.sleep(0.01)
    print("alone", flush=True)
    die_with_parent(signal.SIGKILL, parent)
    print("alive", flush=True)
"""
# As Celery's `--pool=solo` does, whose only process is the one that imported the tasks.
ITSELF = """
    import os, signal
    from api.processes import die_with_parent

    die_with_parent(signal.SIGKILL, os.getpid())
    print("alive", flush=True)
"""


def said(program: str) -> str:
    """All that the program and its children said; it ends with the last of them."""
    words = [sys.executable, "-c", dedent(program)]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, timeout=60).stdout


def test_a_child_whose_parent_is_gone_already_ends() -> None:
    assert said(ORPHAN) == "alone\n"


def test_a_process_that_has_no_such_parent_lives() -> None:
    assert said(ITSELF) == "alive\n"
