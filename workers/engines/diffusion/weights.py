"""Reads a pipeline's folder into the classes of diffusers."""

import threading
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from workers.engines.pipelines import INDEX, NETWORKS, SPARED

CLASSES: Final = {
    "stable-audio": "StableAudioPipeline",
    "stable-audio-3": "StableAudio3Pipeline",
    "ace-step": "AceStepPipeline",
    "riffusion": "StableDiffusionImg2ImgPipeline",
}


def read(folder: Path, family: str, dtype: torch.dtype) -> Any:
    """With a damaged file any exception can come."""
    # The lock of its own would be one between processes, which stays behind when this one is killed.
    import_module("tqdm").tqdm.set_lock(threading.RLock())
    diffusers: Any = import_module("diffusers")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    index = msgspec.json.decode((folder / INDEX).read_bytes())
    networks = {part: _network(folder / part, dtype, *index[part]) for part in NETWORKS[family]}
    spared = dict.fromkeys(part for part in SPARED.get(family, ()) if part in index)
    if "safety_checker" in spared:
        spared["requires_safety_checker"] = False
    kind = getattr(diffusers, CLASSES[family])
    pipeline = kind.from_pretrained(folder, **networks, **spared, local_files_only=True, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _network(folder: Path, dtype: torch.dtype, library: str, name: str) -> Any:
    """The libraries give weights that the files lack random values."""
    of_its_own = library not in {"diffusers", "transformers"}
    kind = getattr(import_module(f"diffusers.pipelines.{library}" if of_its_own else library), name)
    network, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, dtype=dtype)
    if absent := sorted(report["missing_keys"]):
        raise ValueError(f"the weights of its {folder.name} lack {absent[0]}.")
    return network.eval()
