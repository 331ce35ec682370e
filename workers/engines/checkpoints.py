"""Resolves a model's name to its files and limits, without importing torch."""

import math
import re
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Final

import httpx2
import huggingface_hub
import msgspec
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from msgspec import Struct
from msgspec.structs import replace

from domain import models
from domain.models import KNOWN, LONGEST, MIN_DURATION, NANO, NOISE, Model
from workers.engine import EngineError

LONGEST_WINDOW: Final = 30.0
ANSWER_SECONDS: Final = 8.0
HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
# A melody model is given text alone.
KINDS: Final = frozenset({"musicgen", "musicgen_melody"})
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
    model_type: str = "nothing"
    audio_encoder: Codec = msgspec.field(default_factory=Codec)
    decoder: Decoder = msgspec.field(default_factory=Decoder)

    @property
    def max_duration(self) -> float:
        """In seconds, to the millisecond: the position table must hold every frame and the codebooks' delay."""
        frames = self.decoder.max_position_embeddings - self.decoder.num_codebooks // self.decoder.audio_channels + 1
        seconds = frames * math.prod(self.audio_encoder.upsampling_ratios) / self.audio_encoder.sampling_rate
        return min(LONGEST_WINDOW, math.floor(seconds * 1000) / 1000)


def resolve(name: str) -> Checkpoint:
    """Finds the built-in model, the folder, or the hub model in the local cache. Uses no network.

    Raises EngineError if there is no such model, or its files are incomplete or unsupported.
    """
    for checkpoint in BUILT_IN:
        if name == checkpoint.model.id:
            return checkpoint
    if (folder := _folder(name)) is not None:
        return _local(name, folder)
    if not HUB_NAME.fullmatch(name):
        raise EngineError(
            f"There is no model {name}: give a folder that exists, or a name such as facebook/musicgen-small."
        )
    return _cached(name)


def pull(name: str) -> Checkpoint:
    """Downloads a hub model into the local cache, with a progress bar; other models need no download.

    Raises EngineError, within seconds if the hub does not answer.
    """
    here = any(name == checkpoint.model.id for checkpoint in BUILT_IN) or _folder(name) is not None
    if here or not HUB_NAME.fullmatch(name):
        return resolve(name)
    # The hub's client sets no timeout, so it would wait forever for a server that does not answer.
    huggingface_hub.get_session().event_hooks["request"].append(_lose_patience)
    try:
        files = {file.rfilename for file in huggingface_hub.HfApi().model_info(name).siblings or []}
        if "config.json" not in files:
            raise EngineError(f"{name} is not a MusicGen checkpoint: it has no config.json.")
        _config(name, Path(huggingface_hub.hf_hub_download(name, "config.json")), "")
        safe = any(file.endswith(".safetensors") for file in files)
        weights = "model*.safetensors" if safe else "pytorch_model*.bin"
        huggingface_hub.snapshot_download(name, allow_patterns=[*DESCRIPTION, weights])
    except GatedRepoError as error:
        raise EngineError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, "
            "log in with `hf auth login`, and try again."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise EngineError(f"The Hugging Face hub has no public model {name}; check the spelling.") from error
    except OfflineModeIsEnabled as error:
        raise EngineError(
            f"{name} cannot be downloaded while HF_HUB_OFFLINE is set; unset it and try again."
        ) from error
    except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise EngineError(
            f"{name} could not be downloaded from {constants.ENDPOINT} ({_brief(error)}); "
            "check the connection and try again, or give the folder of a checkpoint."
        ) from error
    except OSError as error:
        raise EngineError(f"{name} could not be stored in the local cache: {_brief(error)}.") from error
    return resolve(name)


