"""How much a take is to the taste that an adapter was trained for, by the preference model kept with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from domain.lora import PREFERENCE
from workers.engine import EngineError
from workers.training.features import Ear
from workers.training.listener import TIMBRE


class Liking(Struct, frozen=True):
    """`slopes` say by group how much a number adds to a clip's log-odds to be preferred."""

    ear: Ear
    slopes: Mapping[str, torch.Tensor]

    @classmethod
    def load(cls, folder: Path, sample_rate: int) -> "Liking | None":
        """None where the adapter has none. Raises EngineError where it is not of this model's audio, and a
        transient one where the disk refuses.
        """
        card, weights = (folder / name for name in PREFERENCE)
        if not (card.is_file() and weights.is_file()):
            return None
        try:
            told, slopes = json.loads(card.read_bytes()), load_file(weights)
            rate = int(told["sample_rate"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            said = f"The adapter's preference model cannot be read: {error}."
            raise EngineError(said, transient=isinstance(error, OSError)) from error
        if rate != sample_rate:
            said = f"The adapter's preference model hears {rate} Hz, but the model makes {sample_rate} Hz."
            raise EngineError(f"{said} Leave best_of_by out, or use another adapter.")
        return cls(Ear(rate), slopes)

    def score(self, pcm: NDArray[np.float32], codes: torch.Tensor, codec: Any, channels: int) -> float:
        """Of audio `[channels, samples]` and its codes `[codebooks, frames]`; only differences mean something."""
        heard = self.ear.hear(torch.from_numpy(pcm.mean(0))[None])
        latents = [codec.quantizer.decode(codes[channel::channels][:, None]) for channel in range(channels)]
        heard[TIMBRE] = torch.stack(latents).mean((0, 1, 3))[None].float().cpu()
        if {group: values.shape[1:] for group, values in heard.items()} != {
            group: slopes.shape for group, slopes in self.slopes.items()
        }:
            raise EngineError("The adapter's preference model does not fit the model's audio; train it again.")
        return float(torch.stack([(heard[group][0].double() * self.slopes[group]).sum() for group in heard]).sum())
