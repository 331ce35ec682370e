"""What a training is asked for, and the limits of that."""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain.events.trainings import MAX_SAMPLES
from workers.training.errors import TrainingError

Method: TypeAlias = Literal["taste", "dpo", "sft"]
METHODS: Final[tuple[Method, ...]] = ("taste", "dpo", "sft")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`batch` is clips (taste, sft) or pairs (dpo) of a pass, of which a step has `accumulation`. `alpha` is LoRA's.

    `kl_target` is in nats a code (taste); `beta`, `sft_weight` and `label_smoothing` are those of DPO;
    `text_dropout` is how often a clip's prompt is left out, for guidance (sft, taste). `seconds` is how much of a clip
    is used. `evaluate_every` and `patience` are in steps and in evaluations without a better one. Of `samples` prompts
    a clip is made before and after, to be heard.
    """

    method: Method = "taste"
    steps: int = 60
    rank: int = 8
    alpha: float = 16.0
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    weight_decay: float = 0.0
    batch: int = 12
    accumulation: int = 1
    seed: int = 0
    seconds: float = 10.0
    text_dropout: float = 0.1
    held_out: float = 0.15
    evaluate_every: int = 20
    patience: int = 3
    kl_target: float = 0.02
    beta: float = 20.0
    sft_weight: float = 0.2
    label_smoothing: float = 0.1
    samples: int = 3


DEFAULTS: Final[Mapping[Method, Config]] = {
    "taste": Config(),
    "dpo": Config(method="dpo", steps=100, learning_rate=3e-4, batch=6),
    "sft": Config(method="sft", steps=100, learning_rate=5e-4),
}
# How many pairs, or clips for sft, a method needs.
LEAST: Final[Mapping[str, int]] = {"sft": 8, "dpo": 16, "taste": 24}
# What only some methods use.
OWN: Final[Mapping[str, tuple[Method, ...]]] = {
    "kl_target": ("taste",),
    "beta": ("dpo",),
    "sft_weight": ("dpo",),
    "label_smoothing": ("dpo",),
    "text_dropout": ("taste", "sft"),
}
# Of each number the smallest and the largest that make sense.
LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "steps": (1, 100_000),
    "rank": (1, 128),
    "alpha": (0.01, 100_000),
    "learning_rate": (1e-8, 1.0),
    "warmup_steps": (0, 100_000),
    "weight_decay": (0, 1),
    "batch": (1, 256),
    "accumulation": (1, 256),
    "seed": (0, 2**32 - 1),
    "seconds": (0.5, 30),
    "text_dropout": (0, 0.9),
    "held_out": (0.0, 0.5),
    "evaluate_every": (1, 100_000),
    "patience": (1, 1000),
    "kl_target": (1e-4, 1),
    "beta": (1e-3, 10_000),
    "sft_weight": (0, 100),
    "label_smoothing": (0, 0.49),
    "samples": (0, MAX_SAMPLES),
}


def config(method: str, given: Mapping[str, Any]) -> Config:
    """The method's defaults, and what is given. Raises TrainingError naming a value out of bounds and its limits, or a
    setting that the method has no use for.
    """
    if method not in METHODS:
        raise TrainingError(f"There is no method {method!r}; choose one of {', '.join(METHODS)}.")
    if given.get("method", method) != method:
        raise TrainingError(f"method is {method}, and {given['method']!r} in the configuration; give it once.")
    for name in given:
        if name in OWN and method not in OWN[name]:
            raise TrainingError(f"{name} is a setting of {' and '.join(OWN[name])}; {method} has no use for it.")
    try:
        values = msgspec.structs.asdict(DEFAULTS[method]) | {name: _whole(value) for name, value in given.items()}
        found = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise TrainingError(f"The configuration cannot be used: {error}.") from None
    for name, (low, high) in LIMITS.items():
        value = getattr(found, name)
        if not low <= value <= high:
            raise TrainingError(f"{name} is {value:g}; it must be {low:g} to {high:g}.")
    return replace(found, method=method)


def _whole(value: Any) -> Any:
    """On the log numbers are floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