def _folder(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # the home of a user whom this machine does not know
        return None
    return folder if folder.is_dir() else None


def _lose_patience(request: httpx2.Request) -> None:
    request.extensions["timeout"] = httpx2.Timeout(ANSWER_SECONDS).as_dict()


def _local(name: str, folder: Path) -> Checkpoint:
    """Two folders of one name are two models, and a folder whose weights changed is another one than before."""
    way_out = "Give the folder of a whole MusicGen checkpoint."
    checkpoint = _read(name, folder, f"local/{folder.resolve().name}", way_out)
    digest = sha256()
    try:
        for path in (folder / "config.json", *_weights(name, folder, way_out)):
            with path.open("rb") as file:
                digest.update(file_digest(file, "sha256").digest())
    except OSError as error:
        raise EngineError(f"Model {name} cannot be read: {_brief(error)}. {way_out}") from error
    revision = digest.hexdigest()
    model = replace(checkpoint.model, id=f"{checkpoint.model.id}@{revision[:12]}", revision=revision)
    return replace(checkpoint, model=model)


def _cached(name: str) -> Checkpoint:
    way_out = f"Download it with `text2song models pull {name}`, or give the folder of a checkpoint."
    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=[*DESCRIPTION]))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise EngineError(f"Model {name} is not on this machine. {way_out}") from error
    checkpoint = _read(name, folder, name, way_out)
    return replace(checkpoint, model=replace(checkpoint.model, revision=folder.name))


def _read(name: str, folder: Path, model_id: str, way_out: str) -> Checkpoint:
    config = _config(name, folder / "config.json", way_out)
    if not any((folder / file).exists() for file in ("tokenizer.json", "spiece.model")):
        raise EngineError(f"Model {name} has no tokenizer: tokenizer.json is missing in {folder}. {way_out}")
    gigabytes = sum(file.stat().st_size for file in _weights(name, folder, way_out)) / 1e9
    known = next((model for model in KNOWN if model.id == model_id), None)
    model = Model(
        id=model_id,
        family="musicgen",
        max_duration=config.max_duration,
        max_extended_duration=LONGEST,
        sample_rate=config.audio_encoder.sampling_rate,
        channels=config.decoder.audio_channels,
        vram_gb=known.vram_gb if known else round(1 + 1.3 * gigabytes, 1),
        capabilities=["text-to-music"],
        license=known.license if known else "unknown",
        decoder=models.Decoder(
            layers=config.decoder.num_hidden_layers,
            hidden=config.decoder.hidden_size,
            inner=config.decoder.ffn_dim,
        ),
    )
    return Checkpoint(model=model, folder=folder)


def _config(name: str, path: Path, way_out: str) -> Config:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=Config)
    except FileNotFoundError as error:
        raise EngineError(f"Model {name} has no config.json in {path.parent}. {way_out}".rstrip()) from error
    except (msgspec.DecodeError, OSError) as error:
        raise EngineError(f"Model {name} has a broken config.json: {_brief(error)}. {way_out}".rstrip()) from error
    if config.model_type not in KINDS:
        raise EngineError(f"Model {name} is of type {config.model_type}; only musicgen models can be loaded.")
    if config.max_duration < MIN_DURATION:
        raise EngineError(
            f"Model {name} is limited to clips of {config.max_duration:g} s; at least {MIN_DURATION:g} s are required."
        )
    return config


def _weights(name: str, folder: Path, way_out: str) -> list[Path]:
    for stem in WEIGHTS:
        index = folder / f"{stem}.index.json"
        if (folder / stem).exists():
            return [folder / stem]
        if index.exists():
            files = sorted({folder / file for file in _shards(name, index, way_out)})
            missing = [file.name for file in files if not file.exists()]
            if missing:
                raise EngineError(f"Model {name} is incomplete: {missing[0]} is missing in {folder}. {way_out}")
            return files
    raise EngineError(f"Model {name} has no weights: {WEIGHTS[0]} is missing in {folder}. {way_out}")


class ShardIndex(Struct):
    weight_map: dict[str, str]


def _shards(name: str, index: Path, way_out: str) -> set[str]:
    try:
        return set(msgspec.json.decode(index.read_bytes(), type=ShardIndex).weight_map.values())
    except (msgspec.DecodeError, OSError) as error:
        raise EngineError(f"Model {name} has a broken {index.name}: {_brief(error)}. {way_out}") from error


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
