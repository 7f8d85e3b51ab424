"""What is said of many files takes little memory, and is the same."""

import json
import tracemalloc
from contextlib import closing
from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st

from worker.listed import Files, Listed, write_json
from worker.metrics import Change, Changes

values = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
changes = st.builds(
    Change,
    st.lists(st.integers(0, 2**28), min_size=1, max_size=9).map(tuple),
    st.floats(0, 1),
    st.floats(-1, 1),
)


@given(st.lists(values))
def test_a_list_made_while_it_is_written_is_written_like_any(items: list[object]) -> None:
    file = BytesIO()
    write_json({"b": 1, "a": Listed(len(items), items.__getitem__)}, file.write)
    expected = json.dumps({"a": items, "b": 1}, sort_keys=True, indent=1, ensure_ascii=False)
    assert file.getvalue() == expected.encode()


def test_items_are_not_held() -> None:
    written = 0

    def count(piece: bytes) -> None:
        nonlocal written
        written += len(piece)

    tracemalloc.start()
    write_json(Listed(1000, lambda index: f"{index:010000d}"), count)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written > 10_000_000
    assert most < 1_000_000


@given(st.lists(changes))
def test_changes_come_back(expected: list[Change]) -> None:
    with closing(Changes()) as found:
        for change in expected:
            found.append(change)
        assert len(found) == len(expected)
        assert [found[index] for index in range(len(found))] == expected


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 255))))
def test_files_come_back(expected: list[tuple[bytes, int]]) -> None:
    with closing(Files()) as files:
        for digest, largest in expected:
            files.append(digest, largest)
        assert len(files) == len(expected)
        assert expected == [
            (bytes.fromhex(files.sha256(at)), files.largest_levels(at)) for at in range(len(files))
        ]
