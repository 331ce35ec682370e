"""MusicGen's decoder for a changing batch: one step draws the next codes of every row, in place, in fixed memory."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from msgspec.structs import replace

from workers.engines.musicgen import sampling
from workers.engines.musicgen.batch import Batch, Row, Shape
from workers.engines.musicgen.crew import Crew
from workers.engines.musicgen.graphs import Graphs
from workers.engines.musicgen.slots import COLUMNS, WIDTHS, Slots
from workers.engines.musicgen.weights import Weights
from workers.engines.reading import PROMPT_TOKENS

BLOCK: Final = 16  # lengths are counted in steps of this many: few shapes, and sums whose order does not change
PREFILL: Final = 64
TOLD: Final = {"cross_q", "cross_out"}  # only rows with text have these products


class Decoder:
    """Rows 0 to `len(live)` are in the batch; a row that joins is made ready in a spare one behind the others."""

    def __init__(self, network: Any, crew: Crew, rows: int, window: int, lead: int = 0) -> None:
        """`network` is a MusicgenForCausalLM, or a MusicgenMelodyForCausalLM, which reads up to `lead` steps before the
        first frame. `window` is the most frames that it makes at a stretch.
        """
        config = network.config
        self.live: list[Row] = []
        self.rows = rows
        self._crew = crew
        self.codebooks, self.tokens = config.num_codebooks, config.vocab_size
        self.lag: int = self.codebooks // config.audio_channels - 1
        self.weights = weights = Weights(network, rows, lead + window + self.lag if lead else 0)
        self.dtype, self.device = weights.places.dtype, weights.places.device
        books = torch.arange(self.codebooks, device=self.device)
        self._delay = books // config.audio_channels
        self._end = min(window + self.lag, len(weights.places))
        self._length = _up(lead + self._end, BLOCK)
        self._text = PROMPT_TOKENS if weights.layers[0].cross else 0
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
        self._graphs = Graphs()
        self._views.clear()
        self._cache = self._cross = torch.empty(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._allocate()

    def _allocate(self) -> None:
        layers, rows, head = len(self.weights.layers), self.rows + 1, self._head
        self._views: dict[int, tuple[Shape, list[tuple[torch.Tensor, ...]]]] = {}
        self._graphs = Graphs()

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        # Keys, then values. The second half is that without text, and it has no cross-attention: all would be zero.
        self._cache = self._large(layers, 2, rows, 2, self._heads, self._length, head)
        self._cross = self._large(layers, 2, rows, self._heads, self._text, head)
        self._unread = zeros(rows, self._text, dtype=self.dtype)
        # The column behind the last frame takes what is not to be kept.
        self._codes = zeros(rows, self.codebooks, self._length + 1, dtype=torch.int64)
        self._latest = zeros(rows, self.codebooks, dtype=torch.int64)
        self._position = zeros(rows, dtype=torch.int64)
        self._frames = zeros(rows, dtype=torch.int64)
        self._given = zeros(rows, dtype=torch.int64)
        self._shift = zeros(rows, dtype=torch.int64)
        self._offset = zeros(rows, dtype=torch.int32)
        self._key = zeros(rows, dtype=torch.int32)
        self._guidance, self._temperature, self._top_p = zeros(rows), zeros(rows), zeros(rows)
        self._top_k = zeros(rows, dtype=torch.int64)
        self._weight = zeros(rows, COLUMNS, dtype=self.dtype)
        self._sound = zeros(rows, dtype=torch.bool)
        self._evidence = zeros(rows, dtype=torch.float64)
        starts = torch.arange(2 * rows * 2 * self._heads, device=self.device) * self._length
        self._starts = starts.view(2, rows, 2, self._heads, 1)

    def _large(self, *shape: int) -> torch.Tensor:
        """Zeros, which on a CPU take no memory before they are written."""
        if self.device.type != "cpu" or not math.prod(shape):
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        return torch.from_numpy(np.zeros(math.prod(shape) * self.dtype.itemsize, np.uint8)).view(self.dtype).view(shape)

    @staticmethod
    def row_bytes(network: Any, window: int, lead: int = 0) -> int:
        """The memory that one row takes."""
        config, size = network.config, next(network.parameters()).element_size()
        cached = 2 * 2 * (lead + window + BLOCK) + (0 if lead else 2 * PROMPT_TOKENS)
        bytes_: int = config.num_hidden_layers * cached * config.hidden_size * size
        return bytes_

    def join(self, row: Row) -> Iterator[None]:
        """Takes the row into the batch, in pieces: between them, others may run. One row at a time may join."""
        known = row.shift + row.given
        place = self.rows if known else len(self.live)
        self._write(row, place)
        if known:
            for start in range(0, known, PREFILL):
                self._prefill(row, place, range(start, min(start + PREFILL, known)))
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

    def evidence(self, row: Row) -> float:
        """By how much the text makes the codes drawn so far likelier, all together: the sum of the differences of their
        log-probabilities with it and without it.
        """
        return float(self._evidence[self.live.index(row)])

    def unsound(self) -> list[Row]:
        """The rows whose numbers have ceased to be finite."""
        return [row for row, sound in zip(self.live, self._sound[: len(self.live)].tolist(), strict=True) if not sound]

    def run(self, steps: int) -> None:
        """Raises whatever torch raises; the rows are then in no certain state."""
        whole = range(len(self.live))
        # Products of adapters are so small and many that threads would mostly take turns in Python.
        adapted = any(row.columns is not None for row in self.live)
        parts = [whole] if adapted else self._crew.parts(whole)
        self._crew.run([partial(self._run, part, steps) for part in parts])

    # Threads have this mode each for itself.
    @torch.inference_mode()
    def _run(self, part: range, steps: int) -> None:
        live = self.live[part.start : part.stop]
        last = max(row.shift + row.position for row in live)
        shape = self._shape(live, part.start, last)
        # On a CPU made for all steps together, as it is many operations on few numbers.
        noise = None if self.device.type == "cuda" else self._noise(shape, steps)
        for step in range(steps):
            now = replace(shape, length=self._reach(last + step))
            if noise is None:
                self._graphs.replay(now, self._step, (self._position, self._latest, self._sound, self._evidence))
            else:
                self._step(now, noise[:, step])
        for row in live:
            row.position += steps

    def _shape(self, live: list[Row], first: int, step: int) -> Shape:
        count = len(live)
        used = max((row.columns.stop for row in live if row.columns is not None), default=0)
        cuda = self.device.type == "cuda"
        choice = sampling.choice([row.sampling for row in live])
        return Shape(
            first=first,
            rows=min(self.rows, 1 << (count - 1).bit_length()) if cuda else count,
            halves=2 if any(row.is_judged or row.sampling.guidance_scale > 1 for row in live) else 1,
            length=self._reach(step),
            # Each shape is a graph of its own, so a GPU has fewer of them.
            text=_up(max(len(row.text) for row in live), 4 * BLOCK if cuda else BLOCK),
            columns=COLUMNS if cuda and used else _up(used, WIDTHS),
            choice=replace(choice, top_k=None) if cuda else choice,
            is_judged=any(row.is_judged for row in live),
        )

    def _reach(self, step: int) -> int:
        """How much of the cache this step reads."""
        return min(self._length, _up(step + 1, 16 * BLOCK if self.device.type == "cuda" else BLOCK))

    def _noise(self, shape: Shape, steps: int) -> torch.Tensor:
        """Of the next steps, `[rows, steps, codebooks, tokens]`; of no size where no row draws."""
        here = slice(shape.first, shape.first + shape.rows)
        if shape.choice.all_greedy:
            return self._labels.new_empty(shape.rows, steps, 0, 0)
        first = self._offset[here] + self._position[here].int()
        return sampling.gumbel(self._labels, self._key[here, None], first[:, None] + self._times[:steps].int())

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
            if layer.cross is None:
                break
            both = F.linear(row.text, layer.cross.kv)
            if row.columns is not None:
                both = both + self.slots.addition("cross_kv", number, columns, row.text, row.scale)
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
            (self._shift, row.shift),
            (self._offset, row.offset),
            (self._key, sampling.key(row.seed)),
            (self._guidance, settings.guidance_scale),
            (self._temperature, settings.temperature),
            (self._top_k, settings.top_k),
            (self._top_p, settings.top_p),
            (self._sound, True),
            (self._evidence, 0.0),
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
            *(self._unread, self._codes, self._latest, self._position, self._frames, self._given, self._shift),
            *(self._offset, self._key, self._guidance, self._temperature, self._top_k, self._top_p),
            *(self._weight, self._sound, self._evidence),
        ):
            tensor[target] = tensor[source]

    def _prefill(self, row: Row, place: int, steps: range) -> None:
        """Fills the cache for steps whose inputs are known, all at once. They count from the first step of the lead."""
        alone = Row(text=row.text, frames=0, sampling=row.sampling, seed=0, columns=row.columns)
        shape = self._shape([alone], place, steps[-1])
        first, last = max(0, steps.start - row.shift), max(0, steps.stop - row.shift)
        tokens = self._inputs(row, place, first, last - first)
        embedded = self.weights.embedded(tokens + self._first_token).expand(2, -1, -1)
        if row.lead is not None:
            embedded = torch.cat([row.lead[:, steps.start : steps.stop], embedded], dim=1)
        positions = torch.arange(steps.start, steps.stop, device=self.device)
        spread = (embedded + self.weights.places[positions])[: shape.halves]
        self._layers(spread.reshape(-1, self.weights.width), shape, positions[None])

    def _step(self, shape: Shape, noise: torch.Tensor | None = None) -> None:
        """Fixed shapes, and nothing is read back: on a GPU, this is the body of a captured graph."""
        rows, halves = shape.rows, shape.halves
        here = slice(shape.first, shape.first + rows)
        position = self._position[here]
        step = position + self._shift[here]
        x = self.weights.embedded(self._latest[here] + self._first_token) + self.weights.places[step]
        if halves == 2:
            x = x.repeat_interleave(2, dim=0)
        x = self._layers(x, shape, step[:, None])
        logits = self.weights.logits(x, rows * halves).view(rows, halves, self.codebooks, self.tokens)
        heard = logits
        if halves == 2:
            scale = self._guidance[here, None, None]
            told, untold = logits.unbind(1)
            logits = torch.where(scale > 1, untold + (told - untold) * scale, told)
        else:
            logits = logits[:, 0]
        self._sound[here] &= logits.sum((1, 2)).isfinite()
        drawn = sampling.draw(
            logits,
            self._noise(shape, 1)[:, 0] if noise is None else noise,
            shape.choice,
            temperature=self._temperature[here],
            top_k=self._top_k[here],
            top_p=self._top_p[here],
        )
        frame = position[:, None] - self._delay
        kept = (frame >= self._given[here, None]) & (frame < self._frames[here, None])
        codes = self._codes[here]
        known = codes.gather(2, frame.clamp(min=0)[..., None])[..., 0]
        past = (frame >= 0) & (frame < self._given[here, None])
        latest = torch.where(kept, drawn, torch.where(past, known, self._pad))
        if shape.is_judged:
            likely = heard.float().log_softmax(-1).gather(-1, drawn[:, None, :, None].expand(-1, 2, -1, -1))[..., 0]
            self._evidence[here] += ((likely[:, 0] - likely[:, 1]) * kept).sum(1)
        codes.scatter_(2, torch.where(kept, frame, self._length)[..., None], latest[..., None])
        self._latest[here] = latest
        position += 1
        position.clamp_(max=self._end - 1)

    def _layers(self, x: torch.Tensor, shape: Shape, position: torch.Tensor) -> torch.Tensor:
        """All layers, for `[rows x halves x steps, hidden]`; `position` is `[rows, steps]`. Fills the cache.

        The result has more rows where products need them (see Weights).
        """
        halves, (rows, steps) = shape.halves, position.shape
        here = slice(shape.first, shape.first + rows)
        unseen = torch.where(self._times[: shape.length] <= position[..., None], 0.0, -torch.inf).to(self.dtype)
        weight, told = None, None
        if shape.columns:
            columns = self._weight[here, : shape.columns]
            weight = self.weights.fit_added(columns[:, None].expand(-1, halves * steps, -1).flatten(0, 1))
            told = self.weights.fit_added(columns[:, None].expand(-1, steps, -1).flatten(0, 1))
        batch = Batch(
            rows=rows,
            halves=halves,
            steps=steps,
            index=(self._starts[:, here, :halves] + position[:, None, None]).flatten(),
            unseen=unseen[:, None].expand(-1, halves, -1, -1).flatten(0, 1)[:, None],
            unread=self._unread[here, None, None, : shape.text].expand(-1, 1, steps, -1),
            columns=slice(0, shape.columns),
            weight=weight,
            told_weight=told,
        )
        x = self.weights.fit(x)
        for number, caches in enumerate(self._seen(shape, here)):
            x = self._layer(number, x, batch, *caches)
        return x

    def _layer(self, number: int, x: torch.Tensor, batch: Batch, *caches: torch.Tensor) -> torch.Tensor:
        layer, fit, width = self.weights.layers[number], self.weights.fit, self.weights.width
        cache, keys, values, cross_keys, cross_values = caches
        rows, steps, head = batch.rows, batch.steps, self._head
        size = rows * batch.halves * steps

        h = layer.self_norm(x)
        qkv = self._product(h, layer.qkv, "qkv", number, batch)[:size]
        q, *new = qkv.view(-1, steps, 3, self._heads, head).transpose(1, 3).unbind(2)
        cache.index_copy_(0, batch.index, torch.stack(new).view(-1, head))
        a = F.scaled_dot_product_attention(q, keys, values, attn_mask=batch.unseen)
        a = fit(a.transpose(1, 2).reshape(size, width))
        x = x + self._product(a, layer.out, "out", number, batch)

        if layer.cross is not None:
            told = x[:size].view(rows, batch.halves, steps, width)[:, 0]
            h = fit(layer.cross.norm(told).view(-1, width))
            q = self._product(h, layer.cross.q, "cross_q", number, batch)[: rows * steps]
            q = q.view(rows, steps, self._heads, head).transpose(1, 2)
            a = F.scaled_dot_product_attention(q, cross_keys, cross_values, attn_mask=batch.unread)
            a = fit(a.transpose(1, 2).reshape(-1, width))
            told += self._product(a, layer.cross.out, "cross_out", number, batch)[: rows * steps].view_as(told)

        h = layer.activation(self._product(layer.final_norm(x), layer.fc1, "fc1", number, batch))
        return x + self._product(h, layer.fc2, "fc2", number, batch)

    def _product(self, x: torch.Tensor, matrix: torch.Tensor, site: str, number: int, batch: Batch) -> torch.Tensor:
        """With what the rows' adapters add to it."""
        y = self.weights.product(x, matrix)
        weight = batch.told_weight if site in TOLD else batch.weight
        if weight is not None:
            y += self.slots.addition(site, number, batch.columns, self.weights.fit_added(x), weight)[: len(y)]
        return y

    def _seen(self, shape: Shape, here: slice) -> list[tuple[torch.Tensor, ...]]:
        """Of each layer: the cache as one list of vectors, then the keys and values that the rows look at."""
        known, views = self._views.get(shape.first, (None, []))
        if shape != known:
            views = [
                (
                    cache.view(-1, self._head),
                    *(part[here, : shape.halves].flatten(0, 1)[:, :, : shape.length] for part in cache),
                    *(part[here, :, : shape.text] for part in cross),
                )
                for cache, cross in zip(self._cache, self._cross, strict=True)
            ]
            self._views[shape.first] = shape, views
        return views


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
