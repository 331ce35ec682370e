from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import to_builtins
from msgspec.structs import replace

from domain.contract import Json, Published
from domain.contract.records import headed, record
from domain.events import Erased
from domain.events.feedback import TOPIC, FeedbackGiven, SampleSnapshot
from domain.feedback import CONTENT, Feedback
from domain.ports import Record

SAMPLE: Final = SampleSnapshot(
    audio_id="sample-1", job_id="job-1", prompt_id="prompt-1", model_id="facebook/musicgen-small"
)
OTHER: Final = replace(SAMPLE, audio_id="sample-2", job_id="job-2", adapter_id="adapter-1")
GIVEN: Final = FeedbackGiven(
    feedback_id="feedback-1",
    sample=SAMPLE,
    other=OTHER,
    verdict="preferred",
    rating=4.5,
    tags=("warm", "tape"),
    notes="the bass is late",
    user_id="user-1",
    heard_first="sample-2",
    seconds_listened={"sample-1": 12.5, "sample-2": 3.0},
    request_digest="digest-1",
)
REVISED: Final = FeedbackGiven(
    feedback_id="feedback-1",
    sample=replace(SAMPLE, model_id="other"),
    rating=2.0,
    created_at="2026-01-30T12:00:00.000000Z",
)
ERASED: Final = Erased(topic=TOPIC.name, key="feedback-1", given_partition_key="job-1")
SHOWN: Final = (*(name for name in CONTENT if name != "request_digest"), "created_at", "updated_at")


def _state(feedback: Feedback | None) -> Json:
    if feedback is None:
        return {}
    return {"id": feedback.id, **{name: to_builtins(getattr(feedback, name)) for name in SHOWN}}


def _facts(_: Feedback | None, event: Any) -> Json:
    return {"dated": event.created_at is not None}


def _vectors() -> Mapping[str, Sequence[Record]]:
    given, revised, erased = record(0, GIVEN), record(1, REVISED), record(2, ERASED)
    return {
        "feedback is given": [given],
        "a revision replaces it whole": [given, revised],
        "a revision alone, once compaction has taken what came before, makes the same": [revised],
        "delivered again it is the same": [given, revised, given, revised],
        "what stands without a date is as old as its event": [revised, record(2, GIVEN)],
        "a tombstone leaves nothing": [given, revised, erased],
        "a tombstone of what nobody knows leaves nothing": [erased],
        "a tombstone is read whatever its headers": [given, replace(record(1, GIVEN), value=None, headers={})],
        "what was erased may be given again": [given, record(1, ERASED), record(2, GIVEN)],
        "a tombstone older than the state changes nothing": [given, record(2, GIVEN), record(1, ERASED)],
        "everything else only moves the position": [
            given,
            record(1, GIVEN, value=b'{"type":"FeedbackPraised"}'),
            record(2, GIVEN, value=b"{"),
        ],
        "a rating that is no half step is undecodable": [
            given,
            record(1, GIVEN, value=(given.value or b"").replace(b"4.5", b"4.25")),
        ],
        "an unknown version stops the reader": [
            given,
            headed(record(1, GIVEN), ce_type="text2song.feedback.given.v2"),
        ],
    }


PUBLISHED: Final = Published(
    accepted=lambda feedback, recorded: feedback is not None and feedback.updated_at == recorded.time,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        "sample": "the sample that was judged, as it was then",
        "other": "the sample that it was compared with, or null",
        "verdict": "how the sample compares with the other one: preferred, tie or both_bad; null without another one",
        "rating": "from 1 to 5 in half steps, or null",
        "tags": "words that a listener filed it under",
        "notes": "what else was said",
        "user_id": "who gave it",
        "heard_first": "the id of the sample that was played first",
        "seconds_listened": "how long each sample was heard, by its id",
        "created_at": "when it was given first",
        "updated_at": "when it was given last",
    },
    conditions={"dated": "whether the event's created_at is set, as in every revision"},
    proposals=[GIVEN, REVISED],
    outcomes=0,
    vectors=_vectors(),
)
