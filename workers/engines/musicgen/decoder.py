"""MusicGen's decoder for a changing batch: one step draws the next codes of every row, in place, in fixed memory."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812
from msgspec import Struct

from domain.events.jobs import Sampling
from workers.engines.musicgen import sampling
from workers.engines.musicgen.slots import COLUMNS, WIDTHS, Slots
from workers.engines.musicgen.weights import Weights
from workers.engines.reading import PROMPT_TOKENS

BLOCK: Final = 64  # lengths are counted in steps of this many: few shapes, and sums whose order does not change
PREFILL: Final = 64


class Row(Struct, kw_only=True, eq=False):
    """A stretch of codes to make: `frames` of them, of which the first are given by `prompt` `[codebooks, frames]`.

    `text` is `[tokens, hidden]`. `offset` counts the steps of the same take before this stretch, so that its noise goes
    on. `columns` are those of its adapter in the slots.
    """

    text: torch.Tensor
    frames: int
    sampling: Sampling
    seed: int
    offset: int = 0
    prompt: torch.Tensor | None = None
    columns: range | None = None
    scale: float = 1.0
    position: int = 0

    @property
    def given(self) -> int:
        return 0 if self.prompt is None else self.prompt.shape[1]


class Shape(Struct, frozen=True):
    """All that a step's shapes and branches depend on. With guidance, each row has a second half without text."""

    first: int
    rows: int
    halves: int
    length: int
    text: int
    columns: int
    choice: sampling.Choice


