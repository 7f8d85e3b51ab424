"""Memory that batches free is there for the next; what was freed before them has gone."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64",
    reason="PyTorch takes its memory from another allocator",
)

PROGRAM = """
import resource, torch
from pathlib import Path
from sep_core.allocator import keep_for_the_next_batch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        # 128 MiB, all freed at once; some of it in blocks that are large for any threshold
        [torch.ones(size * 2**20) for size in (5, 5, 11, 11)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

torch.set_num_threads(1)
usual = faults()
keep_for_the_next_batch()
faults()
then = faults()
kept = resident_mib()
keep_for_the_next_batch()
print(usual, then, kept - resident_mib())
"""


def test_batches_find_memory_and_a_new_training_begins_without_it() -> None:
    # Or else glibc keeps by itself now and then, by where its heap happens to end.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    words = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    usual, then, given_back_mib = map(int, ran.stdout.split())
    assert then < usual / 20
    assert given_back_mib > 100
