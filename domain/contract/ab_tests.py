from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import to_builtins
from msgspec.structs import replace

from domain.ab_tests import ABTest, vote_id
from domain.contract import Json, Published
from domain.contract.jobs import SUBMITTED
from domain.contract.records import encoded, headed, record
from domain.events import Event, Recorded
from domain.events.ab_tests import ABTestClosed, ABTestCreated, ABTestReady, ABVoteCast, Arm, Pair
from domain.outcomes import OUTCOMES
from domain.ports import Position, Record

TEST: Final = "test-1"
CREATED: Final = ABTestCreated(
    ab_test_id=TEST,
    test_name="jazz against the base",
    pairs=(
        Pair(prompt_id="prompt-1", prompt="rain on a tin roof", seed=7),
        Pair(prompt_id="prompt-1", prompt="rain on a tin roof", seed=8),
    ),
    model_id="facebook/musicgen-small",
    duration=2.0,
    adapter_b=SUBMITTED.adapter,
)
CLOSED: Final = ABTestClosed(ab_test_id=TEST)


def ready(*failed: int) -> ABTestReady:
    return ABTestReady(ab_test_id=TEST, failed=failed)


def vote(pair: int, voter: str = "ann", catch: Arm | None = None) -> ABVoteCast:
    return ABVoteCast(
        ab_test_id=TEST,
        vote_id=vote_id(TEST, pair, voter, catch),
        pair=pair,
        voter=voter,
        choice="left",
        left="B",
        catch=catch,
        heard_first="right",
        seconds_left=2.0,
        seconds_right=1.5,
        notes="warmer",
    )


def _state(test: ABTest | None) -> Json:
    if test is None:
        return {}
    return {
        "id": test.id,
        "status": test.status,
        "pairs": to_builtins(test.pairs),
        "failed": list(test.failed),
        "left_out": list(test.left_out),
        "created_at": test.created_at,
        "ready_at": test.ready_at,
        "closed_at": test.closed_at,
    }


def _facts(test: ABTest | None, event: Any) -> Json:
    pairs = range(len(test.pairs)) if test else range(0)
    left_out = test.left_out if test else ()
    facts: Json = {"made": test is not None and test.ready_at is not None, "status": test.status if test else None}
    match event:
        case ABTestReady(failed=failed):
            facts["known"] = all(number in pairs for number in failed)
            facts["news"] = not set(failed) <= set(left_out)
        case ABVoteCast() as cast:
            facts["heard"] = cast.pair in pairs and cast.pair not in left_out
            facts["trial"] = cast.vote_id == vote_id(cast.ab_test_id, cast.pair, cast.voter, cast.catch)
    return facts


def _accepted(test: ABTest | None, recorded: Recorded) -> bool:
    outcome = test.outcome(recorded.id) if test else None
    return outcome is not None and outcome.reason is None


