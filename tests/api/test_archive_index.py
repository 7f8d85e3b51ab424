"""The index of an archive, and the places it names."""

import json
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from dataclasses import asdict, replace
from io import BytesIO
from tempfile import TemporaryFile

import numpy as np
import pytest

from api.archive import (
    ImageRefused,
    IngestResult,
    dump_index,
    load_index,
    read_placed,
)
from api.archive import index as index_module
from tests.api.archives import (
    TEXT,
    ingested,
    jpeg,
    patched,
    png,
    read,
    two_classes,
    zip_bytes,
)


def dumped(result: IngestResult) -> bytes:
    out = BytesIO()
    dump_index(result, out)
    return out.getvalue()


def loaded(index: bytes) -> IngestResult:
    with TemporaryFile() as file:
        file.write(index)
        file.seek(0)
        return load_index(file)


def test_the_index_is_kept_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    files = two_classes(README=TEXT, cat__x=b"?") | {"cat/\u732b.jpg": jpeg()}
    result = ingested(zip_bytes(files))
    index = dumped(result)
    again = loaded(index)
    assert [record.name for record in again.records] == sorted(set(files) - {"README", "cat/x"})
    assert list(again.records) == list(result.records)
    assert again.records[1:-1] == list(result.records)[1:-1]
    assert again.records[-1] == result.records[-1]
    assert (again.refusals, again.classes) == (result.refusals, result.classes)
    assert dumped(again) == index == dumped(ingested(zip_bytes(files)))
    with np.load(BytesIO(index)) as table:
        assert table["rows"]["height"].tolist() == [12] * 5
        again_by_numpy = BytesIO()
        np.savez(again_by_numpy, **table)
    monkeypatch.setattr(index_module, "PIECE_BYTES", 200)  # of one, two, or not quite two rows
    assert dumped(result) == index == again_by_numpy.getvalue()
    flipped = bytearray(index)
    flipped[index.index(bytes.fromhex(again.records[2].pixels_sha256))] ^= 1
    for broken in (b"", b"{}", index[:-9], index[:9], index[50:], bytes(flipped)):
        with pytest.raises(ValueError, match=r"index of a data set|validation error"):
            loaded(broken)


def test_an_index_of_before_is_read_without_places() -> None:
    result = ingested(zip_bytes(two_classes()))
    older = [asdict(record) for record in result.records]
    for record in older:
        del record["place"]
    index = {"records": older, "refusals": [], "classes": result.classes}
    known = loaded(json.dumps(index).encode())
    assert known.records == [replace(record, place=None) for record in result.records]


class Unseekable(BytesIO):
    """What `zip -` writes to: sizes come behind the content."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError

    def seek(self, *_: int) -> int:
        raise OSError


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("out", [BytesIO, Unseekable])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n"])
@pytest.mark.parametrize("zip64", [False, True])
def test_what_lies_in_a_place_is_what_its_name_finds(
    method: int, out: type[BytesIO], before: bytes, zip64: bool
) -> None:
    file = out()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in two_classes().items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=zip64) as entry:
                entry.write(content)
    data = before + file.getvalue()
    records = loaded(dumped(ingested(data))).records
    assert len(records) == 4
    for record in records:
        assert record.place is not None
        found = read_placed(BytesIO(data), record.place)
        assert found == read(data, record.name) != b""


HOLDS = """
import io, re, zipfile
from pathlib import Path
from api.archive import Catalog, Limits

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def read(number):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for at in range(number):
            archive.writestr(f"cat/{at:0200}.png", b"")
    return Catalog.of(out, Limits()), out

few = read(5_000)
before = held()
many, file = read(40_000)
grown = held() - before - file.getbuffer().nbytes // 1024
assert sum(1 for _ in many.names()) == 40_000
print(grown)
"""


def test_a_directory_of_any_length_takes_little_memory() -> None:
    """40 MB as Python's objects, and as much if SQLite kept it."""
    ran = subprocess.run([sys.executable, "-c", HOLDS], check=True, capture_output=True, text=True)
    assert int(ran.stdout) < 15_000


def test_what_lies_behind_a_packed_image_is_not_read() -> None:
    """A stream may end long before its entry does, and an upload may have 64 GiB."""
    image = png(9)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(image) + packer.flush()
    data = zip_bytes(two_classes() | {"cat/9.png": packed + bytes(20_000_000)}, zipfile.ZIP_STORED)
    told = {"method": zipfile.ZIP_DEFLATED, "size": len(image), "crc": zlib.crc32(image)}
    data = patched(data, "cat/9.png", **told)
    record = next(one for one in ingested(data).records if one.name == "cat/9.png")
    assert record.place is not None
    file = BytesIO(data)
    tracemalloc.start()
    assert read_placed(file, record.place) == image
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_place_where_something_else_lies_now(method: int) -> None:
    data = zip_bytes(two_classes(), method)
    place = ingested(data).records[1].place
    assert place is not None
    content = range(place.offset, place.offset + 30 + len("cat/1.png") + place.packed_bytes)
    for at in (content[0], content[-1], content[-place.packed_bytes // 2]):
        changed = bytearray(data)
        changed[at] ^= 255
        with pytest.raises(ImageRefused) as caught:
            read_placed(BytesIO(changed), place)
        assert caught.value.code == "BROKEN_FILE"
    for end in (0, place.offset + 9, content[-1]):
        with pytest.raises(ImageRefused, match="Expected"):
            read_placed(BytesIO(data[:end]), place)
