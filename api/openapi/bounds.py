"""The bounds that requests are refused by in words of their own, as JSON Schema for the document."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias, get_args

from api.doors import audio_v2, tracks
from api.http.pages import MAX_LIMIT, MAX_OFFSET
from domain import ab_tests, trainings, webhooks
from domain.events import MAX_LABEL
from domain.events.ab_tests import MAX_PAIRS
from domain.events.adapters import NAME_FORM, VERSION_FORM
from domain.events.datasets import MAX_HELD_OUT
from domain.events.feedback import MAX_NOTES, MAX_TAG, RATINGS
from domain.events.jobs import LABELS, MAX_LYRICS, MAX_PARAMETERS, MAX_SAMPLES, RANGES, SEEDS
from domain.events.prompts import MAX_TEXT
from domain.events.trainings import Method
from domain.jobs import Status
from domain.models import KNOWN, MIN_DURATION
from projections.feedback import DIMENSIONS

Schema: TypeAlias = dict[str, Any]
VISIBLE: Final = r"\S"


def _from(low: float, high: float) -> Schema:
    return {"minimum": low, "maximum": high}


def _long(low: int, high: int) -> Schema:
    return {"minLength": low, "maxLength": high}


_RATING: Final = {**_from(*RATINGS), "multipleOf": 0.5}
_SEED: Final = _from(0, SEEDS - 1)
_LONGEST: Final = max(model.max_extended_duration for model in KNOWN)
_PROMPT: Final = {**_long(1, MAX_TEXT), "pattern": VISIBLE}

PARAMETERS: Final[Mapping[str, Schema]] = {
    "limit": _from(1, MAX_LIMIT),
    "offset": _from(0, MAX_OFFSET),
    "min_rating": _from(*RATINGS),
    "max_rating": _from(*RATINGS),
}
# Of parameters that are texts to the route, by operation.
CHOICES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("listJobs", "status"): get_args(Status),
    ("listAudio", "status"): get_args(Status),
    ("listABTests", "status"): get_args(ab_tests.Status),
    ("listTrainings", "status"): get_args(trainings.Status),
    ("listTrainings", "method"): get_args(Method),
    ("listWebhookDeliveries", "status"): get_args(webhooks.Status),
    ("getFeedbackStatistics", "group_by"): tuple(DIMENSIONS),
}
# Of every body that has the field, unless the body's own entry says otherwise.
FIELDS: Final[Mapping[str, Schema]] = {
    **{name: _from(*bounds) for name, bounds in RANGES.items()},
    **dict.fromkeys(("user_id", *LABELS), _long(1, MAX_LABEL)),
    "prompt": _PROMPT,
    "seed": _SEED,
    "num_samples": _from(1, MAX_SAMPLES),
    "duration": _from(MIN_DURATION, _LONGEST),
    "continue_seconds": _from(MIN_DURATION, _LONGEST),
    "lyrics": {**_long(1, MAX_LYRICS), "pattern": VISIBLE},
    "parameters": {"maxProperties": MAX_PARAMETERS},
    "rating": _RATING,
    "notes": _long(0, MAX_NOTES),
}
_DECODED: Final = {"top_p": {"exclusiveMinimum": 0, "maximum": RANGES["top_p"][1]}}
OWN: Final[Mapping[str, Mapping[str, Schema]]] = {
    "GenerationRequest": {
        **_DECODED,
        "seeds": {"minItems": 1, "maxItems": MAX_SAMPLES, "items": _SEED},
        "webhook_events": {"minItems": 1},
    },
    "Rerun": {
        **_DECODED,
        "seeds": {"minItems": 1, "maxItems": MAX_SAMPLES, "items": _SEED},
        "webhook_events": {"minItems": 1},
    },
    "PromptRequest": {"text": _PROMPT},
    "TrackRequest": {"duration": _from(*tracks.DURATIONS)},
    "AudioGenerationRequest": {
        **{name: _from(*bounds) for name, bounds in audio_v2.BOUNDS.items()},
        "webhook_events": {"minItems": 1},
    },
    "ABTestRequest": {
        **_DECODED,
        "name": {**_long(1, MAX_LABEL), "pattern": VISIBLE},
        "prompts": {"minItems": 1, "maxItems": MAX_PAIRS, "items": _PROMPT},
        "prompt_ids": {"minItems": 1, "maxItems": MAX_PAIRS},
        "pairs_per_prompt": _from(1, MAX_PAIRS),
        "catch_trials": _from(0, MAX_PAIRS),
    },
    "FeedbackRequest": {"tags": {"items": _long(1, MAX_TAG)}},
    "Revision": {"tags": {"items": _long(1, MAX_TAG)}},
    "FilterQuery": {"min_rating": _RATING, "max_rating": _RATING},
    "DatasetRequest": {"held_out": _from(0, MAX_HELD_OUT)},
    "TrainingRequest": {
        "adapter_name": {**_long(1, 100), "pattern": f"^(?:{NAME_FORM})$"},
        "adapter_version": {**_long(1, 100), "pattern": f"^(?:{VERSION_FORM})$"},
    },
    "KeyRequest": {"owner": {**_long(1, MAX_LABEL), "pattern": VISIBLE}, "scopes": {"minItems": 1}},
}


def narrow(schema: Schema, bounds: Schema) -> None:
    """Lays the bounds on the schema, in a choice on those of its parts that they are about."""
    for part in _parts(schema):
        kind = part.get("type")
        part |= {name: value for name, value in bounds.items() if name != "items" and _is_of(name, kind)}
        if "items" in bounds and kind == "array":
            narrow(part["items"], bounds["items"])


def _parts(schema: Schema) -> Iterator[Schema]:
    choices = schema.get("anyOf") or schema.get("oneOf")
    for part in choices or [schema]:
        if choices is not None and ("anyOf" in part or "oneOf" in part):
            yield from _parts(part)
        else:
            yield part


def _is_of(name: str, kind: str | None) -> bool:
    if name in {"minLength", "maxLength", "pattern"}:
        return kind == "string"
    if name == "maxProperties":
        return kind == "object"
    return kind == "array" if name in {"minItems", "maxItems"} else kind in {"integer", "number"}
