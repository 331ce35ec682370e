"""The model registry: what each base model can do, and the limits a request is held to."""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from domain.errors import Fault, InvalidError
from domain.reading import Reader, warnings

MIN_DURATION: Final = 0.5
LONGEST: Final = 300.0


class Model(Struct, frozen=True, kw_only=True):
    """`max_duration` is in seconds, `sample_rate` in Hz; `vram_gb` is what generating its longest clip needs.

    Longer clips, of up to `max_extended_duration` seconds, are made in windows that overlap: each continues the last.

    `revision` is the commit hash on the model hub, where it is known; `notice` is what a listener must be told before
    hearing it.
    """

    id: str
    family: str
    max_duration: float
    max_extended_duration: float
    sample_rate: int
    channels: int
    vram_gb: float
    capabilities: list[str]
    license: str
    revision: str | None = None
    is_active: bool = False
    notice: str | None = None


NANO: Final = Model(
    id="text2song/musicgen-nano",
    family="musicgen",
    max_duration=10.0,
    max_extended_duration=LONGEST,
    sample_rate=16000,
    channels=1,
    vram_gb=0.2,
    capabilities=["text-to-music"],
    license="Apache-2.0",
    notice="This model is tiny and learnt from synthesised songs alone: it sketches what is asked for.",
)

NOISE: Final = Model(
    id="text2song/wiring-noise",
    family="musicgen",
    max_duration=30.0,
    max_extended_duration=LONGEST,
    sample_rate=32000,
    channels=1,
    vram_gb=0.1,
    capabilities=["text-to-music"],
    license="Apache-2.0",
    notice="This model has random weights: what it makes is noise for checking the wiring, not music.",
)


def _musicgen(name: str, vram_gb: float, *, channels: int = 1) -> Model:
    return Model(
        id=f"facebook/musicgen-{name}",
        family="musicgen",
        max_duration=30.0,
        max_extended_duration=LONGEST,
        sample_rate=32000,
        channels=channels,
        vram_gb=vram_gb,
        capabilities=["text-to-music"],
        license="CC-BY-NC-4.0",
    )


KNOWN: Final = (
    NANO,
    NOISE,
    _musicgen("small", 4),
    _musicgen("medium", 10),
    _musicgen("large", 18),
    _musicgen("stereo-small", 4, channels=2),
    _musicgen("stereo-medium", 10, channels=2),
    _musicgen("stereo-large", 18, channels=2),
)


class Registry:
    """The known models, one of which is active: the one that workers have loaded, whose prompts `reader` reads."""

    def __init__(self, active: Model, known: Sequence[Model] = KNOWN, reader: Reader | None = None) -> None:
        self._reader = reader
        self.active = replace(active, is_active=True)
        self.models = (self.active, *(model for model in known if model.id != active.id))

    def usable(self, model_id: str | None) -> Model:
        """The model to generate with, None meaning the active one. Raises InvalidError for any that is not loaded."""
        if model_id is None or model_id == self.active.id:
            return self.active
        if any(model.id == model_id for model in self.models):
            detail = (
                f"Model {model_id} is not active; the active model is {self.active.id}. "
                f"Leave model_id out, or start the studio with TEXT2SONG_MODEL={model_id}."
            )
        else:
            names = ", ".join(model.id for model in self.models)
            detail = f"Model {model_id} is unknown; the active model is {self.active.id}, the known ones are {names}."
        raise InvalidError([Fault("/model_id", detail)])

    def warnings(self, model: Model, prompt: str) -> list[str]:
        """What the model does not read of a prompt, as far as that is known here."""
        if self._reader is None or model.id != self.active.id:
            return []
        return warnings(model.id, self._reader(prompt))

    def notice(self, model_id: str) -> str | None:
        """What a listener must be told before hearing this model."""
        return next((model.notice for model in self.models if model.id == model_id), None)
