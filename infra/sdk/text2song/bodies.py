"""What a studio answers, as far as a program mostly needs it; fields that are not here are passed over.

Times are ISO 8601 in UTC, durations in seconds.
"""

from typing import Any, Literal

from msgspec import Struct

JobStatus = Literal["queued", "processing", "completed", "failed", "cancelling", "cancelled"]
Verdict = Literal["preferred", "tie", "both_bad"]


class FeedbackCount(Struct, frozen=True, kw_only=True):
    count: int
    mean_rating: float | None


class Job(Struct, frozen=True, kw_only=True):
    """`progress` is 0 to 100; `sample_ids` are those that are finished, also while others are being made."""

    id: str
    prompt: str
    prompt_id: str
    model_id: str
    status: JobStatus
    progress: float
    created_at: str
    sample_ids: list[str]
    adapter_id: str | None = None
    stage: str | None = None
    eta_seconds: float | None = None
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    generation_params: dict[str, Any] = {}
    feedback: FeedbackCount | None = None
    warnings: list[str] = []
    lyrics: str | None = None

    @property
    def is_over(self) -> bool:
        return self.status in {"completed", "failed", "cancelled"}


class Melody(Struct, frozen=True, kw_only=True):
    """An uploaded clip for new music to follow the tones of."""

    id: str
    duration_seconds: float
    sample_rate: int
    size: int
    sha256: str
    created_at: str


class AdapterName(Struct, frozen=True, kw_only=True):
    name: str
    version: str


class Score(Struct, frozen=True, kw_only=True):
    seed: int
    likelihood: float | None = None
    preference: float | None = None


class Sample(Struct, frozen=True, kw_only=True):
    """`loudness_lufs` is None for silence. `scores` are of the candidates that it is the best of."""

    id: str
    job_id: str
    prompt: str
    duration_seconds: float
    sample_rate: int
    channels: int
    sha256: str
    stream_url: str
    created_at: str
    adapter: AdapterName | None = None
    loudness_lufs: float | None = None
    scores: list[Score] = []
    picked_by: Literal["likelihood", "preference"] | None = None
    generation_params: dict[str, Any] = {}
    lyrics: str | None = None


class Feedback(Struct, frozen=True, kw_only=True):
    id: str
    audio_id: str
    created_at: str
    rating: float | None = None
    preferred_over: str | None = None
    verdict: Verdict | None = None
    tags: list[str] = []
    notes: str | None = None
    user_id: str | None = None


class Difference(Struct, frozen=True, kw_only=True):
    """`values` are by the samples' ids."""

    parameter: str
    values: dict[str, Any]


class Comparison(Struct, frozen=True, kw_only=True):
    samples: list[Sample]
    same_prompt: bool
    differences: list[Difference]
