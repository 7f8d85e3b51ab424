"""A file of pretrained weights, for networks and sizes that nobody publishes them for.

    python -m benchmarks.pretrain --data ZIP --network small --out FOLDER [--half choose]

ZIP holds `split/class/file`, all images of one size: other images than those that a protection is
judged on. Writes FOLDER/NETWORK.pt, which the service and `benchmarks.strength --weights` read.
Figures come last, one a line, `name: value unit`.
"""

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from benchmarks.data import HALVES, Data, read
from sep_core.arithmetic import prepare
from sep_core.config import NetworkName, Plan, resolve
from sep_core.evaluation import predictions
from sep_core.networks import Network
from sep_core.presets import QUICK, at_side
from sep_core.training import Epoch, Recipe, fit


def main() -> int:
    """Train and write."""
    options = _options()
    plan = Plan(device=options.device, precision=options.precision, threads=options.threads)
    prepare(plan)
    data = read(options.data, options.half)
    network, accuracy = train(data, options.network, options.epochs, options.seed, plan)
    path = options.out / f"{options.network}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, path)
    print(f"SHA-256 of {path}: {hashlib.sha256(path.read_bytes()).hexdigest()}")
    print(f"test accuracy: {accuracy:.4g} 1")
    return 0


def train(
    data: Data, name: NetworkName, epochs: int, seed: int, plan: Plan
) -> tuple[Network, float]:
    """The network after its last epoch, by the recipe of `quick`, and its share of test images.

    Raises:
        ValueError: as `fit`.
    """
    asked = replace(at_side(QUICK, data.train[0].shape[-1]), seed=f"{seed:032x}")
    recipe = Recipe(name, epochs, "pretraining")
    config = resolve(asked, data.classes)
    *_, end = fit(*data.train, data.classes, recipe, config=config, plan=plan)
    assert isinstance(end, Epoch)
    found = torch.cat(list(predictions(end.network, data.test[0], plan)))
    return end.network, (found == data.test[1]).double().mean().item()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="zip of split/class/file")
    parser.add_argument("--network", choices=get_args(NetworkName), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--half", choices=HALVES, default="whole", help="of the images a class")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
