"""The methods: what a batch's loss is, and how good the adapter is on prompts that it has not learnt from.

Every draw follows from the seed and the step, so a training that goes on draws as one that never stopped.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
import torch

from workers.training import losses
from workers.training.config import Config
from workers.training.errors import NothingLearntError
from workers.training.features import Ear
from workers.training.listener import Listener, listen
from workers.training.material import Material, Piece, Two
from workers.training.network import Network
from workers.training.result import Figures
from workers.training.taste import Slopes, Taste

HELD_AT_ONCE: Final = 8
MOST_HELD: Final = 48
CALIBRATED_ON: Final = 16
MAPPED_FROM: Final = 64
ABOUT_CHANCE: Final = 0.55

Stage = Callable[[str, int, int], None]


class Objective(Protocol):
    """`memory` is what changes from step to step beside the weights. `value` is what a held-out evaluation is compared
    by, the larger the better.
    """

    memory: Figures

    def loss(self, step: int, part: int) -> tuple[torch.Tensor, Figures]: ...

    def held_out(self) -> Figures: ...

    def value(self, held_out: Figures) -> tuple[float, ...]: ...

    def warning(self, held_out: Figures) -> str | None: ...


def objective(config: Config, material: Material, network: Network, on_stage: Stage) -> Objective:
    """`network` has its LoRA. Raises NothingLearntError."""
    match config.method:
        case "sft":
            return Sft(config, material, network)
        case "dpo":
            return Dpo(config, material, network)
        case _:
            return TasteObjective(config, material, network, on_stage)


class Sft:
    """The likelihood of clips that were rated well."""

    def __init__(self, config: Config, material: Material, network: Network) -> None:
        self.memory: Figures = {}
        self._config = config
        self._pieces = material.pieces
        self._held = material.held_pieces[:MOST_HELD]
        self._network = network

    def loss(self, step: int, part: int) -> tuple[torch.Tensor, Figures]:
        dice = _dice(self._config, step, part)
        pieces = _drawn(self._pieces, self._config.batch, dice)
        likely = _likely(self._network, pieces, _kept(dice, len(pieces), self._config))
        loss = losses.sft(likely)
        return loss, {"loss": float(loss.detach())}

    @torch.no_grad()
    def held_out(self) -> Figures:
        if not self._held:
            return {}
        found = [losses.sft(_likely(self._network, part)) * len(part) for part in _parts(self._held)]
        return {"held_out_loss": float(torch.stack(found).sum()) / len(self._held)}

    def value(self, held_out: Figures) -> tuple[float, ...]:
        return (-held_out.get("held_out_loss", 0.0),)

    def warning(self, held_out: Figures) -> str | None:  # noqa: ARG002
        return None


class Dpo:
    """Direct preference optimisation against the base, with the chosen clips' likelihood mixed in."""

    def __init__(self, config: Config, material: Material, network: Network) -> None:
        self.memory: Figures = {}
        self._config = config
        self._pairs = material.pairs
        self._held = material.held_pairs[:MOST_HELD]
        self._network = network
        self._before: dict[int, list[torch.Tensor]] = {}

    def loss(self, step: int, part: int) -> tuple[torch.Tensor, Figures]:
        pairs = _drawn(self._pairs, self._config.batch, _dice(self._config, step, part))
        own = self._sides(pairs)
        with self._network.base():
            before = self._sides(pairs)
        margins = losses.margins(*own, *before)
        weights = torch.tensor([pair.weight for pair in pairs], device=margins.device)
        preferred = losses.dpo(margins, self._config.beta, self._config.label_smoothing, weights)
        likely = losses.sft(own[0])
        loss = preferred + self._config.sft_weight * likely
        return loss, {
            "loss": float(loss.detach()),
            "dpo": float(preferred.detach()),
            "chosen": float(likely.detach()),
            "accuracy": float((margins > 0).float().mean()),
        }

    @torch.no_grad()
    def held_out(self) -> Figures:
        if not self._held:
            return {}
        margins = []
        for number, part in enumerate(_parts(self._held)):
            own = self._sides(part)
            if number not in self._before:
                with self._network.base():
                    self._before[number] = self._sides(part)
            margins.append(losses.margins(*own, *self._before[number]))
        whole = torch.cat(margins)
        right = (whole > 0).float() + 0.5 * (whole == 0).float()
        loss = losses.dpo(whole, self._config.beta, self._config.label_smoothing)
        return {"held_out_accuracy": float(right.mean()), "held_out_loss": float(loss)}

    def value(self, held_out: Figures) -> tuple[float, ...]:
        return held_out.get("held_out_accuracy", 0.0), -held_out.get("held_out_loss", 0.0)

    def warning(self, held_out: Figures) -> str | None:
        accuracy = held_out.get("held_out_accuracy")
        if accuracy is None or accuracy > ABOUT_CHANCE:
            return None
        return (
            f"The adapter tells {accuracy:.0%} of {len(self._held)} held-out pairs apart, about chance: it has "
            "learnt its own pairs by heart. Rate more pairs, or use the method taste."
        )

    def _sides(self, pairs: Sequence[Two]) -> list[torch.Tensor]:
        count = len(pairs)
        both = _likely(self._network, [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
        return [both[:count], both[count:]]


class TasteObjective:
    """The expected reward of the next code, teacher-forced on the dataset's clips, under a KL to the base."""

    def __init__(self, config: Config, material: Material, network: Network, on_stage: Stage) -> None:
        self._config = config
        self._network = network
        self.listener = _listener(config, material, network, lambda: on_stage("fitting the preference model", 0, 1))
        on_stage("fitting the preference model", 1, 1)
        if not self.listener.hearing.is_heard:
            raise NothingLearntError(_nothing(self.listener), _figures(self.listener))
        self._own = _sides(material.pairs)
        self._held = _sides(material.held_pairs)[:MOST_HELD]
        slopes = Slopes(network, self.listener, [piece.codes for piece in self._own[:MAPPED_FROM]])
        self._slopes: dict[int, torch.Tensor] = {}
        every = [*self._own, *self._held]
        for number, piece in enumerate(every, 1):
            self._slopes[id(piece)] = slopes.of(piece.codes)
            on_stage("what each code adds", number, len(every))
        self._taste = Taste(network, config.kl_target, ramp=config.steps // 2)
        self._taste.calibrate(self._calibration)

    @property
    def memory(self) -> Figures:
        return {"kl_weight": self._taste.weight}

    @memory.setter
    def memory(self, kept: Figures) -> None:
        self._taste.weight = kept["kl_weight"]

    def loss(self, step: int, part: int) -> tuple[torch.Tensor, Figures]:
        dice = _dice(self._config, step, part)
        pieces = _drawn(self._own, self._config.batch, dice)
        logits, base, slopes = self._forced(pieces, _kept(dice, len(pieces), self._config))
        loss, figures = self._taste.loss(step, logits, base, slopes)
        return loss, {"loss": float(loss.detach()), **figures}

    @torch.no_grad()
    def held_out(self) -> Figures:
        found = []
        for part in _parts(self._held):
            logits, base, slopes = self._forced(part)
            found.append(torch.stack(losses.gain(logits, base, self._taste.rewards(slopes))) * len(part))
        if not found:
            return {}
        gain, divergence = (torch.stack(found).sum(0) / len(self._held)).tolist()
        return {"held_out_gain": gain, "held_out_kl": divergence}

    def value(self, held_out: Figures) -> tuple[float, ...]:
        return (held_out.get("held_out_gain", 0.0),)

    def warning(self, held_out: Figures) -> str | None:
        if held_out.get("held_out_gain", 1.0) > 0:
            return None
        return "On held-out prompts the adapter gains nothing. Rate more pairs before you use it."

    @property
    def figures(self) -> Figures:
        return _figures(self.listener)

    def _forced(
        self, pieces: Sequence[Piece], kept: Sequence[bool] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        codes, (states, mask) = _batch(self._network, pieces, kept)
        with self._network.base():
            base = self._network.logits(codes, states, mask)
        slopes = torch.stack([self._slopes[id(piece)][..., : codes.shape[2]] for piece in pieces])
        return self._network.logits(codes, states, mask), base, slopes

    def _calibration(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [self._forced(part)[1:] for part in _parts(self._own[:CALIBRATED_ON])]


def _listener(config: Config, material: Material, network: Network, on_fit: Callable[[], None]) -> Listener:
    pairs = [*material.pairs, *material.held_pairs]
    chosen, rejected = (
        {name: torch.stack([side.heard[name] for side in sides]) for name in sides[0].heard}
        for sides in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    return listen(
        Ear(network.sample_rate),
        chosen,
        rejected,
        weights=torch.tensor([pair.weight for pair in pairs]),
        groups=[pair.group for pair in pairs],
        held=[place >= len(material.pairs) for place in range(len(pairs))],
        seed=config.seed,
        on_fit=on_fit,
    )


def _nothing(listener: Listener) -> str:
    hearing = listener.hearing
    return (
        f"Nothing learnt: the preference model tells {hearing.share:.0%} of {hearing.pairs} held-out pairs apart (95 % "
        f"interval {hearing.low:.0%} to {hearing.high:.0%}), which may be chance (p = {hearing.chance:.2f}). No "
        "adapter was made. Rate more pairs, or compare clips that differ more in what you listen for."
    )


def _figures(listener: Listener) -> Figures:
    hearing = listener.hearing
    return {
        "pair_accuracy": hearing.share,
        "pair_accuracy_low": hearing.low,
        "pair_accuracy_high": hearing.high,
        "pair_accuracy_chance": hearing.chance,
        "pairs_judged": float(hearing.pairs),
    }


def _dice(config: Config, step: int, part: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, step, part])


def _kept(dice: np.random.Generator, count: int, config: Config) -> list[bool]:
    """Which clips keep their prompt."""
    kept: list[bool] = (dice.random(count) >= config.text_dropout).tolist()
    return kept


def _drawn(items: Sequence, count: int, dice: np.random.Generator) -> list:  # type: ignore[type-arg]
    places = dice.choice(len(items), min(count, len(items)), replace=False)
    return [items[place] for place in places]


def _parts(items: Sequence) -> list[Sequence]:  # type: ignore[type-arg]
    return [items[start : start + HELD_AT_ONCE] for start in range(0, len(items), HELD_AT_ONCE)]


def _sides(pairs: Sequence[Two]) -> list[Piece]:
    return list({id(side): side for pair in pairs for side in (pair.chosen, pair.rejected)}.values())


def _batch(
    network: Network, pieces: Sequence[Piece], kept: Sequence[bool] | None = None
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Codes `[clips, books, frames]` of as many frames as the shortest has, and the prompts."""
    frames = min(piece.codes.shape[1] for piece in pieces)
    codes = torch.stack([piece.codes[:, :frames] for piece in pieces]).to(network.device)
    return codes, network.texts([piece.clip.prompt for piece in pieces], kept)


def _likely(network: Network, pieces: Sequence[Piece], kept: Sequence[bool] | None = None) -> torch.Tensor:
    codes, (states, mask) = _batch(network, pieces, kept)
    return losses.log_probabilities(network.logits(codes, states, mask), codes)
