"""Learns a taste: what every next code would add to a clip's log-odds to be preferred.

A clip is a sum of codebook entries, frame by frame. The slope of its log-odds by the codec's latents, taken once, says
for each frame what any other entry would change. The slope is taken in two ways that err differently, and both are
added: through the codec's decoder, which is exact for small changes, and through a linear map from latents to the
log-mel spectrogram, which is rough but holds for large ones.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.nn import functional

from workers.training.features import BANDS, FRAMES_PER_SECOND
from workers.training.listener import TIMBRE, Listener
from workers.training.losses import gain
from workers.training.network import Network

AT_ONCE: Final = 8
NEIGHBOURS: Final = 1
EASE: Final = 1e-3  # of the linear map's ridge, beside its inputs' own power
LIMIT: Final = 4.0  # of a frame's slope, in root mean squares
STIFFNESS: Final = 0.07
SPAN: Final = 20.0


class Slopes:
    """`[channels, latent, frames]` of each clip: what a latent's change adds to the log-odds."""

    def __init__(self, network: Network, listener: Listener, codes: Sequence[torch.Tensor]) -> None:
        self._network = network
        self._listener = listener
        self._map = _LevelMap(network, listener, codes)

    def of(self, codes: torch.Tensor) -> torch.Tensor:
        """Of one clip `[books, frames]`."""
        network, listener = self._network, self._listener
        latents = network.latents(codes[None].to(network.device)).detach().requires_grad_()
        with torch.backends.cudnn.flags(enabled=False):  # which has no slopes of a recurrent layer in use
            levels = listener.ear.levels(network.sound(latents).mean(1))
            exact = _slope(self._spectral(levels), latents)
        loose = levels.detach().requires_grad_()
        toward = _slope(self._spectral(loose), loose)
        rough = _slope((self._map.levels(latents) * toward[:, : self._map.count(latents)]).sum(), latents)
        timbre = listener.slopes[TIMBRE].to(latents) / latents.shape[-1] / latents.shape[1]
        both = [part / (part.square().mean().sqrt() + 1e-12) for part in (exact, rough)]
        size = torch.stack([exact, rough]).square().mean().sqrt()
        whole = (both[0] + both[1]) / 2 * size + timbre[:, None]
        return _limited(whole[0]).detach()

    def _spectral(self, levels: torch.Tensor) -> torch.Tensor:
        heard = self._listener.ear.describe(levels)
        slopes = self._listener.slopes
        return torch.stack([heard[group] @ slopes[group].to(levels) for group in heard]).sum()


class _LevelMap:
    """The log-mel spectrogram as a linear function of the latents around a frame, by ridge regression."""

    def __init__(self, network: Network, listener: Listener, codes: Sequence[torch.Tensor]) -> None:
        self._frame_rate = network.sample_rate / network.hop
        self._per_frame = max(1, round(FRAMES_PER_SECOND / self._frame_rate))
        power: Any = 0.0
        shared: Any = 0.0
        for clip in codes:
            with torch.no_grad():
                latents = network.latents(clip[None].to(network.device))
                levels = listener.ear.levels(network.sound(latents).mean(1))
            around = _with_one(self._around(latents))[0].double()
            aimed = levels[0, : self.count(latents)].reshape(len(around), -1).double()
            power = power + around.T @ around
            shared = shared + around.T @ aimed
        ease = EASE * power.diagonal().mean() * torch.eye(len(power), dtype=power.dtype, device=power.device)
        self._weights: torch.Tensor = torch.linalg.solve(power + ease, shared).float()

    def count(self, latents: torch.Tensor) -> int:
        return latents.shape[-1] * self._per_frame

    def levels(self, latents: torch.Tensor) -> torch.Tensor:
        """`[clips, frames of the spectrogram, BANDS]`."""
        return (_with_one(self._around(latents)) @ self._weights).view(len(latents), -1, BANDS)

    def _around(self, latents: torch.Tensor) -> torch.Tensor:
        """`[clips, frames, latent · 3]`."""
        padded = functional.pad(latents.mean(1), (NEIGHBOURS, NEIGHBOURS))
        frames = latents.shape[-1]
        parts = [padded[..., start : start + frames] for start in range(2 * NEIGHBOURS + 1)]
        return torch.cat(parts, dim=1).transpose(1, 2)


class Taste:
    """The loss of a batch, and the controller that finds the KL's weight so that the KL is what was asked for.

    Rewards are in units of their own spread among the codes that the base expects; so the weight under which the best
    possible policy has a KL of `target` nats a code is known, and the controller starts there.
    """

    def __init__(self, network: Network, target: float, ramp: int) -> None:
        self._codebooks = network.codebooks.to(network.device)
        self._channels = network.channels
        self._target = target
        self._ramp = ramp
        self.scale = 1.0
        self._first = first_weight(target)
        self.weight = self._first

    def rewards(self, slopes: torch.Tensor) -> torch.Tensor:
        """`[clips, books, frames, codes]` of slopes `[clips, channels, latent, frames]`."""
        books = len(self._codebooks)
        by_book = slopes[:, [book % self._channels for book in range(books)]]
        return self.scale * torch.einsum("kvd,bkdt->bktv", self._codebooks, by_book)

    @torch.no_grad()
    def calibrate(self, batches: Callable[[], Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> None:
        """`batches` have the base's logits and slopes of some clips."""
        spreads = []
        for logits, slopes in batches():
            chances, rewards = logits.softmax(-1), self.rewards(slopes)
            mean = (chances * rewards).sum(-1)
            spreads.append((chances * rewards.square()).sum(-1).mean() - mean.square().mean())
        self.scale /= float(torch.stack(spreads).mean().sqrt()) + 1e-12

    def loss(
        self, step: int, logits: torch.Tensor, base: torch.Tensor, slopes: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        expected, divergence = gain(logits, base, self.rewards(slopes))
        figures = {"gain": float(expected.detach()), "kl": float(divergence.detach()), "kl_weight": self.weight}
        loss = -expected + self.weight * divergence
        wanted = self._target * min(1.0, (step + 1) / max(1, self._ramp))
        error = max(-1.0, min(1.0, figures["kl"] / wanted - 1))
        self.weight = min(SPAN * self._first, max(self._first / SPAN, self.weight * math.exp(STIFFNESS * error)))
        return loss, figures


def first_weight(target: float) -> float:
    """Of a KL in nats a code, under which a policy that fits rewards of spread one perfectly has that KL."""
    return 1 / math.sqrt(2 * target)


def _slope(of: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(of, by)[0]


def _limited(slopes: torch.Tensor) -> torch.Tensor:
    """Frames where a little changes much, such as silences, are held to LIMIT."""
    sizes = slopes.square().mean((0, 1), keepdim=True).sqrt()
    usual = sizes.square().mean().sqrt()
    return slopes * (LIMIT * usual / (sizes + 1e-12)).clamp_max(1.0)


def _with_one(around: torch.Tensor) -> torch.Tensor:
    return torch.cat([around, around.new_ones(*around.shape[:-1], 1)], dim=-1)
