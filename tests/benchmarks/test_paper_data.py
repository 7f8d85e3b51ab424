"""What the run of the paper reads."""

import io
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks.paper.data import read
from tests import pictures


def binary(pixels: torch.Tensor, labels: torch.Tensor) -> bytes:
    """The official binary version: a label, then red, green and blue, row by row."""
    rows = [bytes([label]) + p.numpy().tobytes() for p, label in zip(pixels, labels, strict=True)]
    return b"".join(rows)


def test_reads_the_binary_version_as_archive_and_as_folder(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (12, 3, 32, 32), generator=draws, dtype=torch.uint8)
    labels = torch.arange(12) % 10
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for number, name in enumerate(names):
            part = slice(2 * number, 2 * number + 2)
            content = binary(pixels[part], labels[part])
            (folder / name).write_bytes(content)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for path in (folder, tmp_path / "cifar-10-binary.tar.gz"):
        data = read(path)
        assert torch.equal(data.train[0], pixels[:10])
        assert torch.equal(data.test[0], pixels[10:])
        assert data.train[1].tolist() == list(range(10))
        assert data.test[1].tolist() == [0, 1]
        assert data.classes == 10
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"\['data_batch_3.bin'\] missing"):
        read(folder)


def test_classes_are_the_same_in_both_splits(tmp_path: Path) -> None:
    files = pictures.class_folders(2, 1)
    first = min(files).split("/")[1]
    path = tmp_path / "toy.zip"
    path.write_bytes(
        pictures.zipped({n: c for n, c in files.items() if not n.startswith(f"test/{first}/")})
    )
    data = read(path)
    assert data.train[1].tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test[1].tolist() == [1, 2]


def test_refuses_what_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data: expected a folder"):
        read(tmp_path / "data.pickle")
