"""What a listener says of a sample: a rating, a preference over another sample of the same prompt, tags, notes.

Given again, it replaces the earlier one whole. The state follows from the newest event alone: the topic is compacted,
so that any earlier one may be gone from the log.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from domain.errors import Fault, InvalidError, KeyReusedError, NotFoundError, plain
from domain.events import MAX_LABEL, Erased, Recorded
from domain.events.feedback import (
    MAX_NOTES,
    MAX_SECONDS_LISTENED,
    MAX_TAG,
    MAX_TAGS,
    RATINGS,
    TOPIC,
    FeedbackGiven,
    SampleSnapshot,
    Verdict,
)
from domain.idempotency import digest
from domain.ports import View
from domain.prompts import control_faults


class Revision(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """At least a rating, a preference, tags or notes. `preferred_over` names the other sample, also for a tie."""

    audio_id: str | None = None
    rating: Annotated[float | None, Meta(examples=[4.5])] = None
    preferred_over: str | None = None
    verdict: Verdict | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    user_id: str | None = None
    heard_first: str | None = None
    seconds_listened: dict[str, float] = {}


class FeedbackRequest(Revision, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """At least a rating, a preference, tags or notes. `preferred_over` names the other sample, also for a tie."""

    audio_id: str


class Feedback(Struct, frozen=True, kw_only=True):
    id: str
    sample: SampleSnapshot
    other: SampleSnapshot | None
    verdict: Verdict | None
    rating: float | None
    tags: tuple[str, ...]
    notes: str | None
    user_id: str | None
    heard_first: str | None
    seconds_listened: Mapping[str, float]
    request_digest: str | None
    created_at: str
    updated_at: str
    partition: int
    position: int

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The jobs whose deletion takes this feedback with it."""
        return (self.sample.job_id,) if self.other is None else (self.sample.job_id, self.other.job_id)

    @property
    def compared_with(self) -> SampleSnapshot | None:
        """The other sample, where the two can be compared: a stranger's event may name any."""
        if self.other is None or self.verdict is None or self.other.audio_id == self.sample.audio_id:
            return None
        return self.other if self.other.prompt_id == self.sample.prompt_id else None


SIDES: Final = ("audio_id", "job_id", "adapter_id", "model_id")
FEEDBACK: Final = View(
    TOPIC.name,
    Feedback,
    fields=lambda feedback: {
        **{name: getattr(feedback.sample, name) for name in SIDES},
        **{f"other_{name}": getattr(feedback.other, name, None) for name in SIDES},
        "user_id": feedback.user_id,
        "rating": feedback.rating,
        "tag": tuple(dict.fromkeys(feedback.tags)),
    },
    filters=(*SIDES, *(f"other_{name}" for name in SIDES), "user_id", "rating", "tag"),
    several=("tag",),
)


def give(
    feedback: Feedback | None,
    feedback_id: str,
    request: FeedbackRequest,
    sample: SampleSnapshot | None,
    other: SampleSnapshot | None,
) -> list[FeedbackGiven]:
    """A repeated request gives nothing. `sample` and `other` are those that the request names, as far as they exist.

    Raises KeyReusedError when the id was used for another request, NotFoundError for a sample that is not there, and
    InvalidError.
    """
    if feedback is not None:
        if feedback.request_digest != digest(request):
            raise KeyReusedError(
                "This Idempotency-Key was sent before with other feedback; use a new key for new feedback."
            )
        return []
    if sample is None:
        raise NotFoundError("audio sample", request.audio_id)
    return [_given(feedback_id, request, sample, other, request_digest=digest(request))]


def revise(
    feedback: Feedback | None, feedback_id: str, request: Revision, other: SampleSnapshot | None
) -> list[FeedbackGiven]:
    """Raises NotFoundError, and InvalidError also for a revision that is about another sample."""
    if feedback is None:
        raise NotFoundError("feedback", feedback_id)
    if request.audio_id not in {None, feedback.sample.audio_id}:
        detail = (
            f"audio_id is {request.audio_id!r}, but this feedback is about {feedback.sample.audio_id!r}. "
            "Leave audio_id out, or give new feedback about the other sample."
        )
        raise InvalidError([Fault("/audio_id", detail)])
    kept = {name: getattr(feedback, name) for name in ("request_digest", "created_at")}
    revised = _given(feedback_id, request, feedback.sample, other, **kept)
    is_same = all(getattr(revised, name) == getattr(feedback, name) for name in CONTENT)
    return [] if is_same else [revised]


def erase(feedback: Feedback | None, feedback_id: str) -> list[Erased]:
    if feedback is None:
        raise NotFoundError("feedback", feedback_id)
    return [Erased(topic=TOPIC.name, key=feedback.id, given_partition_key=feedback.sample.job_id)]


CONTENT: Final = (
    "sample",
    "other",
    "verdict",
    "rating",
    "tags",
    "notes",
    "user_id",
    "heard_first",
    "seconds_listened",
    "request_digest",
)


