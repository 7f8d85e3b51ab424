"""A hostile zip is refused whole, by its central directory, with a code and a sentence."""

import stat
import struct
import zipfile
from contextlib import suppress
from io import BytesIO
from typing import cast

import pytest

from api.archive import Limits
from api.errors import ArchiveRefused
from tests.api.archives import (
    LIMITS,
    headers,
    ingested,
    inspect,
    mutations,
    patched,
    two_classes,
    zip_bytes,
)


def refusal(data: bytes, limits: Limits = LIMITS) -> ArchiveRefused:
    with pytest.raises(ArchiveRefused) as caught:
        inspect(data, limits)
    assert caught.value.status == 422
    return caught.value


GOOD = zip_bytes(two_classes())


@pytest.mark.parametrize("data", [b"", b"x", b"hello " * 20000, b"%PDF-1.7 PK"])
def test_what_is_no_zip(data: bytes) -> None:
    assert refusal(data).code == "NOT_A_ZIP"


@pytest.mark.parametrize("kept", [len(GOOD) - 1, len(GOOD) - 30, len(GOOD) // 2, 10])
def test_a_zip_cut_at_its_end(kept: int) -> None:
    assert refusal(GOOD[:kept]).code == "ARCHIVE_TRUNCATED"


def test_a_zip_with_a_hole() -> None:
    assert refusal(GOOD[:100] + GOOD[300:]).code == "ARCHIVE_TRUNCATED"


def test_one_part_of_several_disks() -> None:
    end = GOOD.rfind(b"PK\5\6")
    last_part = GOOD[: end + 4] + struct.pack("<HH", 1, 0) + GOOD[end + 8 :]
    assert refusal(last_part).code == "ARCHIVE_MULTI_DISK"
    assert refusal(patched(GOOD, "cat/0.png", disk=3)).code == "ARCHIVE_MULTI_DISK"


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_an_encrypted_entry(flag: int) -> None:
    refused = refusal(patched(GOOD, "cat/0.png", flags=flag))
    assert refused.code == "ARCHIVE_ENCRYPTED"
    assert "cat/0.png" in refused.message


@pytest.mark.parametrize(
    "name",
    [
        *("../x.png", "cat/../../x.png", "cat/..", "/cat/x.png", "//host/x.png", "C:/x.png"),
        *("c:x.png", "cat\\x.png", "..\\x.png", "\\\\host\\x.png", "cat/x.png\0.txt"),
        *("a/" * 100 + "x.png", "a" * 2000),
    ],
)
def test_a_path_that_leads_elsewhere(name: str) -> None:
    # zipfile would cut the name at NUL when writing: it gets there by hand.
    plain = name.replace("\0", "~")
    data = zip_bytes(two_classes() | {plain: b""}).replace(plain.encode(), name.encode())
    refused = refusal(data)
    assert refused.code == "ARCHIVE_UNSAFE_PATH"
    assert "Expected" in refused.message
    assert len(refused.message) < 300


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_a_link_or_special_file(kind: int) -> None:
    refused = refusal(patched(GOOD, "dog/1.png", attributes=(kind | 0o777) << 16))
    assert refused.code == "ARCHIVE_LINK"
    assert "dog/1.png" in refused.message


def test_regular_files_and_folders_are_no_special_files() -> None:
    data = zip_bytes([("cat/", b""), ("cat/1.png", b"")])
    data = patched(data, "cat/", attributes=(stat.S_IFDIR | 0o755) << 16)
    data = patched(data, "cat/1.png", attributes=(stat.S_IFREG | 0o644) << 16)
    assert [entry.name for entry in inspect(data, LIMITS).entries] == ["cat/1.png"]


def test_a_flat_bomb() -> None:
    bomb = zip_bytes(two_classes(cat__zeros=bytes(65 * 1024 * 1024)))
    refused = refusal(bomb)
    assert refused.code == "ARCHIVE_BOMB"
    assert "cat/zeros" in refused.message


def test_small_flat_images_compress_as_well_as_a_bomb_and_are_welcome() -> None:
    flat = zip_bytes({"cat/1.bmp": bytes(5_000_000), "dog/1.bmp": bytes(5_000_000)})
    assert len(inspect(flat, LIMITS).entries) == 2


def test_too_much_altogether() -> None:
    assert refusal(GOOD, Limits(max_uncompressed_bytes=1000)).code == "ARCHIVE_BOMB"


def test_entries_that_share_their_bytes() -> None:
    shared = patched(GOOD, "cat/1.png", offset=0)
    refused = refusal(shared)
    assert refused.code == "ARCHIVE_BOMB"
    assert "cat/" in refused.message


def test_an_entry_that_quotes_the_headers_after_it() -> None:
    with zipfile.ZipFile(BytesIO(GOOD)) as archive:
        packed = archive.getinfo("cat/0.png").compress_size
    assert refusal(patched(GOOD, "cat/0.png", packed=packed + 40)).code == "ARCHIVE_BOMB"


def test_an_entry_behind_the_directory() -> None:
    assert refusal(patched(GOOD, "dog/1.png", offset=2**31)).code == "ARCHIVE_TRUNCATED"


def test_too_many_files() -> None:
    refused = refusal(GOOD, Limits(max_files=3))
    assert refused.code == "ARCHIVE_TOO_MANY_FILES"
    assert refusal(GOOD, Limits(max_directory_bytes=100)).code == "ARCHIVE_TOO_MANY_FILES"


def test_too_many_files_are_counted_whatever_the_end_record_says() -> None:
    end = GOOD.rfind(b"PK\5\6")
    lying = GOOD[: end + 8] + struct.pack("<HH", 1, 1) + GOOD[end + 12 :]
    assert refusal(lying, Limits(max_files=3)).code == "ARCHIVE_TOO_MANY_FILES"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names",
    [
        *(("cat/1.png", "cat/1.png"), ("cat/a.png", "cat/A.PNG"), ("x", "x")),
        *(("cat/stra\u00dfe.png", "cat/STRASSE.png"), ("cat/\u00e9.png", "cat/e\u0301.png")),
        *(("cat/1.png", "./cat//1.png"), ("cat/1.png", "Cat/2.png"), ("cat", "cat/1.png")),
    ],
)
def test_names_that_collide_when_unpacked(names: tuple[str, str]) -> None:
    refused = refusal(zip_bytes([(name, b"") for name in names]))
    assert refused.code == "ARCHIVE_DUPLICATE_NAME"


def test_a_directory_of_rubbish() -> None:
    header = headers(GOOD)["cat/0.png"]
    assert refusal(GOOD[:header] + b"RUBB" + GOOD[header + 4 :]).code == "ARCHIVE_BROKEN"


def test_a_directory_header_that_goes_on_behind_the_directory() -> None:
    data, last = bytearray(GOOD), max(headers(GOOD).values())
    struct.pack_into("<H", data, last + 32, 9)  # its comment
    assert refusal(bytes(data)).code == "ARCHIVE_BROKEN"


def test_a_comment_that_would_lead_zipfile_to_another_directory() -> None:
    with zipfile.ZipFile(out := BytesIO(GOOD), "a") as archive:
        archive.writestr("last", b"")
        archive.getinfo("last").comment = b"PK\6\7" + bytes(16)
    assert refusal(out.getvalue()).code == "ARCHIVE_BROKEN"


def test_more_folders_than_files_could_need() -> None:
    deep = {f"{at}/" + "a/" * 30 + "x.png": b"" for at in range(4)}
    assert len(inspect(zip_bytes(deep), Limits(max_files=30)).entries) == 4
    refused = refusal(zip_bytes(deep), Limits(max_files=29))
    assert (refused.code, "at most 122 folders" in refused.message) == (
        "ARCHIVE_TOO_MANY_FILES",
        True,
    )


@pytest.mark.parametrize(
    ("disk", "moved", "code"),
    [
        (0, 0, None),
        (5, 0, "ARCHIVE_MULTI_DISK"),
        (0, 1, "ARCHIVE_BROKEN"),
        (0, -9, "ARCHIVE_BROKEN"),
    ],
)
def test_a_zip64_locator_names_the_directory_that_is_read(
    disk: int, moved: int, code: str | None
) -> None:
    data = _with_zip64_end(GOOD, disk=disk, moved=moved)
    if code is None:
        assert len(ingested(b"before it" + data).records) == len(ingested(GOOD).records)
    else:
        assert refusal(data).code == code


def test_zip64() -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in two_classes().items():
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    assert len(ingested(_with_zip64_end(out.getvalue())).records) == 4


def _with_zip64_end(data: bytes, disk: int = 0, moved: int = 0) -> bytes:
    end = data.rfind(b"PK\5\6")
    entries, size, offset = struct.unpack_from("<HLL", data, end + 10)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", disk, end + moved, 1)
    small = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
    return data[:end] + end64 + locator + small


class _Pipe:
    """A file that can't seek: zipfile then writes data descriptors, as a Mac does."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def flush(self) -> None: ...


def test_data_descriptors() -> None:
    pipe = _Pipe()
    with zipfile.ZipFile(cast(BytesIO, pipe), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in two_classes().items():
            archive.writestr(name, content)
    assert b"PK\7\10" in pipe.data
    assert len(ingested(pipe.data).records) == 4


def test_a_zip_behind_something_else_and_with_a_comment() -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = b"from the archive of " + b"x" * 1000
        for name, content in two_classes().items():
            archive.writestr(name, content)
    assert len(ingested(b"#!/bin/sh\n" + out.getvalue()).records) == 4


@pytest.mark.parametrize("flagged", [True, False])
def test_utf8_names_with_and_without_the_flag(flagged: bool) -> None:
    names = {"Stra\u00dfe/\u5b57.png": b"", "gar\u00e7on/\U0001f408.png": b""}
    data = zip_bytes(names)
    if not flagged:
        for name in names:
            data = patched(data, name, flags=0)
    assert {entry.name for entry in inspect(data, LIMITS).entries} == set(names)


def test_names_in_an_old_code_page() -> None:
    data = zip_bytes({"cat/aaa.png": b"", "dog/1.png": b""}).replace(b"aaa.png", b"a\x81a.png")
    names = [entry.name for entry in inspect(data, LIMITS).entries]
    assert names == ["cat/a\u00fca.png", "dog/1.png"]


def test_mutated_zips_are_refused_or_read() -> None:
    accepted = 0
    for data in mutations(GOOD, 500, seed=7):
        with suppress(ArchiveRefused):
            ingested(data)
            accepted += 1
    assert 0 < accepted < 500


def test_mutated_directories_are_refused_or_read() -> None:
    start = min(headers(GOOD).values())
    for directory in mutations(GOOD[start:], 500, seed=8):
        with suppress(ArchiveRefused):
            ingested(GOOD[:start] + directory)
