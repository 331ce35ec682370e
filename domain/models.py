"""The model registry: what each base model can do, the limits a request is held to, and the choice of the default."""

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct, convert
from msgspec.structs import asdict, replace

from domain.errors import Fault, InvalidError, UnavailableError
from domain.events import Recorded
from domain.events.models import TOPIC, ModelActivated
from domain.events.progress import LoadedModel, WorkerAlive
from domain.families import FAMILIES, Parameter
from domain.ports import View
from domain.reading import Reader, tempo_warnings, warnings

MIN_DURATION: Final = 0.5
DEFAULT_DURATION: Final = 8.0
LONGEST: Final = 300.0  # of a clip in windows, each of which continues the last
# Of a window, this share at its end is the beginning of the next one.
KEPT_SHARE: Final = 0.4
STABILITY: Final = "Stability-AI-Community"


class Decoder(Struct, frozen=True, kw_only=True):
    """The sizes that an adapter's weights have to fit: layers, their width, and that of their inner step."""

    layers: int
    hidden: int
    inner: int


class Model(Struct, frozen=True, kw_only=True):
    """Durations are in seconds, `sample_rate` in Hz; `vram_gb` is what generating its longest clip needs.

    Longer clips than `max_duration`, of up to `max_extended_duration`, are made in windows that overlap: each continues
    the last.

    `parameters` are those it takes besides those of every request; `guidance_scale` is its default, None where it has
    no guidance. `revision` is the commit hash on the model hub, where it is known; `notice` is what a listener must be
    told before hearing it; `decoder` is None where its sizes are not known. `tempi` are the slowest and the fastest
    that it plays, in beats a minute, None where they are not known.
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
    decoder: Decoder | None = None
    tempi: tuple[int, int] | None = None
    min_duration: float = MIN_DURATION
    parameters: list[Parameter] = []
    guidance_scale: float | None = 3.0

    @property
    def draws_tokens(self) -> bool:
        """Whether it takes temperature, top_k and top_p, as those of a family that is not known may do."""
        family = FAMILIES.get(self.family)
        return family is None or family.draws_tokens

    def may(self, capability: str) -> bool:
        """Whether it can do that, as those of a family that is not known may be able to."""
        return capability in self.capabilities or self.family not in FAMILIES

    @property
    def usual_duration(self) -> float:
        """In seconds, where a request and its prompt name none."""
        return max(self.min_duration, min(DEFAULT_DURATION, self.max_duration))

    @property
    def kept_duration(self) -> float:
        """The seconds of each window that the next one begins with."""
        return self.max_duration * KEPT_SHARE


NANO: Final = Model(
    id="text2song/musicgen-nano",
    family="musicgen",
    max_duration=30.0,
    max_extended_duration=LONGEST,
    sample_rate=16000,
    channels=1,
    vram_gb=0.2,
    capabilities=FAMILIES["musicgen"].capabilities,
    license="Apache-2.0",
    notice="This model is tiny and learnt from synthesised songs alone: it sketches what is asked for.",
    decoder=Decoder(layers=6, hidden=256, inner=768),
    tempi=(70, 140),
)

NOISE: Final = Model(
    id="text2song/wiring-noise",
    family="musicgen",
    max_duration=30.0,
    max_extended_duration=LONGEST,
    sample_rate=32000,
    channels=1,
    vram_gb=0.1,
    capabilities=FAMILIES["musicgen"].capabilities,
    license="Apache-2.0",
    notice="This model has random weights: what it makes is noise for checking the wiring, not music.",
    decoder=Decoder(layers=2, hidden=64, inner=128),
)


SMALL: Final = Decoder(layers=24, hidden=1024, inner=4096)
MEDIUM: Final = Decoder(layers=48, hidden=1536, inner=6144)
LARGE: Final = Decoder(layers=48, hidden=2048, inner=8192)


def _musicgen(name: str, vram_gb: float, decoder: Decoder) -> Model:
    return Model(
        id=f"facebook/musicgen-{name}",
        family="musicgen",
        max_duration=30.0,
        max_extended_duration=LONGEST,
        sample_rate=32000,
        channels=2 if name.startswith("stereo") else 1,
        vram_gb=vram_gb,
        capabilities=capabilities("musicgen", stereo=name.startswith("stereo"), melody="melody" in name),
        license="CC-BY-NC-4.0",
        decoder=decoder,
    )


def _diffusion(id_: str, family: str, seconds: float, vram_gb: float, license_: str, **own: Any) -> Model:
    """In stereo at 44.1 kHz, and as its family, unless its `own` values say otherwise."""
    found = FAMILIES[family]
    fields = {
        "max_duration": seconds,
        "max_extended_duration": seconds,
        "sample_rate": 44100,
        "channels": 2,
        "min_duration": found.min_duration,
        "guidance_scale": found.guidance_scale,
        **own,
    }
    return Model(
        id=id_,
        family=family,
        vram_gb=vram_gb,
        license=license_,
        parameters=found.parameters,
        capabilities=capabilities(family, stereo=fields["channels"] == 2),
        **fields,
    )


def capabilities(family: str, *, stereo: bool, melody: bool = False) -> list[str]:
    return [*FAMILIES[family].capabilities, *(["melody"] if melody else []), *(["stereo"] if stereo else [])]


KNOWN: Final = (
    NANO,
    NOISE,
    _musicgen("small", 4, SMALL),
    _musicgen("medium", 10, MEDIUM),
    _musicgen("large", 18, LARGE),
    _musicgen("stereo-small", 4, SMALL),
    _musicgen("stereo-medium", 10, MEDIUM),
    _musicgen("stereo-large", 18, LARGE),
    _musicgen("melody", 10, MEDIUM),
    _musicgen("melody-large", 18, LARGE),
    _musicgen("stereo-melody", 10, MEDIUM),
    _musicgen("stereo-melody-large", 18, LARGE),
    _diffusion(
        "riffusion/riffusion-model-v1",
        "riffusion",
        300.0,
        4,
        "CreativeML-OpenRAIL-M",
        channels=1,
    ),
    # Its guidance is part of its weights.
    _diffusion(
        "ACE-Step/acestep-v15-xl-turbo-diffusers", "ace-step", 600.0, 20, "MIT", sample_rate=48000, guidance_scale=None
    ),
    _diffusion("stabilityai/stable-audio-open-1.0", "stable-audio", 47.0, 8, STABILITY),
    _diffusion("stabilityai/stable-audio-3-small-music", "stable-audio-3", 120.0, 4, STABILITY),
    _diffusion("stabilityai/stable-audio-3-medium", "stable-audio-3", 380.0, 10, STABILITY),
)


# DiffRhythm writes whole songs with lyrics; this does so too.
STAND_IN: Final = next(model for model in KNOWN if model.family == "ace-step")


def is_stood_in_for(model_id: str) -> bool:
    return "diffrhythm" in model_id.lower()


def stand_in_warnings(asked: str | None, model: Model) -> list[str]:
    """That another model than the one asked for makes the music, where that is so."""
    if asked is None or asked == model.id:
        return []
    return [f"{asked} has no engine here: {model.id}, which writes whole songs with lyrics too, makes this instead."]


def described(model: Model) -> Model:
    """The model with what is known of it, or else of its family, where it does not say what it takes."""
    family = FAMILIES.get(model.family)
    if family is None or model.parameters or not family.parameters:
        return model
    known = next((known for known in KNOWN if known.id == model.id), None)
    return replace(
        model,
        parameters=family.parameters,
        capabilities=capabilities(model.family, stereo=model.channels == 2),
        guidance_scale=known.guidance_scale if known else family.guidance_scale,
        min_duration=max(model.min_duration, family.min_duration),
    )


WORKING: Final = frozenset({"ready", "busy"})
CHOICE: Final = "default"  # the id of the studio's one choice


class ModelChoice(Struct, frozen=True, kw_only=True):
    """The model that requests get which name none."""

    id: str
    model_id: str
    created_at: str
    updated_at: str
    partition: int
    position: int


MODEL_CHOICES: Final = View(TOPIC.name, ModelChoice)


def activate(choice: ModelChoice | None, model_id: str) -> list[ModelActivated]:
    if choice is not None and choice.model_id == model_id:
        return []
    return [ModelActivated(choice_id=CHOICE, model_id=model_id)]


def evolve(choice: ModelChoice | None, recorded: Recorded) -> ModelChoice | None:
    at = recorded.position
    if choice is not None and at.offset <= choice.position:
        return choice
    match recorded.event:
        case ModelActivated(choice_id=id_, model_id=model_id):
            return ModelChoice(
                id=id_,
                model_id=model_id,
                created_at=choice.created_at if choice else recorded.time,
                updated_at=recorded.time,
                partition=at.partition,
                position=at.offset,
            )
    return None if choice is None else replace(choice, position=at.offset)


class Registry:
    """The known models, one of which is active: the one that requests get which name none.

    `reader` reads the prompts of the model that this process was started with. `workers` are those that live: what they
    have loaded may be asked for by name.
    """

    def __init__(
        self,
        start: Model,
        known: Sequence[Model] = KNOWN,
        reader: Reader | None = None,
        *,
        workers: Sequence[WorkerAlive] = (),
        chosen: str | None = None,
    ) -> None:
        """`start` is active unless another one was chosen. Of a choice that is not known nothing can be asked for until
        a worker with it is heard of.
        """
        self._start = start
        self._known = known
        self._reader = reader
        self.workers: dict[str, list[WorkerAlive]] = {}
        for alive in workers:
            if alive.state in WORKING:
                self.workers.setdefault(alive.model_id, []).append(alive)
        start = described(start)
        models = {start.id: start, **{model.id: model for model in known if model.id != start.id}}
        for id_, working in self.workers.items():
            if loaded := working[-1].model:
                models[id_] = _told(models.get(id_), id_, loaded)
        self._away = None if chosen is None or chosen in models else chosen
        shown = start.id if chosen is None or self._away else chosen
        self.active = replace(models.pop(shown), is_active=self._away is None)
        self.models = (self.active, *models.values())

    def now(self, chosen: str | None, workers: Sequence[WorkerAlive]) -> "Registry":
        return Registry(self._start, self._known, self._reader, workers=workers, chosen=chosen)

    def find(self, model_id: str) -> Model | None:
        return next((model for model in self.models if model.id == model_id), None)

    def usable(self, model_id: str | None) -> Model:
        """The model to generate with, None meaning the active one. Raises InvalidError for any that is not loaded, and
        UnavailableError for the active one while no worker has said what it takes.
        """
        active = self._away or self.active.id
        if model_id is None or model_id == active:
            if self._away:
                raise UnavailableError(
                    f"The active model {active} has no worker just now. Start one with TEXT2SONG_MODEL, ask again when "
                    "it is back, name another model_id, or activate another model (PATCH /models/active)."
                )
            return self.active
        model = self.find(model_id)
        if model is None and is_stood_in_for(model_id):
            return self._stand_in(model_id)
        if model is not None and model_id in self.workers:
            return model
        if model is not None:
            detail = (
                f"Model {model_id} is not active; the active model is {active}, and no worker has the other "
                f"one loaded. Leave model_id out, or start the studio or a worker with TEXT2SONG_MODEL={model_id}."
            )
        else:
            names = ", ".join(model.id for model in self.models)
            detail = f"Model {model_id} is unknown; the active model is {active}, the known ones are {names}."
        raise InvalidError([Fault("/model_id", detail)])

    def _stand_in(self, model_id: str) -> Model:
        """Raises InvalidError where no worker has one."""
        for model in self.models:
            if model.family == STAND_IN.family and (model.is_active or model.id in self.workers):
                return model
        detail = (
            f"{model_id} has no engine here; {STAND_IN.id} stands in for it, but no worker has that loaded. Start the "
            f"studio or a worker with TEXT2SONG_MODEL={STAND_IN.id}, or leave model_id out."
        )
        raise InvalidError([Fault("/model_id", detail)])

    def family(self, model_id: str | None) -> str:
        """The family of a model, None meaning the active one; of one that nobody knows, its id."""
        model = self.find(self._away or self.active.id) if model_id is None else self.find(model_id)
        if model is None and is_stood_in_for(model_id or ""):
            return STAND_IN.family
        return model.family if model else model_id or ""

    def activable(self, model_id: str) -> Model:
        """The model, if a worker has it, or if it was active at the start. Raises InvalidError."""
        start = self.find(self._start.id) if model_id == self._start.id else None
        return start or self.usable(model_id)

    def warnings(self, model: Model, prompt: str) -> list[str]:
        """What the model does not read of a prompt or cannot do, as far as that is known here."""
        found = tempo_warnings(model.id, model.tempi, prompt) if model.tempi else []
        if self._reader is None or model.id != self._start.id:
            return found
        return [*warnings(model.id, self._reader(prompt)), *found]

    def notice(self, model_id: str) -> str | None:
        """What a listener must be told before hearing this model."""
        return next((model.notice for model in self.models if model.id == model_id), None)


def _told(known: Model | None, id_: str, loaded: LoadedModel) -> Model:
    """A model as its workers tell of it, where this process does not know better."""
    if known is None:
        longest = loaded.max_extended_duration or loaded.max_duration
        can = list(loaded.capabilities) or ["text-to-music"]
        if not loaded.capabilities and loaded.family in FAMILIES:
            can = capabilities(loaded.family, stereo=loaded.channels == 2)
        computed = {"id": id_, "capabilities": can, "max_extended_duration": longest}
        return described(convert(asdict(loaded) | computed, Model))
    return replace(known, revision=known.revision or loaded.revision)
