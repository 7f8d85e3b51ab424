"""One file at a time, bounded; the whole, with a clear list of what was refused."""

import hashlib
import zipfile
import zlib
from collections import Counter
from contextlib import closing
from io import BytesIO

import pytest
from PIL import Image

from api.archive import (
    Catalog,
    ImageRefused,
    IngestProgress,
    Limits,
    ingest,
    read_pixels,
)
from api.errors import ArchiveRefused
from tests.api.archives import (
    LIMITS,
    TEXT,
    headers,
    ingested,
    jpeg,
    patched,
    picture,
    png,
    read,
    saved,
    two_classes,
    zip_bytes,
)


def read_code(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(ImageRefused) as caught:
        read(data, limits=limits)
    return caught.value.code


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_whole_entry(method: int) -> None:
    assert read(zip_bytes({"cat/x": TEXT, "cat/empty": b""}, method)) == TEXT
    assert read(zip_bytes({"cat/x": b""}, method)) == b""


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("size", [0, 1, 499, 501, 10_000])
def test_a_size_that_lies(method: int, size: int) -> None:
    data = patched(zip_bytes({"cat/x": TEXT}, method), "cat/x", size=size)
    assert read_code(data) == "BROKEN_FILE"


def test_a_size_that_lies_with_the_checksum_of_what_it_declares() -> None:
    lying = patched(zip_bytes({"cat/x": TEXT}), "cat/x", size=10, crc=zlib.crc32(TEXT[:10]))
    assert read_code(lying) == "BROKEN_FILE"


def test_a_stored_size_that_lies_of_what_is_packed() -> None:
    data = patched(zip_bytes({"cat/x": TEXT}, zipfile.ZIP_STORED), "cat/x", packed=100)
    assert read_code(data) == "BROKEN_FILE"


def test_a_name_that_could_be_of_either_code_page_is_found_by_that_of_all() -> None:
    data = zip_bytes({"cat/aaa": b"", "cat/bb": TEXT})
    data = data.replace(b"aaa", b"a\x81a").replace(b"/bb", b"/\xc3\xa9")
    assert read(data, "cat/\u251c\u2310") == TEXT
    assert read(data, "cat/a\xfca") == b""


def test_a_wrong_checksum() -> None:
    assert read_code(patched(zip_bytes({"cat/x": TEXT}), "cat/x", crc=1)) == "BROKEN_FILE"


def test_a_local_header_of_another_file() -> None:
    data = bytearray(zip_bytes({"cat/x": TEXT}))
    data[30:35] = b"dog/x"
    assert read_code(bytes(data)) == "BROKEN_FILE"


def test_an_entry_above_the_limit_is_not_unpacked() -> None:
    assert read_code(zip_bytes({"cat/x": TEXT}), Limits(max_file_bytes=499)) == "FILE_TOO_LARGE"
    assert read(zip_bytes({"cat/x": TEXT}), limits=Limits(max_file_bytes=500)) == TEXT


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_could_unpack_without_bound(method: int) -> None:
    assert read_code(zip_bytes({"cat/x": TEXT}, method)) == "UNSUPPORTED_COMPRESSION"


def test_an_unknown_compression() -> None:
    data = patched(zip_bytes({"cat/x": TEXT}), "cat/x", method=9)
    assert read_code(data) == "UNSUPPORTED_COMPRESSION"


def test_a_failing_storage_is_not_the_uploads_fault() -> None:
    class Failing(BytesIO):
        fails = False

        def read(self, size: int | None = -1) -> bytes:
            if self.fails:
                raise OSError(f"no {size} bytes: the disk is gone")
            return super().read(size)

    file = Failing(zip_bytes({"cat/x": TEXT}))
    with closing(Catalog.of(file, LIMITS)) as catalog:
        file.fails = True
        with pytest.raises(OSError, match="disk is gone"):
            catalog.read("cat/x")


def test_a_record_says_what_the_image_is() -> None:
    grey = saved(picture("L"), "BMP")
    result = ingested(zip_bytes(two_classes(cat__a=b"", dog__b=grey, dog__c=jpeg())))
    records = {record.name: record for record in result.records}
    pixels = read_pixels(grey, LIMITS).pixels
    record = records["dog/b"]
    assert (record.split, record.class_name, record.source_format) == ("train", "dog", "BMP")
    assert (record.height, record.width, record.channels) == (12, 10, 1)
    told = str(pixels.shape).encode() + pixels.tobytes()
    assert record.pixels_sha256 == hashlib.sha256(told).hexdigest()
    assert record.released_name == "dog/b.png"
    assert list(records) == sorted(records)
    assert result.classes == ("cat", "dog")


def test_a_grey_picture_in_three_channels_is_the_one_in_one() -> None:
    """Networks see the same; a picture of other sides is another one though its bytes are these."""
    grey = picture("L")
    turned = Image.frombytes("L", grey.size[::-1], grey.tobytes())
    files = {"grey": grey, "colour": grey.convert("RGB"), "turned": turned}
    zipped = {f"cat/{name}.png": saved(image, "PNG") for name, image in files.items()}
    records = ingested(zip_bytes(zipped | two_classes())).records
    found = {record.name: record.pixels_sha256 for record in records}
    assert found["cat/grey.png"] == found["cat/colour.png"] != found["cat/turned.png"]


def test_progress_after_every_file_and_the_result_last() -> None:
    *progress, result = ingest(BytesIO(zip_bytes(two_classes(README=TEXT))), LIMITS)
    assert progress == [IngestProgress(done, 4) for done in range(1, 5)]
    assert not isinstance(result, IngestProgress)


def test_signs_of_life_while_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.archive.directory._SLICE_BYTES", 100)
    monkeypatch.setattr("api.archive.read._SIGN_EVERY", 2)
    *progress, _ = ingest(BytesIO(zip_bytes(two_classes())), LIMITS)
    counts = Counter((event.done, event.total) for event in progress)  # type: ignore[union-attr]
    assert counts[0, 0] == 1 + 2  # between two slices, and of names
    assert counts[4, 4] == 1 + 2  # of the last image, and of those that are accepted


def test_one_tenth_of_odd_files_gives_a_data_set_and_a_clear_list() -> None:
    good = {f"train/{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(50)}
    bad: dict[str, tuple[bytes, str]] = {
        "README.md": (TEXT, "BESIDE_SPLIT_FOLDERS"),
        "train/cat/broken.jpg": (jpeg()[:300], "BROKEN_IMAGE"),
        "train/cat/cmyk.jpg": (saved(picture("CMYK"), "JPEG"), "UNSUPPORTED_MODE"),
        "train/cat/empty.png": (b"", "NOT_AN_IMAGE"),
        "train/cat/large.png": (png(height=101, width=101), "IMAGE_TOO_LARGE"),
        "train/dog/Thumbs.db": (TEXT, "METADATA_FILE"),
        "train/dog/deep.png": (saved(picture("I;16"), "PNG"), "UNSUPPORTED_MODE"),
        "train/dog/notes.jpg": (TEXT, "NOT_AN_IMAGE"),
        "train/dog/see-through.png": (saved(picture().convert("RGBA"), "PNG"), "BROKEN_FILE"),
        "train/dog/small.png": (png(height=4, width=4), "IMAGE_TOO_SMALL"),
        "train/fox.png": (png(), "NOT_IN_CLASS_FOLDER"),
        "val/fox/1.png": (png(), "CLASS_WITHOUT_TRAINING_IMAGES"),
    }
    data = zip_bytes(good | {name: content for name, (content, _) in bad.items()})
    data = patched(data, "train/dog/see-through.png", crc=0)
    result = ingested(data, Limits(max_image_pixels=10_000))
    assert [record.name for record in result.records] == sorted(good)
    assert {refusal.name: refusal.code for refusal in result.refusals} == {
        name: code for name, (_, code) in bad.items()
    }
    assert [refusal.name for refusal in result.refusals] == sorted(bad)
    assert all(len(refusal.reason) > 15 for refusal in result.refusals)


def test_a_class_may_lack_test_images_but_not_training_images() -> None:
    files = {f"train/{name}/1.png": png() for name in ("cat", "dog", "elk")}
    result = ingested(zip_bytes(files | {"test/cat/1.png": png(), "test/fox/1.png": png()}))
    assert result.classes == ("cat", "dog", "elk")
    assert Counter(record.split for record in result.records) == {"train": 3, "test": 1}
    assert [refusal.name for refusal in result.refusals] == ["test/fox/1.png"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "none"),
        ({"a.png": png()}, "none"),
        ({"__MACOSX/._a": b""}, "none"),
        ({"cat/1.png": png(), "dog/1.txt": TEXT}, "'cat'"),
        ({"test/cat/1.png": png(), "test/dog/1.png": png()}, "none"),
    ],
)
def test_fewer_than_two_classes(files: dict[str, bytes], found: str) -> None:
    with pytest.raises(ArchiveRefused) as caught:
        ingested(zip_bytes(files))
    assert caught.value.code == "TOO_FEW_CLASSES"
    assert f"got {found}." in caught.value.message
    assert "train/cat/1.png" in caught.value.message


def test_too_few_classes_tells_the_first_reasons() -> None:
    files = {f"dog/{i}.jpg": TEXT for i in range(9)} | {"cat/1.png": png()}
    with pytest.raises(ArchiveRefused, match="9 files were refused") as caught:
        ingested(zip_bytes(files))
    assert "'dog/2.jpg': Expected one of JPEG" in caught.value.message
    assert "dog/3.jpg" not in caught.value.message


def test_names_in_records_find_the_entry_again() -> None:
    data = zip_bytes({"./\u732b/1.png": png(), "./dog//1.png": png()})
    for name in headers(data):
        data = patched(data, name, flags=0)
    for record in ingested(data).records:
        assert read(data, record.name) == png()
    assert {record.released_name for record in ingested(data).records} == {
        "\u732b/1.png",
        "dog/1.png",
    }
