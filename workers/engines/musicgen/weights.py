"""The decoder's weights, taken from the library's modules and laid together for fewer and larger products."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from msgspec import Struct

from workers.engines.musicgen.slots import COLUMNS, WIDTHS

TRIED: Final = (1, 2, 4, 8, 16)
BLOCKED_FOR: Final = 16  # rows; the blocks are the same for any number above 1

Change: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Product: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Library(Struct, frozen=True):
    """`laid` is a matrix as this library wants it in memory, and `product(x, laid(matrix))` is `x @ matrix.T`."""

    laid: Change
    product: Product


class Layer(Struct, frozen=True):
    self_norm: Change
    qkv: torch.Tensor
    out: torch.Tensor
    final_norm: Change
    fc1: torch.Tensor
    activation: Change
    fc2: torch.Tensor
    cross: "Cross | None"


class Cross(Struct, frozen=True):
    """The attention to the text, which a melody model does without."""

    norm: Change
    q: torch.Tensor
    kv: torch.Tensor
    out: torch.Tensor


class Weights:
    """The modules lose what is taken, so that it is in memory once: the network generates nothing any more by itself.

    A library for matrices may add up in another order for another number of rows. So that a row's result never
    depends on its company, products get a multiple of `unit` rows, with zeros behind the real ones, and those of
    adapters, which are another library's, one of `added_unit`.
    """

    def __init__(self, network: Any, rows: int, places: int) -> None:
        """`network` is a MusicgenForCausalLM or MusicgenMelodyForCausalLM, `rows` the most that will be in a batch,
        `places` the steps that positions are needed for.
        """
        decoder = network.model.decoder
        self.width = network.config.hidden_size
        self._table = _taken(list(decoder.embed_tokens))
        library = _library(self._table)
        self.product = library.product

        def laid(*modules: Any) -> torch.Tensor:
            return library.laid(_taken(list(modules)))

        self._heads = laid(*network.lm_heads)
        self._norm = _norm(decoder.layer_norm)
        table = decoder.embed_positions
        known = table.weights if places <= len(table.weights) else table.get_embedding(places, self.width)
        self.places = known.to(self._table)
        self.layers = [
            Layer(
                self_norm=_norm(layer.self_attn_layer_norm),
                qkv=laid(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                out=laid(layer.self_attn.out_proj),
                final_norm=_norm(layer.final_layer_norm),
                fc1=laid(layer.fc1),
                activation=layer.activation_fn,
                fc2=laid(layer.fc2),
                cross=_cross(layer, laid),
            )
            for layer in decoder.layers
        ]
        square, inner = (self.width, self.width), self.layers[0].fc1.shape[0]
        self.shapes = {
            **dict.fromkeys(("qkv", "out"), square),
            **dict.fromkeys(("cross_q", "cross_kv", "cross_out") if self.layers[0].cross else (), square),
            "fc1": (inner, self.width),
            "fc2": (self.width, inner),
        }
        self._most = 2 * rows
        layer = self.layers[0]
        self.unit = self._smallest_unit(self.product, [layer.qkv, layer.out, layer.fc1, layer.fc2, self._heads])

    @cached_property
    def added_unit(self) -> int:
        """Found when the first adapter comes, with matrices as narrow and as wide as those of adapters can be."""
        matrices = []
        for out, in_ in set(self.shapes.values()):
            for columns in (WIDTHS, COLUMNS):
                matrices += [_random(columns, in_).to(self._table), _random(columns, out).T.to(self._table)]
        return math.lcm(self.unit, self._smallest_unit(F.linear, matrices))

    def fit(self, x: torch.Tensor) -> torch.Tensor:
        return _padded(x, self.unit)

    def fit_added(self, x: torch.Tensor) -> torch.Tensor:
        return _padded(x, self.added_unit)

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sums the codebooks' embeddings of tokens `[rows, codebooks]`, which count through all codebooks."""
        return F.embedding(tokens, self._table).sum(1)

    def logits(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        return self.product(self._norm(x), self._heads)[:rows].float()

    def _smallest_unit(self, product: Product, matrices: list[torch.Tensor]) -> int:
        """The smallest step of row numbers at which all results are alike to the bit; at worst `most` for every batch.

        On a GPU it is that: its matrices are bound by reading the weights, so further rows cost little.
        """
        most = self._most
        if self.places.device.type != "cpu":
            return most
        inputs = [_random(most, each.shape[1]).to(self.places.dtype) for each in matrices]
        whole = [product(x, matrix) for x, matrix in zip(inputs, matrices, strict=True)]
        for unit in TRIED:
            if all(
                torch.equal(product(x[:rows], matrix), result[:rows])
                for rows in range(unit, most, unit)
                for x, matrix, result in zip(inputs, matrices, whole, strict=True)
            ):
                return unit
        return most


PLAIN: Final = Library(laid=lambda matrix: matrix, product=F.linear)


def _library(like: torch.Tensor) -> Library:
    """On a CPU that is oneDNN with matrices in blocks, as it reads them. A product of two rows then takes half of the
    time of PyTorch's own choice with musicgen-small, and it adds up in the same order for any number of rows.
    """
    if like.device.type != "cpu" or like.dtype != torch.float32 or not torch._C._has_mkldnn:  # noqa: SLF001
        return PLAIN
    # PyTorch's own compiler calls these too.
    linear, reorder = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001
    return Library(
        laid=lambda matrix: reorder(matrix, BLOCKED_FOR),
        product=lambda x, matrix: linear(x, matrix, None, "none", [], ""),
    )


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _padded(x: torch.Tensor, unit: int) -> torch.Tensor:
    lacking = -len(x) % unit
    return F.pad(x, (0, 0, 0, lacking)) if lacking else x


def _taken(modules: list[Any]) -> torch.Tensor:
    """One matrix of all their weights."""
    whole = torch.cat([module.weight.detach() for module in modules])
    for module in modules:
        module.weight.data = whole.new_empty(0)
    return whole


def _cross(layer: Any, laid: Callable[..., torch.Tensor]) -> Cross | None:
    if not hasattr(layer, "encoder_attn"):
        return None
    attention = layer.encoder_attn
    return Cross(
        norm=_norm(layer.encoder_attn_layer_norm),
        q=laid(attention.q_proj),
        kv=_taken([attention.k_proj, attention.v_proj]),
        out=laid(attention.out_proj),
    )


def _norm(module: Any) -> Change:
    shape, weight, bias, eps = module.normalized_shape, module.weight.detach(), module.bias.detach(), module.eps
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)
