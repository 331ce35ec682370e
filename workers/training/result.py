"""What came of a training, as it is kept beside the adapter."""

from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from workers.training.config import Config

RESULT: Final = "training.json"
Figures: TypeAlias = dict[str, float]
Status: TypeAlias = Literal["completed", "nothing_learnt", "stopped"]


class Sample(Struct, frozen=True, kw_only=True):
    """A prompt's clips of one seed, by the base model and by the adapter: `before` and `after` are FLACs beside
    training.json. Where it `is_held_out`, the adapter has not learnt from the prompt.
    """

    prompt: str
    seed: int
    seconds: float
    is_held_out: bool
    before: str
    after: str


class Result(Struct, frozen=True, kw_only=True):
    """What training.json holds. `sha256` is that of the adapter's weights."""

    status: Status
    message: str
    config: Config
    base_model: str
    base_revision: str | None
    dataset: dict[str, Any]
    code_version: str
    made_of: str
    metrics: Figures = {}
    curve: list[Figures] = []
    hears: list[dict[str, Any]] = []
    warnings: list[str] = []
    left_out: list[str] = []
    samples: list[Sample] = []
    sha256: str | None = None
    seconds: float = 0.0
