from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

from domain.events import Event, Identifier, Label, ModelId, Moment
from domain.ports import Topic

Verdict: TypeAlias = Literal["preferred", "tie", "both_bad"]

TOPIC: Final = Topic("feedback", partitions=12, compacted=True)
RATINGS: Final = (1.0, 5.0)  # both ends are within, in half steps
MAX_TAGS: Final = 20
MAX_TAG: Final = 50
MAX_NOTES: Final = 4_000
MAX_SECONDS_LISTENED: Final = 86_400.0
Rating: TypeAlias = Annotated[float, Meta(ge=RATINGS[0], le=RATINGS[1], multiple_of=0.5)]
Tag: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_TAG)]
Notes: TypeAlias = Annotated[str, Meta(max_length=MAX_NOTES)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=MAX_SECONDS_LISTENED)]


class SampleSnapshot(Struct, frozen=True, kw_only=True):
    """A sample as it was when somebody judged it, so that readers look nothing up."""

    audio_id: Identifier
    job_id: Identifier
    prompt_id: Identifier
    model_id: ModelId
    adapter_id: Identifier | None = None


class FeedbackGiven(Event, frozen=True, kw_only=True, tag="FeedbackGiven"):
    """One listener's judgement of a sample. Given again under the same id, it replaces the earlier one whole.

    `verdict` says how the sample compares with `other`, another one of the same prompt; both are null where none was
    compared. `seconds_listened` is by sample id, `heard_first` the id of the sample that was played first.
    `created_at` is when it was given first, where this is a revision: compaction may have taken the earlier event.
    """

    topic = TOPIC.name
    name = "feedback.given"
    feedback_id: Identifier
    sample: SampleSnapshot
    other: SampleSnapshot | None = None
    verdict: Verdict | None = None
    rating: Rating | None = None
    tags: Annotated[tuple[Tag, ...], Meta(max_length=MAX_TAGS)] = ()
    notes: Notes | None = None
    user_id: Label | None = None
    heard_first: Identifier | None = None
    seconds_listened: Annotated[dict[Identifier, Seconds], Meta(max_length=2)] = field(default_factory=dict)
    request_digest: Label | None = None
    created_at: Moment | None = None

    @property
    def key(self) -> str:
        return self.feedback_id

    @property
    def partition_key(self) -> str:
        return self.sample.job_id


EVENTS: Final = (FeedbackGiven,)
