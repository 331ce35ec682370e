import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.ranges import Slice, Unsatisfiable, requested, unchanged

ETAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", Slice(0, 1)),
        ("bytes=0-", Slice(0, 100)),
        ("bytes=90-200", Slice(90, 10)),
        ("bytes=-10", Slice(90, 10)),
        ("bytes=-1000", Slice(0, 100)),
        ("bytes=100-", Unsatisfiable()),
        ("bytes=-0", Unsatisfiable()),
        ("bytes=5-4", None),
        ("bytes=" + "9" * 5000 + "-", None),
        ("bytes=٣-٤", None),
        ("bytes=abc", None),
        ("bytes=0-1,5-6", None),
        ("seconds=0-1", None),
        ("", None),
    ],
)
def test_a_range_is_read_as_the_standard_says(header: str, expected: Slice | Unsatisfiable | None) -> None:
    assert requested({"range": header}, 100, ETAG) == expected


@pytest.mark.parametrize(("value", "expected"), [(ETAG, Slice(0, 2)), ('"old"', None), (f"W/{ETAG}", None)])
def test_if_range_gives_the_whole_file_when_it_has_changed(value: str, expected: Slice | None) -> None:
    assert requested({"range": "bytes=0-1", "if-range": value}, 100, ETAG) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(ETAG, True), (f"W/{ETAG}", True), ('"x", "abc"', True), ("*", True), ('"x"', False), ("", False)],
)
def test_if_none_match_compares_weakly(value: str, expected: bool) -> None:
    assert unchanged({"if-none-match": value}, ETAG) is expected


@given(st.text(max_size=30), st.integers(0, 1000))
def test_no_header_leads_outside_the_file(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        match requested({"range": text}, size, ETAG):
            case Slice(start, length):
                assert length > 0
                assert start + length <= size
