"""The losses on log-probabilities of codes, `[clips, books, frames]` unless said otherwise."""

import torch
from torch.nn import functional


def log_probabilities(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Of the codes that came, by logits `[clips, books, frames, codes]`."""
    return logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]


def sft(likely: torch.Tensor) -> torch.Tensor:
    """The mean surprise of a code. Clips of a batch have one length, so none weighs more than another."""
    return -likely.mean()


def margins(
    chosen: torch.Tensor, rejected: torch.Tensor, chosen_base: torch.Tensor, rejected_base: torch.Tensor
) -> torch.Tensor:
    """`[pairs]`: how much more the adapter prefers the chosen than the base does, in nats a code.

    The sum over a clip's codes is divided by their number: the thousands of codes of a clip would saturate any beta.
    """
    gains = [(own - base).flatten(1).mean(1) for own, base in ((chosen, chosen_base), (rejected, rejected_base))]
    return gains[0] - gains[1]


def dpo(
    margins: torch.Tensor, beta: float, smoothing: float = 0.0, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Conservative DPO: `smoothing` is how often the rated pairs are thought to be the wrong way round, below 0.5.

    `beta` is in pairs a nat of a code. `weights` `[pairs]` are relative.
    """
    right, wrong = functional.logsigmoid(beta * margins), functional.logsigmoid(-beta * margins)
    losses = -(1 - smoothing) * right - smoothing * wrong
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()


def gain(logits: torch.Tensor, base: torch.Tensor, rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reward of a code that the adapter expects more than the base, and the adapter's KL to the base, both in the
    mean of all codes. All three are `[clips, books, frames, codes]`.
    """
    own, before = logits.log_softmax(-1), base.log_softmax(-1)
    chances = own.exp()
    expected = ((chances - before.exp()) * rewards).sum(-1).mean()
    return expected, (chances * (own - before)).sum(-1).mean()
