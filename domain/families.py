"""What the models of a family can do, and the parameters that they take besides those of every request."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, get_args

from msgspec import Struct

from domain.events.jobs import MAX_PARAMETER_TEXT

Kind: TypeAlias = Literal["number", "integer", "text", "choice", "switch"]
# Such as wait for `pip install`: nothing of a studio needs them but the models themselves.
DIFFUSION: Final = "diffusion"


class Parameter(Struct, frozen=True, kw_only=True):
    """`low` and `high` bound a number, both within; the default may lie outside, where it leaves it to the model.

    A choice is one of `choices`, a text has up to `max_length` characters.
    """

    name: str
    kind: Kind
    default: str | float | int | bool
    description: str
    low: float | None = None
    high: float | None = None
    choices: list[str] = []
    max_length: int | None = None


class Family(Struct, frozen=True, kw_only=True):
    """Those that `draws_tokens` take `temperature`, `top_k` and `top_p`. `guidance_scale` is the default of a request,
    `min_duration` in seconds. `extra` is the optional part of the installation that has their engine.
    """

    capabilities: list[str]
    parameters: list[Parameter] = []
    guidance_scale: float = 3.0
    min_duration: float = 0.5
    draws_tokens: bool = False
    extra: str | None = None


# Those that music can grow out of: the names are Riffusion's own.
SeedImage: TypeAlias = Literal[
    "agile",
    "marim",
    "mask_beat_lines_80",
    "mask_gradient_dark",
    "mask_gradient_top_70",
    "mask_graident_top_fifth_75",
    "mask_top_third_75",
    "mask_top_third_95",
    "motorway",
    "og_beat",
    "vibes",
]
SEED_IMAGES: Final[tuple[str, ...]] = get_args(SeedImage)
TIME_SIGNATURES: Final = ("", "2", "3", "4", "6")


def _steps(default: int, high: int) -> Parameter:
    description = "How many steps lead from noise to audio: more take longer."
    if default == 0:
        description = f"{description[:-1]}; 0 takes as many as the model was made for."
    return Parameter(
        name="num_inference_steps", kind="integer", default=default, low=1, high=high, description=description
    )


def _text(name: str, default: str, description: str, max_length: int = MAX_PARAMETER_TEXT) -> Parameter:
    return Parameter(name=name, kind="text", default=default, max_length=max_length, description=description)


def _share(name: str, default: float, description: str) -> Parameter:
    return Parameter(name=name, kind="number", default=default, low=0, high=1, description=description)


_RIFFUSION: Final = [
    _text("prompt_b", "", "A second prompt that the music moves towards."),
    _share("alpha", 0.5, "How far it has moved from the prompt to prompt_b."),
    _share("denoising", 0.75, "How much of the seed image is made anew."),
    _steps(50, 1_000),
    Parameter(
        name="seed_image_id",
        kind="choice",
        default="vibes",
        choices=list(SEED_IMAGES),
        description="The picture of a sound that the music grows out of.",
    ),
]
_ACE_STEP: Final = [
    Parameter(
        name="bpm",
        kind="integer",
        default=0,
        low=30,
        high=300,
        description="Beats a minute; 0 leaves the tempo to the model.",
    ),
    _text("key", "", "The key, such as C major or F# minor; empty leaves it to the model.", 40),
    Parameter(
        name="timesignature",
        kind="choice",
        default="",
        choices=list(TIME_SIGNATURES),
        description="Beats in a bar: 2, 3, 4, or 6 for six eighths; empty leaves it to the model.",
    ),
    _text("vocal_language", "en", "The language of the lyrics as a code, such as en, de or ja.", 20),
    _steps(8, 200),
    Parameter(
        name="shift",
        kind="number",
        default=3.0,
        low=1,
        high=5,
        description="How much of the steps goes into the broad outline instead of the details.",
    ),
]
_NEGATIVE: Final = _text("negative_prompt", "", "What is not to be heard; it takes a guidance_scale over 1.")

FAMILIES: Final[Mapping[str, Family]] = {
    "musicgen": Family(
        capabilities=["text-to-music", "adapters", "continuation", "seeds", "best_of"], draws_tokens=True
    ),
    "riffusion": Family(
        capabilities=["text-to-music", "adapters", "seeds"], parameters=_RIFFUSION, guidance_scale=7.0, extra=DIFFUSION
    ),
    "ace-step": Family(
        capabilities=["text-to-music", "adapters", "lyrics", "seeds"],
        parameters=_ACE_STEP,
        guidance_scale=7.0,
        min_duration=10.0,
        extra=DIFFUSION,
    ),
    "stable-audio": Family(
        capabilities=["text-to-music", "adapters", "seeds"],
        parameters=[_steps(100, 500), _NEGATIVE],
        guidance_scale=7.0,
        extra=DIFFUSION,
    ),
    "stable-audio-3": Family(
        capabilities=["text-to-music", "adapters", "seeds"],
        parameters=[_steps(0, 500), _NEGATIVE],
        guidance_scale=1.0,
        extra=DIFFUSION,
    ),
}
