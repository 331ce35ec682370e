from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct, field

from domain.events import ErrorText, Event, Identifier, Label, ModelId
from domain.events.feedback import Notes, Seconds
from domain.events.jobs import AdapterSnapshot, Lyrics, Parameters, Sampling, Seed
from domain.events.prompts import MAX_SECONDS, MAX_TEXT, MAX_WORDING
from domain.ports import Topic

Arm: TypeAlias = Literal["A", "B"]
Side: TypeAlias = Literal["left", "right"]
Choice: TypeAlias = Literal["left", "right", "tie", "both_bad"]

TOPIC: Final = Topic("abtests", partitions=4)
MAX_PAIRS: Final = 500
CATCH_SHARE: Final = 0.1  # of a voter's trials, at most
PairIndex: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_PAIRS)]


class Pair(Struct, frozen=True, kw_only=True):
    """What both arms are asked for. `model_prompt` and `warnings` are as in JobSubmitted."""

    prompt_id: Identifier
    prompt: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    seed: Seed
    model_prompt: Annotated[str, Meta(min_length=1, max_length=MAX_WORDING)] | None = None
    warnings: Annotated[tuple[ErrorText, ...], Meta(max_length=10)] = ()


class ABTestEvent(Event, frozen=True, kw_only=True):
    topic = TOPIC.name
    ab_test_id: Identifier

    @property
    def key(self) -> str:
        return self.ab_test_id


class ABTestCreated(ABTestEvent, frozen=True, kw_only=True, tag="ABTestCreated"):
    """The whole intention: the jobs of all pairs follow from it. An arm without an adapter is the base model.

    `catch_trials` is how many trials of identical sides each voter is given besides the pairs. `parameters` and
    `lyrics` are as in JobSubmitted, of every job.
    """

    name = "abtest.created"
    test_name: Label
    pairs: Annotated[tuple[Pair, ...], Meta(min_length=1, max_length=MAX_PAIRS)]
    model_id: ModelId
    duration: Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
    adapter_a: AdapterSnapshot | None = None
    adapter_b: AdapterSnapshot | None = None
    sampling: Sampling = Sampling()
    model_revision: Label | None = None
    catch_trials: Annotated[int, Meta(ge=0, le=MAX_PAIRS)] = 0
    user_id: Label | None = None
    request_digest: Label | None = None
    parameters: Parameters = field(default_factory=dict)
    lyrics: Lyrics | None = None


class ABTestReady(ABTestEvent, frozen=True, kw_only=True, tag="ABTestReady"):
    """Every job of the test has ended. `failed` are the pairs that have no two samples, and are left out."""

    name = "abtest.ready"
    failed: Annotated[tuple[PairIndex, ...], Meta(max_length=MAX_PAIRS)] = ()


class ABVoteCast(ABTestEvent, frozen=True, kw_only=True, tag="ABVoteCast"):
    """A voter's choice between the two sides of a trial. Of one voter and trial, the first vote on the log counts.

    `left` is the arm on the left, and the right one is the other. In a catch trial both sides are of the arm `catch`.
    """

    name = "abtest.vote.cast"
    vote_id: Identifier
    pair: PairIndex
    voter: Annotated[str, Meta(min_length=1, max_length=200)]
    choice: Choice
    left: Arm
    catch: Arm | None = None
    heard_first: Side | None = None
    seconds_left: Seconds | None = None
    seconds_right: Seconds | None = None
    notes: Notes | None = None


class ABTestClosed(ABTestEvent, frozen=True, kw_only=True, tag="ABTestClosed"):
    """No vote counts after it."""

    name = "abtest.closed"


EVENTS: Final = (ABTestCreated, ABTestReady, ABVoteCast, ABTestClosed)
