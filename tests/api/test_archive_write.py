"""What leaves: true names, lossless files, and the same zip each time."""

import time
import tracemalloc
import zipfile
from collections import deque
from collections.abc import Iterable
from contextlib import closing
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from api.archive import (
    MANIFEST_NAME,
    UNLIMITED,
    Catalog,
    ImageRefused,
    Pixels,
    decode_released,
    encode,
    read_pixels,
    write,
)
from api.archive.names import released_name
from api.errors import ArchiveRefused
from tests.api.archives import LIMITS, ingested, jpeg, noise, picture, png, saved, zip_bytes

KEPT = ("a.png", "a.PNG", "a.bmp", "a.tif", "a.TIFF")
PIXELS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])).flatmap(
    lambda shape: arrays(np.uint8, shape)
)


@given(pixels=PIXELS, name=st.sampled_from(KEPT))
def test_pixels_come_back_as_they_went(pixels: Pixels, name: str) -> None:
    assert np.array_equal(decode_released(encode(pixels, name)), pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", KEPT)
def test_a_photograph_comes_back_too(name: str, channels: int) -> None:
    pixels = noise(301, 257, channels)
    data = encode(pixels, name)
    assert data == encode(pixels.copy(), name)
    assert np.array_equal(decode_released(data), pixels)


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.webp", "a.gif", "png", ".png"])
def test_no_lossless_ending(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name ending in"):
        encode(noise(), name)


@pytest.mark.parametrize(
    "pixels", [noise()[:, :, 0], noise(channels=2), noise().astype(np.float32), noise(channels=4)]
)
def test_no_pixels(pixels: Pixels) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels"):
        encode(pixels, "a.png")


@pytest.mark.parametrize("name", KEPT)
def test_a_broken_released_file(name: str) -> None:
    with pytest.raises(ImageRefused):
        decode_released(encode(noise(), name)[:150])


def released_names(sources: Iterable[str], others: Iterable[str] = ()) -> dict[str, str]:
    """Of an upload of both, in which the others are no images."""
    uploaded = BytesIO(zip_bytes(dict.fromkeys([*sources, *others], b"")))
    with closing(Catalog.of(uploaded, LIMITS)) as catalog:
        return {name: released_name(name, catalog.claim) for name in sorted(sources)}


@pytest.mark.parametrize(
    ("source", "released"),
    [
        *(("c/a.png", "c/a.png"), ("c/a.BMP", "c/a.BMP"), ("c/a.tif", "c/a.tif")),
        *(("c/a.jpg", "c/a.png"), ("c/a.JPEG", "c/a.png"), ("c/a.webp", "c/a.png")),
        *(("c/a.b.gif", "c/a.b.png"), ("c/a", "c/a.png"), ("c/v1.2", "c/v1.2.png")),
        *(("./c//a.ppm", "c/a.png"), ("c.jpg/a.jpg", "c.jpg/a.png"), ("c/.jpg", "c/.jpg.png")),
    ],
)
def test_the_ending_is_mapped(source: str, released: str) -> None:
    assert released_names([source]) == {source: released}


def test_names_that_are_taken() -> None:
    sources = ["c/a.jpg", "c/A.PNG", "c/a.jpeg", "c/b.gif", "c/b.gif.png", "c/b.png", "c/d.jpg"]
    expected = {
        "c/A.PNG": "c/A.PNG",
        "c/a.jpeg": "c/a.jpeg.png",
        "c/a.jpg": "c/a.jpg.png",
        "c/b.gif": "c/b.gif-2.png",
        "c/b.gif.png": "c/b.gif.png",
        "c/b.png": "c/b.png",
        "c/d.jpg": "c/d.jpg.png",
    }
    others = ["c/d.png"]
    assert released_names(sources, others) == expected
    assert released_names(sources[::-1], others) == expected
    assert released_names(["c/a.jpg", "c/a.png/x.png"])["c/a.jpg"] == "c/a.jpg.png"


NAMES = st.builds(
    "c/{}{}".format,
    st.sampled_from(["a", "A", "b", "a.jpg", "\u00e9", "e\u0301"]),
    st.sampled_from([".png", ".jpg", ".JPEG", ".gif", ".tif", ""]),
)


@given(st.lists(NAMES, unique_by=lambda name: name.casefold().replace("e\u0301", "\u00e9")))
def test_no_two_released_names_collide(sources: list[str]) -> None:
    released = released_names(sources)
    assert set(released) == set(sources)
    folded = {name.casefold().replace("e\u0301", "\u00e9") for name in released.values()}
    assert len(folded) == len(sources)


def test_an_ending_that_lies_about_its_format() -> None:
    files = {
        "cat/jpeg.png": jpeg(),
        "cat/png.jpg": png(),
        "dog/webp.bmp": saved(picture(), "WEBP", lossless=True),
        "dog/gif.tiff": saved(picture("P"), "GIF"),
    }
    truth = {".png": "PNG", ".bmp": "BMP", ".tiff": "TIFF"}
    for record in ingested(zip_bytes(files)).records:
        pixels = read_pixels(files[record.name], LIMITS).pixels
        released = encode(pixels, record.released_name)
        ending = record.released_name[record.released_name.rindex(".") :]
        assert Image.open(BytesIO(released)).format == truth[ending]
        assert np.array_equal(decode_released(released), pixels)


MEMBERS = [("cat/1.png", b"1" * 1000), ("dog/\u00e9.png", b"2"), (MANIFEST_NAME, b"{}")]


def written(members: list[tuple[str, bytes]]) -> bytes:
    out = BytesIO()
    assert list(write(out, iter(members))) == [name for name, _ in members]
    return out.getvalue()


def test_a_member_from_a_file_is_the_same() -> None:
    out = BytesIO()
    files = [(name, BytesIO(content)) for name, content in MEMBERS]
    for _, file in files:
        file.seek(1)
    assert list(write(out, files)) == [name for name, _ in MEMBERS]
    assert out.getvalue() == written(MEMBERS)


def test_the_same_bytes_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(MEMBERS)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert written(MEMBERS) == first


@pytest.mark.parametrize("zip64_above", [zipfile.ZIP64_LIMIT, 1001])
def test_the_bytes_are_those_of_a_zipfile_that_holds_its_directory(
    zip64_above: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a member that could have become too large for what its header announces."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", zip64_above)
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in MEMBERS:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, content)
    assert written(MEMBERS) == out.getvalue()


def test_members_by_the_thousand_take_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "out.zip").open("wb") as out:
        tracemalloc.start()
        for _ in write(out, ((f"cat/{number:05}.png", b"") for number in range(5_000))):
            written_so_far = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert written_so_far < 200_000