def evolve(feedback: Feedback | None, recorded: Recorded) -> Feedback | None:
    at = recorded.position
    if feedback is not None and at.offset <= feedback.position:
        return feedback
    match recorded.event:
        case FeedbackGiven() as event:
            return Feedback(
                id=event.feedback_id,
                **{name: getattr(event, name) for name in CONTENT},
                created_at=event.created_at or recorded.time,
                updated_at=recorded.time,
                partition=at.partition,
                position=at.offset,
            )
    return None if feedback is None else msgspec.structs.replace(feedback, position=at.offset)


def _given(
    feedback_id: str, request: Revision, sample: SampleSnapshot, other: SampleSnapshot | None, **kept: str | None
) -> FeedbackGiven:
    if faults := [*_comparison_faults(request, sample, other), *_faults(request, sample)]:
        raise InvalidError(faults)
    return FeedbackGiven(
        feedback_id=feedback_id,
        sample=sample,
        other=other,
        verdict=(request.verdict or "preferred") if other else None,
        rating=None if request.rating is None else float(request.rating),
        tags=_tags(request),
        notes=_notes(request),
        user_id=request.user_id,
        heard_first=request.heard_first,
        seconds_listened=request.seconds_listened,
        **kept,
    )


def _tags(request: Revision) -> tuple[str, ...]:
    """Without the spaces around each, and each once."""
    return tuple(dict.fromkeys(tag.strip() for tag in request.tags))


def _notes(request: Revision) -> str | None:
    return (request.notes or "").strip() or None


def _comparison_faults(request: Revision, sample: SampleSnapshot, other: SampleSnapshot | None) -> Iterator[Fault]:
    if request.preferred_over is None:
        if request.verdict is not None:
            detail = f"verdict is {request.verdict}, which needs two samples; name the other one as preferred_over."
            yield Fault("/verdict", detail)
    elif request.preferred_over == sample.audio_id:
        detail = f"preferred_over is {sample.audio_id!r}, the sample itself; name another sample of the same prompt."
        yield Fault("/preferred_over", detail)
    elif other is None:
        detail = (
            f"There is no audio sample {request.preferred_over!r} to compare with; name another of the same prompt."
        )
        yield Fault("/preferred_over", detail)
    elif other.prompt_id != sample.prompt_id:
        detail = (
            f"preferred_over is of prompt {other.prompt_id!r}, and the sample of {sample.prompt_id!r}; "
            "only samples of one prompt can be compared."
        )
        yield Fault("/preferred_over", detail)


def _faults(request: Revision, sample: SampleSnapshot) -> Iterator[Fault]:
    low, high = RATINGS
    if (rating := request.rating) is not None and not (low <= rating <= high and rating % 0.5 == 0):
        detail = f"rating is {plain(rating)}; give {plain(low)} to {plain(high)} in steps of a half, such as 3.5."
        yield Fault("/rating", detail)
    yield from _text_faults(request)
    if request.user_id is not None and not 1 <= len(request.user_id) <= MAX_LABEL:
        yield Fault("/user_id", f"user_id has {len(request.user_id):,} characters; it must have 1 to {MAX_LABEL}.")
    heard = [sample.audio_id, *([request.preferred_over] if request.preferred_over else [])]
    either = " or ".join(map(repr, heard))
    if request.heard_first is not None and request.heard_first not in heard:
        yield Fault("/heard_first", f"heard_first is {request.heard_first!r}; this feedback is about {either}.")
    for name, seconds in request.seconds_listened.items():
        pointer = f"/seconds_listened/{name.replace('~', '~0').replace('/', '~1')}"
        if name not in heard:
            yield Fault(pointer, f"seconds_listened names {name!r}; this feedback is about {either}.")
        elif not 0 <= seconds <= MAX_SECONDS_LISTENED:
            longest = plain(MAX_SECONDS_LISTENED)
            yield Fault(pointer, f"{name} was heard for {plain(seconds)} s; give 0 to {longest} s.")
    says = (rating, request.preferred_over, request.verdict, request.tags or None, _notes(request))
    if all(part is None for part in says):
        yield Fault("", "This feedback says nothing; give at least a rating, preferred_over, tags or notes.")


def notes_faults(notes: str | None) -> Iterator[Fault]:
    if len(notes or "") > MAX_NOTES:
        yield Fault("/notes", f"notes has {len(notes or ''):,} characters; the limit is {MAX_NOTES:,}.")


def _text_faults(request: Revision) -> Iterator[Fault]:
    if (count := len(_tags(request))) > MAX_TAGS:
        yield Fault("/tags", f"tags has {count:,} different entries; the limit is {MAX_TAGS}.")
    for index, tag in enumerate(request.tags):
        if not 1 <= len(tag.strip()) <= MAX_TAG:
            detail = f"The tag has {len(tag.strip()):,} characters; it must have 1 to {MAX_TAG}."
            yield Fault(f"/tags/{index}", detail)
    notes = _notes(request) or ""
    yield from notes_faults(notes)
    for pointer, text in [("/notes", notes), *((f"/tags/{index}", tag) for index, tag in enumerate(request.tags))]:
        yield from control_faults(text, pointer)
