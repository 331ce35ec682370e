"""LoRA adapters side by side: each takes some columns of shared matrices, and each row of a batch uses its own."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from msgspec import Struct

from workers.engine import Adapter, EngineError
from workers.engines import lora

COLUMNS: Final = 128
WIDTHS: Final = 16  # the columns in use are counted in steps of this many
KEY: Final = re.compile(
    r"base_model\.model\.(?:decoder\.)?(model\.decoder\.layers\.(\d+)\.((?:self_attn|encoder_attn)\.)?(\w+))"
    r"\.lora_(A|B)\.weight"
)
# Of a layer: the module's name in the library, the matrix it is a part of, and which part of it.
SITES: Final = {
    "self_attn.q_proj": ("qkv", 0),
    "self_attn.k_proj": ("qkv", 1),
    "self_attn.v_proj": ("qkv", 2),
    "self_attn.out_proj": ("out", 0),
    "encoder_attn.q_proj": ("cross_q", 0),
    "encoder_attn.k_proj": ("cross_kv", 0),
    "encoder_attn.v_proj": ("cross_kv", 1),
    "encoder_attn.out_proj": ("cross_out", 0),
    "fc1": ("fc1", 0),
    "fc2": ("fc2", 0),
}
PARTS: Final = {"qkv": 3, "out": 1, "cross_q": 1, "cross_kv": 2, "cross_out": 1, "fc1": 1, "fc2": 1}


class Pair(Struct, frozen=True):
    """An adapter's addition to one matrix: `down` is `[rank, in]`, `up` `[rank, out]` with the scaling in it."""

    layer: int
    site: str
    part: int
    down: torch.Tensor
    up: torch.Tensor


class Slots:
    """At most COLUMNS ranks together. Memory is taken when the first adapter comes.

    Where an adapter does not fit, those that no row uses make room, the least recently used first.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], layers: int, like: torch.Tensor) -> None:
        """`shapes` are out and in of each of a layer's parts; dtype and device are those of `like`."""
        self._shapes = shapes
        self._layers = layers
        self._like = like
        self.down: dict[str, torch.Tensor] = {}
        self.up: dict[str, torch.Tensor] = {}
        # Least recently used first.
        self._columns: dict[str, range] = {}
        self._users: dict[str, int] = {}
        # One that found no room, and how much it needs: it asks again at every advance.
        self._waiting: tuple[str, int] | None = None
        # A step takes many of them, and they stay where they are.
        self._views: dict[tuple[str, int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def hold(self, adapter: Adapter) -> range | None:
        """The adapter's columns, kept for a row until `let_go`; None while there is no room. Raises EngineError."""
        found = self._columns.pop(adapter.sha256, None)
        if found is None:
            if self._waiting and self._waiting[0] == adapter.sha256 and self._room(self._waiting[1]) is None:
                return None
            pairs = read(adapter, self._shapes, self._layers)
            width = max(len(pair.down) for pair in pairs)
            if width > COLUMNS:
                raise EngineError(f"The adapter has rank {width}; a rank of up to {COLUMNS} can be used.")
            start = self._room(width)
            if start is None:
                self._waiting = adapter.sha256, width
                return None
            self._waiting = None
            found = range(start, start + width)
            self._load(pairs, found)
        self._columns[adapter.sha256] = found
        self._users[adapter.sha256] = self._users.get(adapter.sha256, 0) + 1
        return found

    def let_go(self, sha256: str) -> None:
        self._users[sha256] -= 1

    def _room(self, width: int) -> int | None:
        """The first column of a gap."""
        while True:
            start = 0
            for taken in sorted(self._columns.values(), key=lambda columns: columns.start):
                if taken.start - start >= width:
                    break
                start = taken.stop
            if start + width <= COLUMNS:
                return start
            idle = next((sha256 for sha256 in self._columns if not self._users[sha256]), None)
            if idle is None:
                return None
            del self._columns[idle]

    def _load(self, pairs: list[Pair], columns: range) -> None:
        for site, (outputs, inputs) in self._shapes.items():
            parts = PARTS[site]
            if site not in self.down:
                # Both or neither: memory may end at the second.
                down = self._like.new_zeros(self._layers, parts, COLUMNS, inputs)
                up = self._like.new_zeros(self._layers, parts, COLUMNS, outputs)
                self.down[site], self.up[site] = down, up
            self.down[site][:, :, columns.start : columns.stop] = 0
            self.up[site][:, :, columns.start : columns.stop] = 0
        for pair in pairs:
            end = columns.start + len(pair.down)
            self.down[pair.site][pair.layer, pair.part, columns.start : end] = pair.down.to(self._like)
            self.up[pair.site][pair.layer, pair.part, columns.start : end] = pair.up.to(self._like)

    def addition(
        self, site: str, layer: int, columns: slice, inputs: torch.Tensor, weight: torch.Tensor | float
    ) -> torch.Tensor:
        """`[rows, parts x out]` for inputs `[rows, in]`; `weight` says how much each row takes of each column."""
        down, up = self._first(site, layer, columns.stop)
        if columns.start:
            down, up = down[..., columns.start :], up[..., columns.start :, :]
        added = ((inputs @ down) * weight) @ up
        return added if added.dim() == 2 else added.transpose(0, 1).flatten(1)

    def _first(self, site: str, layer: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Down `[parts, in, columns]` and up `[parts, columns, out]`, without parts where there is one."""
        key = site, layer, columns
        if key not in self._views:
            down, up = self.down[site][layer, :, :columns], self.up[site][layer, :, :columns]
            self._views[key] = down.transpose(1, 2).squeeze(0), up.squeeze(0)
        return self._views[key]


def read(adapter: Adapter, shapes: Mapping[str, tuple[int, int]], layers: int) -> list[Pair]:
    """Of a folder as PEFT writes it. Raises EngineError if it is no LoRA of this decoder."""
    named = f"Adapter {Path(adapter.folder).name}"
    places: dict[str, tuple[int, str]] = {}

    def find(name: str) -> tuple[str, int, int]:
        found = KEY.fullmatch(name)
        module = f"{found[3] or ''}{found[4]}" if found else ""
        if not found or module not in SITES:
            raise EngineError(f"{named} has {name}; only the decoder's attention, fc1 and fc2 can be adapted.")
        if SITES[module][0] not in shapes:
            raise EngineError(f"{named} has {name}, but the model has no attention to the text.")
        if (layer := int(found[2])) >= layers:
            raise EngineError(f"{named} has {name}, but the model has {layers} layers.")
        places[found[1]] = layer, module
        return found[1], *shapes[SITES[module][0]]

    pairs = []
    for path, added in lora.read(adapter, find).items():
        layer, module = places[path]
        pairs.append(Pair(layer, *SITES[module], added.down.float(), added.up.float().T * added.scaling))
    return pairs
