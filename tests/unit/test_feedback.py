"""What may be said of a sample, and what becomes of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import feedback as rules
from domain.aggregates import AGGREGATES, TOPICS
from domain.errors import InvalidError, KeyReusedError, NotFoundError
from domain.events import Erased, Recorded, Undecodable, UnknownEvent
from domain.events.feedback import TOPIC, FeedbackGiven, SampleSnapshot
from domain.feedback import Feedback, FeedbackRequest, Revision
from domain.idempotency import digest
from domain.ports import Position

SAMPLE = SampleSnapshot(audio_id="a", job_id="j1", prompt_id="p", model_id="m")
OTHER = replace(SAMPLE, audio_id="b", job_id="j2")
STRANGE = replace(SAMPLE, audio_id="c", prompt_id="q")
KNOWN = {sample.audio_id: sample for sample in (SAMPLE, OTHER, STRANGE)}
REQUEST = FeedbackRequest(audio_id="a", rating=4.5, preferred_over="b", tags=("warm",), notes="nice", user_id="ann")
GIVEN = FeedbackGiven(
    feedback_id="f",
    sample=SAMPLE,
    other=OTHER,
    verdict="preferred",
    rating=4.5,
    tags=("warm",),
    notes="nice",
    user_id="ann",
    request_digest=digest(REQUEST),
)
REVISED = FeedbackGiven(feedback_id="f", sample=SAMPLE, rating=2.0, created_at="2026-01-01T00:00:00.000000Z")
ERASED = Erased(topic=TOPIC.name, key="f", given_partition_key="j1")

# state, event → what the state then says, None for no state
TABLE: list[tuple[str, Any, dict[str, Any] | None]] = [
    ("nothing", GIVEN, {"rating": 4.5, "verdict": "preferred", "created_at": "07", "updated_at": "07"}),
    ("nothing", REVISED, {"rating": 2.0, "verdict": None, "created_at": "2026-01-01", "updated_at": "07"}),
    ("nothing", ERASED, None),
    ("nothing", UnknownEvent("FeedbackPraised"), None),
    ("nothing", Undecodable("not JSON"), None),
    ("given", REVISED, {"rating": 2.0, "other": None, "tags": (), "notes": None, "user_id": None, "updated_at": "07"}),
    ("given", GIVEN, {"rating": 4.5, "created_at": "07", "updated_at": "07"}),
    ("given", ERASED, None),
    ("given", UnknownEvent("FeedbackPraised"), {"rating": 4.5, "updated_at": "00", "position": 7}),
    ("given", Undecodable("not JSON"), {"rating": 4.5, "updated_at": "00", "position": 7}),
    ("revised", GIVEN, {"rating": 4.5, "other": OTHER}),
    ("revised", ERASED, None),
    ("erased", GIVEN, {"rating": 4.5, "created_at": "07"}),
    ("erased", ERASED, None),
]
STATES: dict[str, list[Any]] = {
    "nothing": [],
    "given": [GIVEN],
    "revised": [GIVEN, REVISED],
    "erased": [GIVEN, ERASED],
}


def at(offset: int, event: Any, partition: int = 0) -> Recorded:
    time = f"2026-02-01T00:00:{offset:02}.000000Z"
    return Recorded(Position("feedback", partition, offset), "f", f"e{offset}", time, event)


def fold(*events: Any) -> Feedback | None:
    state: Feedback | None = None
    for offset, event in enumerate(events):
        state = AGGREGATES["feedback"].apply(state, at(offset, event))
    return state


def stored() -> Feedback:
    feedback = fold(GIVEN)
    assert feedback is not None
    return feedback


def faults(request: FeedbackRequest) -> dict[str, str]:
    other = KNOWN.get(request.preferred_over or "")
    with pytest.raises(InvalidError) as caught:
        rules.give(None, "f", request, KNOWN.get(request.audio_id), other)
    return {fault.pointer: fault.detail for fault in caught.value.faults}


@pytest.mark.parametrize(("state", "event", "expected"), TABLE)
def test_transitions(state: str, event: Any, expected: dict[str, Any] | None) -> None:
    after = AGGREGATES["feedback"].apply(fold(*STATES[state]), at(7, event))
    assert (after is None) is (expected is None)
    for name, value in (expected or {}).items():
        found = getattr(after, name)
        if name.endswith("_at"):
            found = found[:10] if len(value) == 10 else found[17:19]
        assert found == value, name


def test_every_state_meets_every_event_in_the_table() -> None:
    kinds = {(state, type(event).__name__) for state, event, _ in TABLE}
    assert {state for state, _ in kinds} == STATES.keys()
    assert {(state, name) for state in ("nothing", "given") for name in ("FeedbackGiven", "Erased")} <= kinds


def test_what_is_read_again_changes_nothing_and_no_older_tombstone_erases() -> None:
    for events in STATES.values():
        state = fold(*events)
        for offset in range(len(events)):
            for event in (GIVEN, ERASED):
                assert state is None or AGGREGATES["feedback"].apply(state, at(offset, event)) == state
    assert AGGREGATES["feedback"].apply(stored(), at(9, ERASED, partition=1)) == stored()


@given(st.lists(st.sampled_from([GIVEN, REVISED, ERASED, replace(GIVEN, rating=1.0)]), min_size=1, max_size=8))
def test_the_newest_record_alone_says_what_the_state_is(events: list[Any]) -> None:
    """Compaction takes all earlier ones."""
    alone = AGGREGATES["feedback"].apply(None, at(len(events) - 1, events[-1]))
    assert fold(*events) == alone


def test_repeating_a_command_appends_nothing() -> None:
    assert rules.give(None, "f", REQUEST, SAMPLE, OTHER) == [GIVEN]
    assert rules.give(stored(), "f", REQUEST, SAMPLE, OTHER) == []
    assert rules.give(stored(), "f", REQUEST, None, None) == [], "whatever has become of the samples"
    (event,) = rules.revise(stored(), "f", Revision(rating=2, notes=" late "), None)
    assert (event.rating, event.notes, event.created_at) == (2.0, "late", stored().created_at)
    revised = fold(GIVEN, event)
    assert revised is not None
    assert (revised.created_at, revised.updated_at) == (at(0, GIVEN).time, at(1, event).time)
    assert rules.revise(revised, "f", Revision(rating=2, notes="late"), None) == []
    assert rules.give(revised, "f", REQUEST, SAMPLE, OTHER) == [], "the retry of what was revised since"
    (erased,) = rules.erase(revised, "f")
    assert erased.partition_key == event.partition_key == "j1"


def test_a_key_sent_with_other_feedback_is_refused() -> None:
    with pytest.raises(KeyReusedError):
        rules.give(stored(), "f", FeedbackRequest(audio_id="a", rating=1), SAMPLE, None)


def test_what_is_not_there_cannot_be_judged_revised_or_erased() -> None:
    with pytest.raises(NotFoundError, match="There is no audio sample 'x'"):
        rules.give(None, "f", FeedbackRequest(audio_id="x", rating=1), None, None)
    with pytest.raises(NotFoundError, match="There is no feedback 'f'"):
        rules.revise(None, "f", Revision(rating=1), None)
    with pytest.raises(NotFoundError, match="There is no feedback 'f'"):
        rules.erase(None, "f")


def test_a_revision_is_about_the_same_sample() -> None:
    assert rules.revise(stored(), "f", Revision(audio_id="a", rating=1), None)
    with pytest.raises(InvalidError, match="audio_id is 'b', but this feedback is about 'a'"):
        rules.revise(stored(), "f", Revision(audio_id="b", rating=1), None)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [({"preferred_over": "b"}, "preferred"), ({"preferred_over": "b", "verdict": "tie"}, "tie"), ({"rating": 1}, None)],
)
def test_a_preference_is_one_unless_a_verdict_says_otherwise(changes: dict[str, Any], verdict: str | None) -> None:
    other = KNOWN.get(changes.get("preferred_over", ""))
    (event,) = rules.give(None, "f", FeedbackRequest(audio_id="a", **changes), SAMPLE, other)
    assert (event.verdict, event.other) == (verdict, other)


def test_tags_are_trimmed_and_merged() -> None:
    request = FeedbackRequest(audio_id="a", tags=(" warm", "tape", "warm ", *("tape",) * 30))
    (event,) = rules.give(None, "f", request, SAMPLE, None)
    assert event.tags == ("warm", "tape")


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"rating": 5.5}, "/rating", "rating is 5.5; give 1 to 5 in steps of a half, such as 3.5."),
        ({"rating": 0}, "/rating", "rating is 0; give 1 to 5 in steps of a half, such as 3.5."),
        ({"rating": 3.3}, "/rating", "rating is 3.3; give 1 to 5 in steps of a half, such as 3.5."),
        ({"preferred_over": "a"}, "/preferred_over", "preferred_over is 'a', the sample itself; name another sample "),
        ({"preferred_over": "c"}, "/preferred_over", "preferred_over is of prompt 'q', and the sample of 'p'; only "),
        ({"preferred_over": "x"}, "/preferred_over", "There is no audio sample 'x' to compare with; name another "),
        ({"verdict": "tie"}, "/verdict", "verdict is tie, which needs two samples; name the other one as preferred_o"),
        ({"verdict": "preferred", "rating": 1}, "/verdict", "verdict is preferred, which needs two samples"),
        ({}, "", "This feedback says nothing; give at least a rating, preferred_over, tags or notes."),
        ({"notes": " \n"}, "", "This feedback says nothing"),
        ({"user_id": "ann"}, "", "This feedback says nothing"),
        ({"tags": [str(n) for n in range(21)]}, "/tags", "tags has 21 different entries; the limit is 20."),
        ({"tags": ["x", "y" * 51]}, "/tags/1", "The tag has 51 characters; it must have 1 to 50."),
        ({"tags": ["x", "  "]}, "/tags/1", "The tag has 0 characters; it must have 1 to 50."),
        ({"tags": ["a\x00"]}, "/tags/0", "Character 2 is U+0000, which is no text; take it out."),
        ({"notes": "x" * 4001}, "/notes", "notes has 4,001 characters; the limit is 4,000."),
        ({"notes": "x\x07"}, "/notes", "Character 2 is U+0007, which is no text; take it out."),
        ({"rating": 1, "user_id": "x" * 201}, "/user_id", "user_id has 201 characters; it must have 1 to 200."),
        ({"rating": 1, "heard_first": "b"}, "/heard_first", "heard_first is 'b'; this feedback is about 'a'."),
        (
            {"rating": 1, "preferred_over": "b", "heard_first": "c"},
            "/heard_first",
            "heard_first is 'c'; this feedback is about 'a' or 'b'.",
        ),
        (
            {"rating": 1, "seconds_listened": {"x/~": 1}},
            "/seconds_listened/x~1~0",
            "seconds_listened names 'x/~'; this feedback is about 'a'.",
        ),
        ({"rating": 1, "seconds_listened": {"a": -1}}, "/seconds_listened/a", "a was heard for -1 s; give 0 to 86400"),
    ],
)
def test_what_cannot_be_said_is_refused_with_value_limit_and_way_out(
    changes: dict[str, Any], pointer: str, detail: str
) -> None:
    found = faults(FeedbackRequest(audio_id="a", **changes))
    assert list(found) == [pointer]
    assert found[pointer].startswith(detail)


def test_all_faults_are_named_at_once() -> None:
    request = FeedbackRequest(audio_id="a", rating=9, preferred_over="a", tags=("",), heard_first="z", user_id="")
    assert sorted(faults(request)) == ["/heard_first", "/preferred_over", "/rating", "/tags/0", "/user_id"]


def test_a_strangers_comparison_of_what_cannot_be_compared_counts_for_nothing() -> None:
    for other, verdict in ((SAMPLE, "preferred"), (STRANGE, "tie"), (OTHER, None), (None, "tie")):
        feedback = fold(replace(GIVEN, other=other, verdict=verdict))
        assert feedback is not None
        assert feedback.compared_with is None


def test_feedback_stands_on_the_partition_of_its_job() -> None:
    """What counts for a job is looked up there."""
    assert TOPICS["feedback"].partitions == TOPICS["jobs"].partitions
    assert GIVEN.partition_key == SAMPLE.job_id
