"""Resolves a model's name to its files and limits, without importing torch."""

import math
import re
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Final

import huggingface_hub
import msgspec
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from msgspec import Struct
from msgspec.structs import replace

from domain import models
from domain.models import KNOWN, LONGEST, MIN_DURATION, NANO, NOISE, Model
from workers.chroma import TONES
from workers.engine import EngineError
from workers.engines import pipelines
from workers.engines.weight_files import brief, weights

LONGEST_WINDOW: Final = 30.0
HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
MELODY: Final = "musicgen_melody"
KINDS: Final = frozenset({"musicgen", MELODY})
DESCRIPTION: Final = ("*.json", "*.model", "*.txt")

Count = Annotated[int, msgspec.Meta(ge=1)]


class Checkpoint(Struct, frozen=True, kw_only=True):
    """A model that can be loaded. `folder` is None for the noise model, which has no files."""

    model: Model
    folder: Path | None = None


BUILT_IN: Final = (
    Checkpoint(model=NANO, folder=Path(__file__).parent / "musicgen" / "nano" / "checkpoint"),
    Checkpoint(model=NOISE),
)


class Codec(Struct):
    sampling_rate: Count = 24000
    upsampling_ratios: tuple[Count, ...] = (8, 5, 4, 2)


class Decoder(Struct):
    num_codebooks: Count = 4
    audio_channels: Count = 1
    max_position_embeddings: Count = 2048
    num_hidden_layers: Count = 24
    hidden_size: Count = 1024
    ffn_dim: Count = 4096


class Config(Struct):
    """`num_chroma` is how many tones a melody model hears."""

    model_type: str = "nothing"
    num_chroma: Count = TONES
    audio_encoder: Codec = msgspec.field(default_factory=Codec)
    decoder: Decoder = msgspec.field(default_factory=Decoder)

    @property
    def is_melody(self) -> bool:
        return self.model_type == MELODY and self.num_chroma == TONES

    @property
    def max_duration(self) -> float:
        """In seconds, to the millisecond: the position table must hold every frame and the codebooks' delay."""
        frames = self.decoder.max_position_embeddings - self.decoder.num_codebooks // self.decoder.audio_channels + 1
        seconds = frames * math.prod(self.audio_encoder.upsampling_ratios) / self.audio_encoder.sampling_rate
        return min(LONGEST_WINDOW, math.floor(seconds * 1000) / 1000)


def resolve(name: str) -> Checkpoint:
    """Finds the built-in model, the folder, or the hub model in the local cache. Uses no network.

    Raises EngineError if there is no such model, or its files are incomplete or unsupported, and a transient one where
    the disk does not give them.
    """
    for checkpoint in BUILT_IN:
        if name == checkpoint.model.id:
            return checkpoint
    if (folder := find_folder(name)) is not None:
        return _local(name, folder)
    if not HUB_NAME.fullmatch(name):
        raise EngineError(
            f"There is no model {name}: give a folder that exists, or a name such as facebook/musicgen-small."
        )
    return _cached(name)


def find_folder(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # the home of a user whom this machine does not know
        return None
    return folder if folder.is_dir() else None


def _local(name: str, folder: Path) -> Checkpoint:
    """Two folders of one name are two models, and a folder whose weights changed is another one than before."""
    way_out = "Give the folder of a whole checkpoint."
    checkpoint = _read(name, folder, f"local/{folder.resolve().name}", way_out)
    digest = sha256()
    try:
        for path in _files(name, folder, way_out):
            with path.open("rb") as file:
                digest.update(file_digest(file, "sha256").digest())
    except OSError as error:
        raise EngineError(f"Model {name} cannot be read: {brief(error)}. {way_out}", transient=True) from error
    revision = digest.hexdigest()
    model = replace(checkpoint.model, id=f"{checkpoint.model.id}@{revision[:12]}", revision=revision)
    return replace(checkpoint, model=model)


def _cached(name: str) -> Checkpoint:
    way_out = f"Download it with `text2song models pull {name}`, or give the folder of a checkpoint."
    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=[*DESCRIPTION]))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise EngineError(f"Model {name} is not on this machine. {way_out}") from error
    except OSError as error:
        raise EngineError(f"Model {name} cannot be read: {brief(error)}. {way_out}", transient=True) from error
    checkpoint = _read(name, folder, name, way_out)
    return replace(checkpoint, model=replace(checkpoint.model, revision=folder.name))


def _files(name: str, folder: Path, way_out: str) -> list[Path]:
    """All that makes the model what it is."""
    if pipelines.is_pipeline(folder):
        return pipelines.read(name, folder, way_out).files
    return [folder / "config.json", *weights(name, folder, way_out)]


def _read(name: str, folder: Path, model_id: str, way_out: str) -> Checkpoint:
    known = next((model for model in KNOWN if model.id == model_id), None)
    if pipelines.is_pipeline(folder):
        model = pipelines.read(name, folder, way_out).model(model_id, known)
        return Checkpoint(model=model, folder=folder)
    config = read_config(name, folder / "config.json", way_out)
    if not any((folder / file).exists() for file in ("tokenizer.json", "spiece.model")):
        raise EngineError(f"Model {name} has no tokenizer: tokenizer.json is missing in {folder}. {way_out}")
    gigabytes = sum(file.stat().st_size for file in weights(name, folder, way_out)) / 1e9
    model = Model(
        id=model_id,
        family="musicgen",
        max_duration=config.max_duration,
        max_extended_duration=LONGEST,
        sample_rate=config.audio_encoder.sampling_rate,
        channels=config.decoder.audio_channels,
        vram_gb=known.vram_gb if known else round(1 + 1.3 * gigabytes, 1),
        capabilities=models.capabilities(
            "musicgen", stereo=config.decoder.audio_channels == 2, melody=config.is_melody
        ),
        license=known.license if known else "unknown",
        decoder=models.Decoder(
            layers=config.decoder.num_hidden_layers,
            hidden=config.decoder.hidden_size,
            inner=config.decoder.ffn_dim,
        ),
    )
    return Checkpoint(model=model, folder=folder)


def read_config(name: str, path: Path, way_out: str) -> Config:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=Config)
    except FileNotFoundError as error:
        raise EngineError(f"Model {name} has no config.json in {path.parent}. {way_out}".rstrip()) from error
    except (msgspec.DecodeError, OSError) as error:
        said = f"Model {name} has a broken config.json: {brief(error)}. {way_out}".rstrip()
        raise EngineError(said, transient=isinstance(error, OSError)) from error
    if config.model_type not in KINDS:
        raise EngineError(
            f"Model {name} is of type {config.model_type}; only musicgen models can be loaded, and "
            f"pipelines of diffusers ({', '.join(pipelines.LIMITS)})."
        )
    if config.max_duration < MIN_DURATION:
        raise EngineError(
            f"Model {name} is limited to clips of {config.max_duration:g} s; at least {MIN_DURATION:g} s are required."
        )
    return config
