"""Draws tokens for many rows at once: each row has its own seed, temperature, top-k and top-p."""

from collections.abc import Sequence
from typing import Final

import torch
from msgspec import Struct

from domain.events.jobs import Sampling

MULTIPLIERS: Final = (0x7FEB352D, 0x846CA68B - (1 << 32))


class Choice(Struct, frozen=True):
    """What the rows of a batch have in common, so that a step only does what one of them needs.

    `top_k` is the rows' common one, where 0 keeps every token; None says that they differ.
    """

    some_greedy: bool
    all_greedy: bool
    top_k: int | None
    some_top_p: bool


def choice(samplings: Sequence[Sampling]) -> Choice:
    greedy = [sampling.temperature == 0 for sampling in samplings]
    top_k = {sampling.top_k for sampling in samplings}
    return Choice(
        some_greedy=any(greedy),
        all_greedy=all(greedy),
        top_k=top_k.pop() if len(top_k) == 1 else None,
        some_top_p=any(sampling.top_p < 1 for sampling in samplings),
    )


def draw(
    logits: torch.Tensor,
    noise: torch.Tensor,
    common: Choice,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
) -> torch.Tensor:
    """One token a codebook, `[rows, codebooks]`, from logits and Gumbel noise `[rows, codebooks, tokens]`.

    The settings are `[rows]`. Temperature 0 takes the most likely token.
    """
    if common.all_greedy:
        return logits.argmax(-1)
    temperature = temperature[:, None, None]
    greedy = temperature == 0
    heat = temperature.masked_fill(greedy, 1) if common.some_greedy else temperature
    warm = (logits - logits.amax(-1, keepdim=True)) / heat
    limit = top_k[:, None, None] if common.top_k is None else common.top_k
    score = keep(warm, limit, top_p[:, None, None] if common.some_top_p else None) + noise
    return (torch.where(greedy, logits, score) if common.some_greedy else score).argmax(-1)


def keep(logits: torch.Tensor, top_k: torch.Tensor | int, top_p: torch.Tensor | None) -> torch.Tensor:
    """Sets the logits of all tokens to -inf, except for those to sample from.

    These are the fewest of the `top_k` most likely tokens whose probabilities add up to `top_p`. Tensors hold a number
    a row, with a last dimension of 1.
    """
    tokens = logits.shape[-1]
    if isinstance(top_k, torch.Tensor):
        last = top_k.masked_fill(top_k == 0, tokens).clamp(max=tokens) - 1
        ranked = logits.sort(descending=True).values
        logits = logits.masked_fill(logits < ranked.gather(-1, last.expand(*logits.shape[:-1], 1)), -torch.inf)
    elif 0 < top_k < tokens:
        least = logits.topk(top_k, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(descending=True)
        chance = ordered.softmax(-1)
        surplus = (chance.cumsum(-1) - chance >= top_p) & (top_p < 1)
        surplus[..., 0] = False
        logits = logits.masked_fill(torch.empty_like(surplus).scatter(-1, order, surplus), -torch.inf)
    return logits


def labels(codebooks: int, tokens: int) -> torch.Tensor:
    """A number for every token of every codebook, int32 `[codebooks, tokens]`, from which `gumbel` makes noise."""
    return mixed(torch.arange(codebooks * tokens, dtype=torch.int32).view(codebooks, tokens))


def key(seed: int) -> int:
    """The number of a seed, of 32 bits with a sign."""
    return int(mixed(torch.tensor(seed).to(torch.int32)))


def gumbel(labels: torch.Tensor, keys: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Gumbel noise `[..., codebooks, tokens]`: each number is a hash of its seed, position, codebook and token.

    So a seed gives the same draws in any batch. `keys` and `position` are int32, of shapes that fit each other.
    """
    bits = mixed(labels ^ mixed(keys + position)[..., None, None])
    # fp32 represents 23 bits plus one half exactly. With one more bit the largest would round to 1: infinite noise.
    uniform = bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).div_(2**23)
    return uniform.log_().neg_().log_().neg_()


def mixed(number: torch.Tensor) -> torch.Tensor:
    """A 32-bit hash (lowbias32 of C. Wellons' hash-prospector). Products of int32 keep the low bits, as it needs."""
    first, second = MULTIPLIERS
    number = (number ^ (number >> 16 & 0xFFFF)).mul_(first)
    number ^= number >> 15 & 0x1FFFF
    number.mul_(second)
    number ^= number >> 16 & 0xFFFF
    return number
