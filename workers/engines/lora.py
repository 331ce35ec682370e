"""A LoRA adapter's files, as an engine reads them from its folder."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load_file

from workers.engine import Adapter, EngineError


class LoraConfig(Struct):
    """The part of PEFT's adapter_config.json that changes what an adapter computes."""

    r: int
    lora_alpha: float
    peft_type: str = "LORA"
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}

    def rank(self, module: str) -> int:
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.r)

    def scaling(self, module: str) -> float:
        alpha = self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


class Addition(Struct, frozen=True):
    """What an adapter adds to a layer's output: `down` is `[rank, in]`, `up` `[out, rank]`."""

    down: torch.Tensor
    up: torch.Tensor
    scaling: float


def read(adapter: Adapter, find: Callable[[str], tuple[str, int, int]]) -> dict[str, Addition]:
    """Of each layer that it changes, by the layer's path. `find` tells of the name of a weight the path of its layer,
    and that layer's out and in; it raises EngineError for a layer that the model has not.

    Raises EngineError for files that are no plain LoRA of such layers, and a transient one where the disk refuses.
    """
    folder = Path(adapter.folder)
    try:
        config = msgspec.json.decode((folder / "adapter_config.json").read_bytes(), type=LoraConfig)
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, msgspec.DecodeError, SafetensorError) as error:
        said = f"Adapter {folder.name} cannot be read: {str(error).splitlines()[0]}"
        raise EngineError(said, transient=isinstance(error, OSError)) from error
    if (config.peft_type, config.use_dora, config.fan_in_fan_out, config.bias) != ("LORA", False, False, "none"):
        raise EngineError(f"Adapter {folder.name} is no plain LoRA; DoRA, biases and transposes are not supported.")
    if not tensors:
        raise EngineError(f"Adapter {folder.name} is empty: it changes no weights.")
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        path, outputs, inputs = find(name)
        half, rank = name.removesuffix(".weight")[-1], config.rank(path)
        expected = (rank, inputs) if half == "A" else (outputs, rank)
        if tuple(tensor.shape) != expected:
            raise EngineError(
                f"Adapter {folder.name} does not fit the model: {name} is {list(tensor.shape)}, "
                f"and {list(expected)} is expected."
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise EngineError(f"Adapter {folder.name} is damaged: {name} holds values that are not finite numbers.")
        halves.setdefault(path, {})[half] = tensor
    if cut := next((path for path, found in halves.items() if len(found) < 2), None):
        raise EngineError(f"Adapter {folder.name} is incomplete: {cut} has lora_{min(halves[cut])} only.")
    return {path: Addition(found["A"], found["B"], config.scaling(path)) for path, found in halves.items()}


def _pattern(patterns: Mapping[str, object], module: str) -> str:
    """The first key that the end of the module's path matches, as PEFT looks it up."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)
