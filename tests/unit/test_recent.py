from hypothesis import given
from hypothesis import strategies as st

from domain.ports import Position, Record
from infra.storage.recent import Recent

KEYS = "abc"
# Whether this process appends, and the keys of what it appends; a capital erases.
APPENDS = st.lists(st.tuples(st.booleans(), st.text(KEYS + KEYS.upper(), min_size=1, max_size=4)), max_size=12)


def record(offset: int, letter: str) -> Record:
    value = None if letter.isupper() else bytes(10)
    return Record(Position("feedback", 0, offset), letter.lower(), value, {})


@given(APPENDS, st.integers(1, 6), st.integers(10, 60), st.integers(0, 50))
def test_what_it_gives_is_what_the_log_has(
    appends: list[tuple[bool, str]], records: int, size: int, start: int
) -> None:
    recent, log = Recent(records, size), list[Record]()
    for is_ours, letters in appends:
        added = [record(offset, letter) for offset, letter in enumerate(letters, len(log))]
        log += added
        if is_ours:
            recent.add(added)
        start = min(start, len(log))
        erased = {each.key: each.position.offset for each in log if each.value is None}
        kept = [each for each in log if each.position.offset >= max(start, erased.get(each.key, 0))]
        assert recent.between(start, len(log)) in (None, kept)


def test_it_has_what_was_appended_last() -> None:
    recent, letters = Recent(records=3), "abcabc"
    recent.add([record(offset, letter) for offset, letter in enumerate(letters)])
    assert recent.between(3, 6) == [record(offset, letters[offset]) for offset in (3, 4, 5)]
    assert recent.between(6, 6) == []
    assert recent.between(2, 6) is None
    assert recent.between(3, 5) is None


def test_behind_what_another_process_appended_it_begins_anew() -> None:
    recent = Recent()
    recent.add([record(0, "a")])
    recent.add([record(2, "b")])
    assert recent.between(0, 3) is None
    assert recent.between(2, 3) == [record(2, "b")]


def test_it_forgets_what_was_erased() -> None:
    recent = Recent()
    recent.add([record(0, "a"), record(1, "b")])
    recent.add([record(2, "A"), record(3, "a")])
    assert recent.between(0, 4) == [record(1, "b"), record(2, "A"), record(3, "a")]


def test_large_records_leave_sooner() -> None:
    recent = Recent(size=25)
    recent.add([record(offset, "a") for offset in range(4)])
    assert recent.between(2, 4) == [record(2, "a"), record(3, "a")]
    assert recent.between(1, 4) is None
