"""LoRA adapters of the network that denoises: one at a time, as requests are carried out one at a time."""

import re
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812
from msgspec.structs import replace

from workers.engine import Adapter, EngineError
from workers.engines import lora
from workers.engines.lora import Addition

KEY: Final = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")
# What ACE-Step's own trainer calls the layers, and diffusers.
OTHERWISE: Final = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}


class Adapters:
    """What an adapter adds is computed beside the layers, whose weights stay as they are. The last one is kept."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network: Final = network
        self._there: str | None = None
        self._hooks: list[Any] = []
        self._scale = 0.0

    def use(self, adapter: Adapter | None) -> None:
        """For what is made from now on. Raises EngineError for one that does not fit; none is used then."""
        wanted = adapter.sha256 if adapter else None
        if wanted != self._there:
            self._there = None
            while self._hooks:
                self._hooks.pop().remove()
            if adapter is not None:
                read = _read(adapter, self._network)
                self._hooks = [layer.register_forward_hook(self._adding(added)) for layer, added in read]
            self._there = wanted
        self._scale = adapter.scale if adapter else 0.0

    def _adding(self, added: Addition) -> Any:
        def add(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + F.linear(F.linear(inputs[0], added.down), added.up) * (added.scaling * self._scale)

        return add


def _read(adapter: Adapter, network: torch.nn.Module) -> list[tuple[torch.nn.Linear, Addition]]:
    """Raises EngineError where the adapter does not fit the network."""
    name = Path(adapter.folder).name
    layers = {path: layer for path, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)}
    changed: dict[str, torch.nn.Linear] = {}

    def find(key: str) -> tuple[str, int, int]:
        found = KEY.fullmatch(key)
        path = found[1] if found else ""
        above, dot, own = path.rpartition(".")
        layer = layers.get(path) or layers.get(f"{above}{dot}{OTHERWISE.get(own, own)}")
        if layer is None:
            raise EngineError(f"Adapter {name} does not fit the model, which has no linear layer for {key}.")
        changed[path] = layer
        return path, layer.out_features, layer.in_features

    pairs = [(changed[path], added) for path, added in lora.read(adapter, find).items()]
    return [
        (layer, replace(added, down=added.down.to(layer.weight), up=added.up.to(layer.weight)))
        for layer, added in pairs
    ]
