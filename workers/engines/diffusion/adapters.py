"""LoRA adapters of the network that denoises: one at a time, as requests are carried out one at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812
from msgspec import Struct

from workers.engine import Adapter, EngineError
from workers.engines import lora

PREFIX: Final = "base_model.model."


class Pair(Struct, frozen=True):
    """What is added to the output of a layer: `down` is `[rank, in]`, `up` `[out, rank]`."""

    layer: torch.nn.Linear
    down: torch.Tensor
    up: torch.Tensor
    scaling: float


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
                pairs = list(_pairs(adapter, self._network))
                self._hooks = [pair.layer.register_forward_hook(self._adding(pair)) for pair in pairs]
            self._there = wanted
        self._scale = adapter.scale if adapter else 0.0

    def _adding(self, pair: Pair) -> Any:
        def add(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + F.linear(F.linear(inputs[0], pair.down), pair.up) * (pair.scaling * self._scale)

        return add


def _pairs(adapter: Adapter, network: torch.nn.Module) -> Iterator[Pair]:
    """Raises EngineError where the adapter does not fit the network."""
    name = Path(adapter.folder).name
    config, tensors = lora.read(adapter)
    layers = dict(network.named_modules())
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, half = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        layer = layers.get(path)
        if not isinstance(layer, torch.nn.Linear) or half not in {"A", "B"}:
            raise EngineError(f"Adapter {name} does not fit the model, which has no linear layer for {key}.")
        rank = config.rank(path)
        expected = (rank, layer.in_features) if half == "A" else (layer.out_features, rank)
        if tuple(tensor.shape) != expected:
            raise EngineError(
                f"Adapter {name} does not fit the model: {key} is {list(tensor.shape)}, "
                f"and {list(expected)} is expected."
            )
        halves.setdefault(path, {})[half] = tensor.to(layer.weight)
    for path, pair in halves.items():
        if len(pair) < 2:
            raise EngineError(f"Adapter {name} is incomplete: {path} has lora_{min(pair)} only.")
        yield Pair(network.get_submodule(path), pair["A"], pair["B"], config.scaling(path))  # type: ignore[arg-type]
