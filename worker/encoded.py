"""What `encode` leaves: files of images one after the other, and beside them what they are."""

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import file_digest, sha256
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from api import storage
from api.archive import ImageRecord, Numbers, Rows
from api.errors import AppError
from worker.data import Job, check_digest, encoded_key, table_key
from worker.metrics import Change

_TOLD = [("sha256", "V32"), ("size_bytes", "<u8"), ("changed_share", "<f8"), ("ssim", "<f8")]
# Whose row it is, and how long its histogram.
_PART = np.dtype([*_TOLD, ("image", "V32"), ("counts", "<u2")])
# In which part a file lies, and from where on; and where its histogram begins and ends among all.
_PLACED = np.dtype([*_TOLD, *((name, "<u8") for name in ("part", "start", "first", "end"))])
_COUNT = np.dtype("<u4")
_TOGETHER = 1024
"""Images of which a table holds what is known in memory, and of which one is read at once."""


class Table:
    """Of the images of a part, in their order: size and digest of the file, and the change.

    Written as `Encoded` reads it: pairs of arrays in NumPy's format, each of some of the images.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Knows nothing yet."""
        self._file, self._written = file, 0
        self._rows: list[tuple[object, ...]] = []
        self._counts: list[int] = []

    def __len__(self) -> int:
        return self._written + len(self._rows)

    def append(self, record: ImageRecord, data: bytes, change: Change) -> None:
        """The next one."""
        self._counts += change.histogram
        digest = sha256(data).digest()
        told = digest, len(data), change.changed_share, change.ssim
        self._rows.append((*told, _image(record), len(change.histogram)))
        if len(self._rows) == _TOGETHER:
            self.write()

    def write(self) -> None:
        """What is not in the file yet; to be called at the end, too."""
        self._written += len(self._rows)
        for values, dtype in ((self._rows, _PART), (self._counts, _COUNT)):
            # Not to the file itself: NumPy's error does not say that the disk is full.
            with io.BytesIO() as array:
                np.save(array, np.array(values, dtype), allow_pickle=False)
                self._file.write(array.getbuffer())
        self._rows, self._counts = [], []


class Encoded:
    """Every image of a protection, by its index. What is known of them lies in a temporary file."""

    def __init__(self, job: Job) -> None:
        """Knows nothing yet: see `read_tables`."""
        self._job = job
        with tempfile.TemporaryFile() as file:
            # With all its blocks: where one is missing as it is written to, the process is killed.
            os.posix_fallocate(file.fileno(), 0, len(job.records) * _PLACED.itemsize)
            self._rows = np.memmap(file, _PLACED, "r+", shape=(len(job.records),))
        self._counts = Rows(_COUNT)

    def read_tables(self, outputs: Sequence[Any]) -> Iterator[None]:
        """By what the `encode` steps have found; yields after each part.

        Raises:
            AppError: BLOB_CHANGED, a table is not what was stored, or is not of these images.
        """
        if len(outputs) != len(self._job.parts):
            raise self._of_others(f"{len(self._job.parts)} parts", f"{len(outputs)}")
        for part, found in enumerate(outputs):
            key = table_key(self._job.protection_id, self._job.plan, part)
            with storage.copied(key) as file:
                digest = file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # any binary file
                check_digest(key, digest, found["table_sha256"])
                self._add(part, file)
            yield

    def _add(self, part: int, file: IO[bytes]) -> None:
        left, start = self._job.parts[part], 0
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        expected = f"part {part} of its {len(left)} images"
        while file.tell() < end:
            rows, counts = (np.load(file, allow_pickle=False) for _ in range(2))
            indices, left = left[: len(rows)], left[len(rows) :]
            if len(rows) != len(indices) or not all(
                row.tobytes() == _image(self._job.records[index])
                for row, index in zip(rows["image"], indices, strict=True)
            ):
                raise self._of_others(expected, "one of others")
            placed = np.zeros(len(rows), _PLACED)
            for name, _ in _TOLD:
                placed[name] = rows[name]
            placed["part"] = part
            placed["start"] = start + np.cumsum(rows["size_bytes"]) - rows["size_bytes"]
            start += int(rows["size_bytes"].sum())
            placed["end"] = len(self._counts) + np.cumsum(rows["counts"], dtype=np.uint64)
            placed["first"] = placed["end"] - rows["counts"]
            self._rows[indices] = placed
            self._counts.extend(counts)
        if len(left):
            raise self._of_others(expected, f"one without {len(left)} of them")

    def _of_others(self, expected: str, got: str) -> AppError:
        """A version that cuts the images otherwise took over meanwhile, say."""
        return AppError(
            500,
            "BLOB_CHANGED",
            f"Protection {self._job.protection_id}: expected {expected} as encoded, got {got}. "
            "Ask for a new protection.",
        )

    def sha256(self, index: int) -> str:
        """Of an image's file, in hexadecimal digits."""
        digest: bytes = self._rows[index]["sha256"].tobytes()
        return digest.hex()

    def change(self, index: int) -> Change:
        """Of an image."""
        row = self._rows[index]
        counts = self._taken[row["first"].item() : row["end"].item()]
        return Change(tuple(counts.tolist()), row["changed_share"].item(), row["ssim"].item())

    @cached_property
    def _taken(self) -> npt.NDArray[np.uint32]:
        return self._counts.array()

    def close(self) -> None:
        """Let go of what is known."""
        self._counts.close()

    @property
    def ssim(self) -> npt.NDArray[np.float64]:
        """(n)."""
        return self._rows["ssim"]

    @property
    def sizes_bytes(self) -> Numbers:
        """(n): of each image's file."""
        return self._rows["size_bytes"].astype(np.int64)

    def files(self, indices: range) -> list[bytes]:
        """Images' files; those that lie side by side in one piece.

        Raises:
            AppError: BLOB_CHANGED, one is not what was stored.
        """
        rows = self._rows[indices.start : indices.stop]
        ends = rows["start"] + rows["size_bytes"]
        beside = (rows["part"][1:] == rows["part"][:-1]) & (rows["start"][1:] == ends[:-1])
        runs = np.split(np.arange(len(rows)), np.flatnonzero(~beside) + 1)
        return [data for run in runs for data in self._piece(indices[run[0] : run[-1] + 1])]

    def _piece(self, indices: range) -> Iterator[bytes]:
        rows = self._rows[indices.start : indices.stop]
        key = encoded_key(self._job.protection_id, self._job.plan, int(rows["part"][0]))
        start, size = int(rows["start"][0]), int(rows["size_bytes"].sum())
        piece, at = storage.read_range(key, start, start + size), 0
        for index, length in zip(indices, rows["size_bytes"].tolist(), strict=True):
            data = piece[at : at + length]
            check_digest(key, sha256(data).hexdigest(), self.sha256(index))
            yield data
            at += length


def _image(record: ImageRecord) -> bytes:
    """Which image a file is of: by the name that it leaves under, and by its original's pixels."""
    return sha256(f"{record.released_name}\0{record.pixels_sha256}".encode()).digest()
