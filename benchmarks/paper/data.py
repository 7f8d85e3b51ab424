"""CIFAR-10 in the forms that it comes in, without unpickling; Pillow for the zip alone."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from benchmarks import data
from benchmarks.data import Data, Split

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # of the binary version: a label, then three planes
BATCHES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)]}
BATCHES["test"] = ["test_batch.bin"]


def read(path: Path) -> Data:
    """The data set at `path`.

    - a folder with the files of the official binary version, or `cifar-10-binary.tar.gz` itself;
    - a zip of `split/class/file`, splits `train` and `test`;
    - a `.npz` with `train_pixels`, `train_labels`, `test_pixels`, `test_labels`: uint8
      (n, 3, s, s) and whole numbers (n). `write` makes one.

    The order of the images, and with it every draw, is that of the form.

    Raises:
        ValueError: none of these, or images of more than one size.
    """
    if path.suffix == ".zip":
        return data.read(path)
    if path.suffix == ".npz":
        parts = _read_arrays(path)
    elif path.is_dir() or path.name.endswith((".tar.gz", ".tgz", ".tar")):
        parts = _read_binary(path)
    else:
        raise ValueError(f"data: expected a folder, .tar.gz, .zip or .npz, got {path}")
    train, test = parts["train"], parts["test"]
    return Data(train, test, int(torch.cat([train[1], test[1]]).max()) + 1)


def write(images: Data, path: Path) -> None:
    """As a `.npz`, which is read in a second."""
    np.savez(
        path,
        train_pixels=images.train[0].numpy(),
        train_labels=images.train[1].numpy(),
        test_pixels=images.test[0].numpy(),
        test_labels=images.test[1].numpy(),
    )


def _read_arrays(path: Path) -> dict[str, Split]:
    with np.load(path, allow_pickle=False) as arrays:
        return {
            split: (
                torch.from_numpy(arrays[f"{split}_pixels"]),
                torch.from_numpy(arrays[f"{split}_labels"]).long(),
            )
            for split in BATCHES
        }


def _read_binary(path: Path) -> dict[str, Split]:
    files = dict(_members(path))
    missing = {name for names in BATCHES.values() for name in names} - set(files)
    if missing:
        raise ValueError(f"data: expected CIFAR-10's binary version, {sorted(missing)} missing")
    return {
        split: _records(b"".join(files[name] for name in names)) for split, names in BATCHES.items()
    }


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name, without folders, and content of every `.bin` file."""
    if path.is_dir():
        yield from ((file.name, file.read_bytes()) for file in path.rglob("*.bin"))
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content and member.name.endswith(".bin"):
                yield PurePosixPath(member.name).name, content.read()


def _records(content: bytes) -> Split:
    if len(content) % RECORD:
        raise ValueError(f"data: expected records of {RECORD} bytes, got {len(content)} bytes")
    records = torch.from_numpy(np.frombuffer(content, np.uint8).copy()).view(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE).clone(), records[:, 0].long()
