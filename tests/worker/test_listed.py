"""What is said of many files takes little memory, and is the same."""

import json
import tracemalloc
from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st

from worker.listed import Listed, write_json

values = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
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