def test_members_are_stored_as_they_came_without_date_or_owner() -> None:
    with zipfile.ZipFile(BytesIO(written(MEMBERS))) as archive:
        assert [(info.filename, archive.read(info)) for info in archive.infolist()] == MEMBERS
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.compress_type == zipfile.ZIP_STORED
            assert (info.create_system, info.external_attr >> 16) == (3, 0o100644)
            assert info.extra == b""


def test_nothing_behind_the_manifest() -> None:
    with pytest.raises(ValueError, match=r"expected manifest.json last, got 'dog"):
        written(MEMBERS[::-1])


def test_a_name_twice_is_found_by_who_reads_the_archive_again() -> None:
    with pytest.raises(ArchiveRefused) as caught:
        Catalog.of(BytesIO(written([MEMBERS[0]] * 2)), UNLIMITED)
    assert caught.value.code == "ARCHIVE_DUPLICATE_NAME"


def test_half_an_archive_is_none() -> None:
    out = BytesIO()
    with pytest.raises(ValueError, match="last"):
        deque(write(out, MEMBERS[::-1]), maxlen=0)
    assert out.getvalue()
    assert not zipfile.is_zipfile(out)
    given_up = write(out := BytesIO(), MEMBERS)
    assert next(given_up) == MEMBERS[0][0]
    del given_up
    assert out.getvalue()
    assert not zipfile.is_zipfile(out)


def test_zip64_where_it_must() -> None:
    count = 66_000
    out = BytesIO()
    deque(write(out, ((f"cat/{number:05}.png", b"") for number in range(count))), maxlen=0)
    assert b"PK\6\6" in out.getvalue()[-200:]
    with zipfile.ZipFile(out) as archive:
        assert len(archive.infolist()) == count


def test_what_we_write_we_can_ingest() -> None:
    folders = ("test/cat", "train/cat", "train/dog")
    files = {f"{folder}/{i}.jpg": jpeg(i) for folder in folders for i in (1, 2)}
    first = ingested(zip_bytes(files))
    members = [
        (record.released_name, encode(read_pixels(files[record.name], LIMITS).pixels, "x.png"))
        for record in first.records
    ]
    released = written([*members, (MANIFEST_NAME, b"{}")])
    again = ingested(released)
    digests = [record.pixels_sha256 for record in first.records]
    assert [record.pixels_sha256 for record in again.records] == digests
    with closing(Catalog.of(BytesIO(released), UNLIMITED)) as catalog:
        assert [catalog.read(name) for name, _ in members] == [content for _, content in members]
