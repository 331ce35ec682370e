"""The decoder's weights, laid together for fewer and larger products, and shared with the library's own modules."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from msgspec import Struct

TRIED: Final = (1, 2, 4, 8, 16)

Change: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Product: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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
    """A library for matrices may add up in another order for another number of rows. So that a row's result never
    depends on its company, products get a multiple of `unit` rows, with zeros behind the real ones, and those of
    adapters, which are another library's, one of `added_unit`.
    """

    def __init__(self, network: Any, rows: int, places: int) -> None:
        """`network` is a MusicgenForCausalLM or MusicgenMelodyForCausalLM, `rows` the most that will be in a batch,
        `places` the steps that positions are needed for.
        """
        decoder = network.model.decoder
        self.width = network.config.hidden_size
        self._table = _shared(list(decoder.embed_tokens), is_table=True)
        self._heads = _shared(list(network.lm_heads))
        self._norm = _norm(decoder.layer_norm)
        table = decoder.embed_positions
        known = table.weights if places <= len(table.weights) else table.get_embedding(places, self.width)
        self.places = known.to(self._table)
        self.layers = [
            Layer(
                self_norm=_norm(layer.self_attn_layer_norm),
                qkv=_shared([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                out=_shared([layer.self_attn.out_proj]),
                final_norm=_norm(layer.final_layer_norm),
                fc1=_shared([layer.fc1]),
                activation=layer.activation_fn,
                fc2=_shared([layer.fc2]),
                cross=_cross(layer),
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
        self.product = _product(self.places)
        self._most = 2 * rows
        self.unit = self._smallest_unit(self.product)

    @cached_property
    def added_unit(self) -> int:
        """Found when the first adapter comes, as that takes a while with large matrices."""
        return math.lcm(self.unit, self._smallest_unit(F.linear))

    def fit(self, x: torch.Tensor) -> torch.Tensor:
        return _padded(x, self.unit)

    def fit_added(self, x: torch.Tensor) -> torch.Tensor:
        return _padded(x, self.added_unit)

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sums the codebooks' embeddings of tokens `[rows, codebooks]`, which count through all codebooks."""
        return F.embedding(tokens, self._table).sum(1)

    def logits(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        return self.product(self._norm(x), self._heads)[:rows].float()

    def _smallest_unit(self, product: Product) -> int:
        """The smallest step of row numbers at which all results are alike to the bit; at worst `most` for every batch.

        On a GPU it is that: its matrices are bound by reading the weights, so further rows cost little.
        """
        most = self._most
        if self.places.device.type != "cpu":
            return most
        layer = self.layers[0]
        matrices = [layer.qkv, layer.out, layer.fc1, layer.fc2, self._heads]
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(most, each.shape[1], generator=generator).to(each) for each in matrices]
        whole = [product(x, matrix) for x, matrix in zip(inputs, matrices, strict=True)]
        for unit in TRIED:
            if all(
                torch.equal(product(x[:rows], matrix), result[:rows])
                for rows in range(unit, most, unit)
                for x, matrix, result in zip(inputs, matrices, whole, strict=True)
            ):
                return unit
        return most


def _product(like: torch.Tensor) -> Product:
    """`x @ matrix.T`. On a CPU that is oneDNN's, which takes half of the time of PyTorch's own choice for two rows of
    musicgen-small, and adds up in the same order for any number of rows.
    """
    if like.device.type == "cpu" and like.dtype == torch.float32 and torch._C._has_mkldnn:  # noqa: SLF001
        linear = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 -- PyTorch's own compiler calls it too
        return lambda x, matrix: linear(x, matrix, None, "none", [], "")
    return F.linear


def _padded(x: torch.Tensor, unit: int) -> torch.Tensor:
    lacking = -len(x) % unit
    return F.pad(x, (0, 0, 0, lacking)) if lacking else x


def _shared(modules: list[Any], *, is_table: bool = False) -> torch.Tensor:
    """One matrix of all their weights, which from then on are parts of it.

    On a CPU it lies in memory column by column, unless its rows are looked up: products are then a seventh faster.
    `save_pretrained` cannot write such weights: save a network that no engine was made of.
    """
    whole = torch.cat([module.weight.detach() for module in modules])
    if whole.device.type == "cpu" and not is_table:
        whole = whole.T.contiguous().T
    start = 0
    for module in modules:
        end = start + len(module.weight)
        module.weight.data = whole[start:end]
        start = end
    return whole


def _cross(layer: Any) -> Cross | None:
    if not hasattr(layer, "encoder_attn"):
        return None
    attention = layer.encoder_attn
    return Cross(
        norm=_norm(layer.encoder_attn_layer_norm),
        q=_shared([attention.q_proj]),
        kv=_shared([attention.k_proj, attention.v_proj]),
        out=_shared([attention.out_proj]),
    )


def _norm(module: Any) -> Change:
    shape, weight, bias, eps = module.normalized_shape, module.weight.detach(), module.bias.detach(), module.eps
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)
