"""Describes the folder of a diffusers pipeline: its family, limits and files, without importing torch."""

import math
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Struct

from domain import families
from domain.models import MIN_DURATION, Model, capabilities
from workers.engine import EngineError
from workers.engines.weight_files import brief, weights

INDEX: Final = "model_index.json"
# Riffusion is a Stable Diffusion that was trained on pictures of sound: its files do not tell one from the other.
FAMILIES: Final = {
    "StableAudioPipeline": "stable-audio",
    "StableAudio3Pipeline": "stable-audio-3",
    "AceStepPipeline": "ace-step",
    "StableDiffusionPipeline": "riffusion",
    "StableDiffusionImg2ImgPipeline": "riffusion",
    "RiffusionPipeline": "riffusion",
}
# By family, the parts that have weights.
NETWORKS: Final = {
    "stable-audio": ("vae", "text_encoder", "projection_model", "transformer"),
    "stable-audio-3": ("vae", "text_encoder", "duration_embedder", "transformer"),
    "ace-step": ("vae", "text_encoder", "condition_encoder", "transformer"),
    "riffusion": ("vae", "text_encoder", "unet"),
}
# By family, the part that adapters change.
DENOISERS: Final = {family: parts[-1] for family, parts in NETWORKS.items()}
OTHERS: Final = ("tokenizer", "scheduler")
# These are not loaded: what they do is not asked for.
SPARED: Final = {
    "ace-step": ("audio_tokenizer", "audio_token_detokenizer"),
    "riffusion": ("safety_checker", "feature_extractor", "image_encoder"),
}
# In seconds, the longest clip, where the files do not say less.
LIMITS: Final = {"stable-audio": 300.0, "stable-audio-3": 380.0, "ace-step": 600.0, "riffusion": 300.0}
# The libraries that a part's class may come from: its name is imported.
LIBRARIES: Final = (["diffusers"], ["transformers"], ["stable_audio"], ["stable_audio_3"], ["ace_step"])
STEMS: Final = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)

Count = Annotated[int, msgspec.Meta(ge=1)]
T = TypeVar("T")


class Codec(Struct):
    sampling_rate: Count = 44100
    audio_channels: Count = 2
    downsampling_ratios: tuple[Count, ...] = (2, 4, 4, 8, 8)


class Denoiser(Struct):
    sample_size: Count = 1024


class Projection(Struct):
    max_value: float = 512.0


class DurationEmbedder(Struct):
    max_val: float = 384.0


class AceStep(Struct):
    is_turbo: bool = False


class Pipeline(Struct, frozen=True, kw_only=True):
    """`files` are all that makes the model what it is. Without guidance, that is part of the weights."""

    family: str
    has_guidance: bool
    sample_rate: int
    channels: int
    max_duration: float
    files: list[Path]

    def model(self, model_id: str, known: Model | None) -> Model:
        """`known` is what the registry says of it, which may allow less."""
        gigabytes = sum(file.stat().st_size for file in self.files) / 1e9
        longest = min(self.max_duration, known.max_extended_duration) if known else self.max_duration
        own = families.FAMILIES[self.family]
        return Model(
            id=model_id,
            family=self.family,
            max_duration=longest,
            max_extended_duration=longest,
            sample_rate=self.sample_rate,
            channels=self.channels,
            vram_gb=known.vram_gb if known else round(1 + 1.3 * gigabytes, 1),
            capabilities=capabilities(self.family, stereo=self.channels == 2),
            parameters=own.parameters,
            guidance_scale=own.guidance_scale if self.has_guidance else None,
            min_duration=max(MIN_DURATION, own.min_duration),
            license=known.license if known else "unknown",
        )


def is_pipeline(folder: Path) -> bool:
    return (folder / INDEX).exists()


def read(name: str, folder: Path, way_out: str) -> Pipeline:
    """Raises EngineError if the pipeline is of another class than those that can be run, or lacks a file."""
    index = _decoded(name, folder / INDEX, way_out, dict[str, Any])
    kind = str(index.get("_class_name"))
    family = FAMILIES.get(kind)
    if family is None:
        raise EngineError(
            f"Model {name} is a {kind} of diffusers; those that can be run are {', '.join(sorted(FAMILIES))}."
        )
    files = [folder / INDEX]
    for part in (*NETWORKS[family], *OTHERS):
        if not (folder / part).is_dir() or part not in index:
            raise EngineError(f"Model {name} is incomplete: it has no {part} in {folder}. {way_out}")
        files += sorted((folder / part).glob("*.*" if part in OTHERS else "*.json"))
        if part in NETWORKS[family]:
            files += weights(name, folder / part, way_out, STEMS)
    for part, source in index.items():
        if isinstance(source, list) and part not in SPARED.get(family, ()) and source[:1] not in LIBRARIES:
            said = f"its {part} is said to come from {source[:1]}, which is none of the libraries that make music"
            raise EngineError(f"Model {name} cannot be loaded: {said}.")
    codec = Codec()
    if family != "riffusion":
        codec = _decoded(name, folder / "vae" / "config.json", way_out, Codec)
    longest = math.floor(_longest(name, folder, way_out, family, codec) * 1000) / 1000
    if longest < MIN_DURATION:
        raise EngineError(
            f"Model {name} is limited to clips of {longest:g} s; at least {MIN_DURATION:g} s are required."
        )
    has_guidance = True
    if family == "ace-step":
        has_guidance = not _decoded(name, folder / "transformer" / "config.json", way_out, AceStep).is_turbo
    return Pipeline(
        family=family,
        has_guidance=has_guidance,
        sample_rate=codec.sampling_rate,
        channels=1 if family == "riffusion" else codec.audio_channels,
        max_duration=longest,
        files=files,
    )


def _longest(name: str, folder: Path, way_out: str, family: str, codec: Codec) -> float:
    """In seconds."""
    said = LIMITS[family]
    match family:
        case "stable-audio":
            frames = _decoded(name, folder / "transformer" / "config.json", way_out, Denoiser).sample_size
            taught = _decoded(name, folder / "projection_model" / "config.json", way_out, Projection).max_value
            made = frames * math.prod(codec.downsampling_ratios) / codec.sampling_rate
            return min(said, made, taught)
        case "stable-audio-3":
            embedder = _decoded(name, folder / "duration_embedder" / "config.json", way_out, DurationEmbedder)
            return min(said, embedder.max_val)
        case _:
            return said


def _decoded(name: str, path: Path, way_out: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise EngineError(f"Model {name} has no {path.name} in {path.parent}. {way_out}") from error
    except (msgspec.DecodeError, OSError) as error:
        said = f"Model {name} has a broken {path.name} in {path.parent}: {brief(error)}. {way_out}"
        raise EngineError(said, transient=isinstance(error, OSError)) from error