class Decoder:
    """Rows 0 to `len(live)` are in the batch; a row that joins is made ready in a spare one behind the others."""

    def __init__(self, network: Any, rows: int, window: int) -> None:
        """`network` is a MusicgenForCausalLM, `window` the most frames that it makes at a stretch."""
        config = network.config
        self.live: list[Row] = []
        self.rows = rows
        self.codebooks, self.tokens = config.num_codebooks, config.vocab_size
        self.weights = weights = Weights(network, rows)
        self.dtype, self.device = weights.places.dtype, weights.places.device
        books = torch.arange(self.codebooks, device=self.device)
        self._delay = books // config.audio_channels
        self.lag = self.codebooks // config.audio_channels - 1
        self._end = min(window + self.lag, len(weights.places))
        self._length = -(-self._end // BLOCK) * BLOCK
        self._heads = config.num_attention_heads
        self._head = config.hidden_size // self._heads
        self.slots = Slots(weights.shapes, len(weights.layers), weights.places)
        self._pad = config.pad_token_id
        self._first_token = books * (self.tokens + 1)
        self._labels = sampling.labels(self.codebooks, self.tokens).to(self.device)
        self._times = torch.arange(self._length, device=self.device)
        self._allocate()

    def resize(self, rows: int) -> None:
        """Starts anew with fewer rows, of which none is live."""
        self.rows = rows
        self.live.clear()
        self._graphs.clear()
        self._views.clear()
        self._cache = self._cross = torch.empty(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._allocate()

    def _allocate(self) -> None:
        layers, rows, head = len(self.weights.layers), self.rows + 1, self._head
        self._views: dict[Shape, list[tuple[torch.Tensor, ...]]] = {}
        self._graphs: dict[Shape, Callable[[], None]] = {}

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        # Keys, then values. The second half is that without text, and it has no cross-attention: all would be zero.
        self._cache = zeros(layers, 2, rows, 2, self._heads, self._length, head, dtype=self.dtype)
        self._cross = zeros(layers, 2, rows, self._heads, PROMPT_TOKENS, head, dtype=self.dtype)
        self._unread = zeros(rows, PROMPT_TOKENS, dtype=self.dtype)
        # The column behind the last frame takes what is not to be kept.
        self._codes = zeros(rows, self.codebooks, self._length + 1, dtype=torch.int64)
        self._latest = zeros(rows, self.codebooks, dtype=torch.int64)
        self._position = zeros(rows, dtype=torch.int64)
        self._frames = zeros(rows, dtype=torch.int64)
        self._given = zeros(rows, dtype=torch.int64)
        self._offset = zeros(rows, dtype=torch.int32)
        self._key = zeros(rows, dtype=torch.int32)
        self._guidance, self._temperature, self._top_p = zeros(rows), zeros(rows), zeros(rows)
        self._top_k = zeros(rows, dtype=torch.int64)
        self._weight = zeros(rows, COLUMNS, dtype=self.dtype)
        self._sound = zeros(rows, dtype=torch.bool)
        starts = torch.arange(2 * rows * 2 * self._heads, device=self.device) * self._length
        self._starts = starts.view(2, rows, 2, self._heads, 1)

    @staticmethod
    def row_bytes(network: Any, window: int) -> int:
        """The memory that one row takes."""
        config, size = network.config, next(network.parameters()).element_size()
        cached = 2 * 2 * (window + BLOCK) + 2 * PROMPT_TOKENS
        bytes_: int = config.num_hidden_layers * cached * config.hidden_size * size
        return bytes_

    def join(self, row: Row) -> Iterator[None]:
        """Takes the row into the batch, in pieces: between them, others may run. One row at a time may join."""
        place = self.rows if row.given else len(self.live)
        self._write(row, place)
        if row.given:
            for start in range(0, row.given, PREFILL):
                self._prefill(row, place, range(start, min(start + PREFILL, row.given)))
                yield
            row.position = row.given
            self._move(place, len(self.live))
        self.live.append(row)

    def leave(self, row: Row) -> None:
        """The last row of the batch moves into the place of this one."""
        place, last = self.live.index(row), len(self.live) - 1
        if not bool(self._sound[place]):
            # The weight of numbers behind a row's end is zero, and zero times NaN is NaN.
            self._cache[:, :, place] = 0
            self._cross[:, :, place] = 0
        if place < last:
            self._move(last, place)
            self.live[place] = self.live[last]
        self.live.pop()

    def left(self, row: Row) -> int:
        """How many steps the row still takes."""
        return row.frames + self.lag - row.position

    def codes(self, row: Row, start: int, end: int) -> torch.Tensor:
        """A copy of frames that are made, `[codebooks, frames]`."""
        return self._codes[self.live.index(row), :, start:end].clone()

    def made(self, row: Row) -> int:
        """How many frames have all of their codes."""
        return max(row.given, min(row.frames, row.position - self.lag))

    def unsound(self) -> list[Row]:
        """The rows whose numbers have ceased to be finite."""
        return [row for row, sound in zip(self.live, self._sound[: len(self.live)].tolist(), strict=True) if not sound]

    def run(self, steps: int) -> None:
        """Raises whatever torch raises; the rows are then in no certain state."""
        for _ in range(steps):
            shape = self._shape(self.live, 0)
            if self.device.type == "cuda":
                self._replay(shape)
            else:
                self._step(shape)
            for row in self.live:
                row.position += 1

    def _shape(self, live: list[Row], first: int) -> Shape:
        count = len(live)
        used = max((row.columns.stop for row in live if row.columns is not None), default=0)
        cuda = self.device.type == "cuda"
        block = 4 * BLOCK if cuda else BLOCK
        return Shape(
            first=first,
            rows=min(self.rows, 1 << (count - 1).bit_length()) if cuda else count,
            halves=2 if any(row.sampling.guidance_scale > 1 for row in live) else 1,
            length=min(self._length, _up(max(row.position for row in live) + 1, block)),
            text=_up(max(len(row.text) for row in live), BLOCK),
            columns=COLUMNS if cuda and used else _up(used, WIDTHS),
            choice=sampling.choice([row.sampling for row in live]),
        )

    def _write(self, row: Row, place: int) -> None:
        length = len(row.text)
        self._unread[place] = -torch.inf
        self._unread[place, :length] = 0
        self._weight[place] = 0
        columns = slice(0, 0)
        if row.columns is not None:
            columns = slice(row.columns.start, row.columns.stop)
            self._weight[place, columns] = row.scale
        for number, layer in enumerate(self.weights.layers):
            both = F.linear(row.text, layer.cross_kv)
            if row.columns is not None:
                both = both + torch.cat([*self.slots.addition("cross_kv", number, columns, row.text, row.scale)], dim=1)
            self._cross[number, :, place, :, :length] = both.view(length, 2, self._heads, self._head).permute(
                1, 2, 0, 3
            )
        self._codes[place] = self._pad
        if row.prompt is not None:
            self._codes[place, :, : row.given] = row.prompt
        self._latest[place] = self._inputs(row, place, row.given, 1)[0]
        settings = row.sampling
        for tensor, value in (
            (self._position, row.given),
            (self._frames, row.frames),
            (self._given, row.given),
            (self._offset, row.offset),
            (self._key, sampling.key(row.seed)),
            (self._guidance, settings.guidance_scale),
            (self._temperature, settings.temperature),
            (self._top_k, settings.top_k),
            (self._top_p, settings.top_p),
            (self._sound, True),
        ):
            tensor[place] = value

    def _inputs(self, row: Row, place: int, start: int, count: int) -> torch.Tensor:
        """What is known of the inputs of steps, `[steps, codebooks]`: codebook k of a channel is k steps behind."""
        frame = torch.arange(start - 1, start - 1 + count, device=self.device)[:, None] - self._delay
        known = self._codes[place].T.gather(0, frame.clamp(min=0))
        return known.masked_fill((frame < 0) | (frame >= row.given), self._pad)

    def _move(self, source: int, target: int) -> None:
        for tensor in (self._cache, self._cross):
            tensor[:, :, target] = tensor[:, :, source]
        for tensor in (
            *(self._unread, self._codes, self._latest, self._position, self._frames, self._given, self._offset),
            *(self._key, self._guidance, self._temperature, self._top_k, self._top_p, self._weight, self._sound),
        ):
            tensor[target] = tensor[source]

    def _prefill(self, row: Row, place: int, steps: range) -> None:
        """Fills the cache for steps whose inputs are known, all at once."""
        alone = Row(text=row.text, frames=0, sampling=row.sampling, seed=0, columns=row.columns, position=steps[-1])
        shape = self._shape([alone], place)
        tokens = self._inputs(row, place, steps.start, len(steps))
        embedded = self.weights.embedded(tokens + self._first_token)
        positions = torch.arange(steps.start, steps.stop, device=self.device)
        spread = (embedded + self.weights.places[positions]).expand(shape.halves, -1, -1)
        self._layers(spread.reshape(-1, embedded.shape[-1]), shape, positions[None])

    def _step(self, shape: Shape) -> None:
        """Fixed shapes, and nothing is read back: on a GPU, this is the body of a captured graph."""
        rows, halves = shape.rows, shape.halves
        position = self._position[:rows]
        x = self.weights.embedded(self._latest[:rows] + self._first_token) + self.weights.places[position]
        if halves == 2:
            x = x.repeat_interleave(2, dim=0)
        x = self._layers(x, shape, position[:, None])
        logits = self.weights.logits(x, rows * halves).view(rows, halves, self.codebooks, self.tokens)
        if halves == 2:
            scale = self._guidance[:rows, None, None]
            told, untold = logits.unbind(1)
            logits = torch.where(scale > 1, untold + (told - untold) * scale, told)
        else:
            logits = logits[:, 0]
        self._sound[:rows] &= logits.sum((1, 2)).isfinite()
        if not shape.choice.all_greedy:
            noise = sampling.gumbel(self._labels, self._key[:rows], self._offset[:rows] + position.int())
        else:
            noise = logits
        drawn = sampling.draw(
            logits,
            noise,
            shape.choice,
            temperature=self._temperature[:rows],
            top_k=self._top_k[:rows],
            top_p=self._top_p[:rows],
        )
        frame = position[:, None] - self._delay
        kept = (frame >= self._given[:rows, None]) & (frame < self._frames[:rows, None])
        codes = self._codes[:rows]
        known = codes.gather(2, frame.clamp(min=0)[..., None])[..., 0]
        past = (frame >= 0) & (frame < self._given[:rows, None])
        latest = torch.where(kept, drawn, torch.where(past, known, self._pad))
        codes.scatter_(2, torch.where(kept, frame, self._length)[..., None], latest[..., None])
        self._latest[:rows] = latest
        position += 1
        position.clamp_(max=self._end - 1)

    def _layers(self, x: torch.Tensor, shape: Shape, position: torch.Tensor) -> torch.Tensor:
        """All layers, for `[rows x halves x steps, hidden]`; `position` is `[rows, steps]`. Fills the cache.

        The result has more rows where products need them (see Weights).
        """
        heads, head, halves = self._heads, self._head, shape.halves
        rows, steps = position.shape
        batch, width = rows * halves, self.weights.width
        size, told = batch * steps, rows * steps
        index = self._starts[:, shape.first : shape.first + rows, :halves] + position[:, None, None]
        index = index.flatten()
        unseen = torch.where(self._times[: shape.length] <= position[..., None], 0.0, -torch.inf).to(self.dtype)
        unseen = unseen[:, None].expand(-1, halves, -1, -1).reshape(batch, 1, steps, -1)
        unread = self._unread[shape.first : shape.first + rows, : shape.text]
        unread = unread[:, None, None].expand(-1, 1, steps, -1)
        columns = slice(0, shape.columns)
        weight = told_weight = unseen
        if shape.columns:
            told_weight = self._weight[shape.first : shape.first + rows, columns]
            weight = told_weight[:, None, None].expand(-1, halves, steps, -1).reshape(size, -1)
            told_weight = told_weight[:, None].expand(-1, steps, -1).reshape(told, -1)
            weight, told_weight = self.weights.fit(weight), self.weights.fit(told_weight)

        def added(site: str, number: int, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return self.slots.addition(site, number, columns, inputs, weight)

        fit = self.weights.fit
        x = fit(x)
        for number, (layer, views) in enumerate(zip(self.weights.layers, self._seen(shape, rows), strict=True)):
            cache, keys, values, cross_keys, cross_values = views
            h = layer.self_norm(x)
            qkv = F.linear(h, layer.qkv)
            if shape.columns:
                qkv = qkv + added("qkv", number, h, weight).transpose(0, 1).flatten(1)
            qkv = qkv[:size].view(batch, steps, 3, heads, head)
            cache.index_copy_(0, index, qkv[:, :, 1:].permute(2, 0, 3, 1, 4).reshape(-1, head))
            a = F.scaled_dot_product_attention(qkv[:, :, 0].transpose(1, 2), keys, values, attn_mask=unseen)
            a = fit(a.transpose(1, 2).reshape(size, width))
            x = x + F.linear(a, layer.out)
            if shape.columns:
                x += added("out", number, a, weight)[0]
            hearing = x[:size].view(rows, halves, steps, width)[:, 0]
            h = fit(layer.cross_norm(hearing).view(told, width))
            q = F.linear(h, layer.cross_q)
            if shape.columns:
                q = q + added("cross_q", number, h, told_weight)[0]
            q = q[:told].view(rows, steps, heads, head).transpose(1, 2)
            a = F.scaled_dot_product_attention(q, cross_keys, cross_values, attn_mask=unread)
            a = fit(a.transpose(1, 2).reshape(told, width))
            heard = F.linear(a, layer.cross_out)
            if shape.columns:
                heard = heard + added("cross_out", number, a, told_weight)[0]
            hearing += heard[:told].view(rows, steps, width)
            h = layer.final_norm(x)
            inner = F.linear(h, layer.fc1)
            if shape.columns:
                inner = inner + added("fc1", number, h, weight)[0]
            inner = layer.activation(inner)
            x = x + F.linear(inner, layer.fc2)
            if shape.columns:
                x += added("fc2", number, inner, weight)[0]
        return x

    def _seen(self, shape: Shape, rows: int) -> list[tuple[torch.Tensor, ...]]:
        """Of each layer: the cache as one list of vectors, then the keys and values that the rows look at."""
        if shape not in self._views:
            place = slice(shape.first, shape.first + rows)
            self._views = {
                shape: [
                    (
                        cache.view(-1, self._head),
                        *(part[place, : shape.halves].flatten(0, 1)[:, :, : shape.length] for part in cache),
                        *(part[place, :, : shape.text] for part in cross),
                    )
                    for cache, cross in zip(self._cache, self._cross, strict=True)
                ]
            }
        return self._views[shape]

    def _replay(self, shape: Shape) -> None:
        """Records the step as a graph when a shape comes for the first time, and runs it."""
        if shape not in self._graphs:
            changed = (self._position, self._latest, self._sound)
            before = [tensor.clone() for tensor in changed]
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step(shape)
            torch.cuda.current_stream().wait_stream(stream)
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(shape)
            self._graphs[shape] = graph.replay
        self._graphs[shape]()


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
