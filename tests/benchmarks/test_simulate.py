"""The simulation on few GPUs: the work that it does is the work that there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPUS, IMAGES, GFLOPS = 4, 5000, 60_000
WORDS = ["--gpus", f"{GPUS}", "--images", f"{IMAGES}", "--cpu-workers", "1", "--seeds", "1"]
WORDS += ["--mixed", "2", "--loss-hours", "1", "--training-gflops", f"{GFLOPS}", "--min-busy", "0"]
# ResNet-18 at 224 pixels, three passes an image and epoch, 120 epochs: the paper's surrogate.
TRAINING_HOURS = 3 * 0.0740 * 49 * 120 * IMAGES / GFLOPS / 3600


def test_gpus_take_their_time_and_do_no_more_than_they_can(tmp_path: Path) -> None:
    record = tmp_path / "simulation.json"
    command = [sys.executable, "-m", "benchmarks.simulate", *WORDS, "--record", str(record)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("SEPGATE_")}
    subprocess.run(command, check=True, timeout=300, env=own)
    figures = {
        name: value for name, (value, _) in json.loads(record.read_text())["figures"].items()
    }
    assert figures["train takes"] == pytest.approx(TRAINING_HOURS, rel=0.2)
    assert figures["evaluate takes"] > 2 * TRAINING_HOURS
    for name in ("busy in perturb", "busy from perturb to evaluate of one", "whole protection"):
        assert 0.3 < figures[name] <= 1
    assert 0.3 < figures["busy over 2 mixed"] <= 1
    assert figures["lost workers"] + figures["lost workers, mixed"] > 0
    assert figures["a claim takes"] > 0