def _vectors() -> Mapping[str, Sequence[Record]]:
    return {
        "a test becomes ready, is voted on and closed": (run := _log(CREATED, ready(), vote(0), vote(1), CLOSED)),
        "a batch delivered again changes nothing": [*run[:2], *run],
        "what comes before the creation is passed over": _log(ready(), vote(0), CLOSED, b"{", CREATED, ready()),
        "a second creation is refused": _log(CREATED, replace(CREATED, pairs=CREATED.pairs[:1]), ready(1)),
        "pairs that failed are left out": _log(CREATED, ready(1), vote(1), vote(0)),
        "all pairs may have failed": _log(CREATED, ready(0, 1), vote(0)),
        "the pairs that failed stand in their order, each once": _log(CREATED, ready(1, 0, 1)),
        "a pair that is lost later is left out, and was not before": _log(
            CREATED, ready(1), vote(0), ready(0), vote(0, "bob")
        ),
        "what is said again is refused": _log(CREATED, ready(1), ready(1), ready()),
        "a pair that the test has not is refused": _log(CREATED, ready(0, 2), ready(), ready(2), vote(2)),
        "a vote needs a test that is ready": _log(CREATED, vote(0), ready(), vote(0), CLOSED, vote(1)),
        "a vote of the same voter on the same trial is accepted, and does not count": _log(
            CREATED, ready(), vote(0), replace(vote(0), choice="right"), vote(0, "bob"), vote(0, catch="A")
        ),
        "a vote has the id of its trial": _log(
            CREATED,
            ready(),
            replace(vote(0), vote_id="vote-1"),
            replace(vote(0), voter="bob"),
            replace(vote(0), pair=1),
            replace(vote(0), catch="B"),
            replace(vote(0, catch="A"), catch="B"),
        ),
        "a test is closed once": _log(CREATED, ready(), CLOSED, CLOSED),
        "a test may be closed while it is generating": _log(
            CREATED, CLOSED, vote(0), ready(0, 2), ready(1), ready(0), vote(0)
        ),
        "what is out of bounds is no event": _log(
            CREATED,
            encoded(ready(1)).replace(b"[1]", b"[500]"),
            encoded(vote(0)).replace(b'"left"', b'"both"'),
            encoded(vote(0)).replace(b'"ann"', b'""'),
            encoded(vote(0)).replace(b"1.5", b"-1.5"),
            ready(),
        ),
        "an event appended twice under one id holds once": [
            *_log(CREATED, ready(1)),
            headed(record(2, ready(0)), ce_id="event-1"),
        ],
        "an id is forgotten after eight verdicts": [
            *_log(CREATED, ready(1), *([vote(0)] * 8)),
            headed(record(10, ready(0)), ce_id="event-1"),
        ],
        "an unknown type is passed over": _log(CREATED, b'{"type":"ABTestPraised"}', ready()),
        "unknown fields are ignored and missing ones have their default": [
            *_log(CREATED),
            record(1, ready(), value=encoded(ready()).replace(b',"failed":[]', b',"mood":"calm"')),
        ],
        "an unknown version stops the reader": [
            *_log(CREATED),
            headed(record(1, ready()), ce_type="text2song.abtest.ready.v2"),
            record(2, CLOSED),
        ],
        "a tombstone erases nothing here": _log(CREATED, None, ready()),
        "an event of another topic is none": [
            *_log(CREATED),
            record(1, replace(SUBMITTED, job_id=TEST), position=Position("abtests", 0, 1)),
        ],
    }


def _log(*events: Event | bytes | None) -> list[Record]:
    """What is no event calls itself by the type that it has, or a test that is ready."""
    named = [vote(0) if isinstance(event, bytes) and b"ABVoteCast" in event else ready() for event in events]
    return [
        record(offset, event) if isinstance(event, Event) else record(offset, name, value=event)
        for offset, (event, name) in enumerate(zip(events, named, strict=True))
    ]


PUBLISHED: Final = Published(
    accepted=_accepted,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        "status": "generating, ready or closed",
        "pairs": "what both arms are asked for, the first is pair 0",
        "failed": "the pairs that had failed when the test became ready",
        "left_out": "those, and the pairs that were lost since",
        "created_at": "when it was created",
        "ready_at": "when all its jobs had ended",
        "closed_at": "when it was closed",
    },
    conditions={
        "status": "the state's status; null while there is no state",
        "made": "whether ready_at is set",
        "known": "whether all of the event's failed are less than the number of pairs",
        "news": "whether one of the event's failed is not in left_out",
        "heard": "whether the event's pair is less than the number of pairs and not in left_out",
        "trial": "whether vote_id is the UUIDv5, in the namespace of URLs, of "
        "abvote:{ab_test_id}:{pair}:{kind}:{voter} with kind catch where catch is set, else pair. "
        "Of the accepted votes with one vote_id the first counts",
    },
    proposals=[
        CREATED,
        *(ready(*failed) for failed in ((), (0,), (1,), (0, 1), (2,))),
        *(vote(pair) for pair in (0, 1, 2)),
        replace(vote(0), vote_id="vote-1"),
        CLOSED,
    ],
    outcomes=OUTCOMES,
    vectors=_vectors(),
)
