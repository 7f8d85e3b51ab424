"""Memory that batches free is there for the next, until it is given back."""

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
from sep_core.allocator import give_back, keep_for_the_next_batch

def faults(sizes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(size * 2**18) for size in sizes]  # MiB, all freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

torch.set_num_threads(1)
sizes = {sizes}
usual = faults(sizes)
keep_for_the_next_batch()
faults(sizes)
then = faults(sizes)
kept = resident_mib()
give_back()
print(usual, then, kept - resident_mib())
"""


@pytest.mark.parametrize(
    "sizes",
    [
        [20, 20, 20, 20],
        [20, 44, 44],  # above the largest threshold that is promised
    ],
)
def test_batches_find_memory_and_what_is_given_back_has_gone(sizes: list[int]) -> None:
    # Or else glibc keeps by itself now and then, by where its heap happens to end.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    words = [sys.executable, "-c", PROGRAM.replace("{sizes}", str(sizes))]
    ran = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    usual, then, given_back_mib = map(int, ran.stdout.split())
    assert then < usual / 20
    assert given_back_mib > 0.8 * sum(sizes)
