"""Where a training stands, in one file, so that it can go on later as if it had never stopped."""

import os
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workers.training.errors import TrainingError
from workers.training.standing import ABOUT, FILE, Standing


class Checkpoint(Struct, frozen=True, kw_only=True):
    """`tensors` are the LoRA's under `lora.`, those of its best state under `best.`, AdamW's under `moments.`"""

    standing: Standing
    tensors: dict[str, torch.Tensor]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        start = f"{name}."
        return {key.removeprefix(start): tensor for key, tensor in self.tensors.items() if key.startswith(start)}


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """All or nothing. Raises TrainingError where the disk refuses."""
    partial = folder / f"{FILE}.part"
    about = {ABOUT: msgspec.json.encode(checkpoint.standing).decode()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(checkpoint.tensors, partial, metadata=about)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(folder / FILE)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(
            f"The checkpoint cannot be written to {folder}: {reason}. Make room there; the same command goes on from "
            "the last one.",
            transient=True,
        ) from None


def load(folder: Path) -> Checkpoint | None:
    """None where there is none. Raises TrainingError for a file that is damaged, a transient one where the disk does
    not give it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(standing=msgspec.json.decode(about[ABOUT], type=Standing), tensors=tensors)
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error}. Mend the disk and try again.", transient=True) from None
    except (SafetensorError, KeyError, msgspec.MsgspecError) as error:
        raise TrainingError(
            f"{path} is damaged: {error}. Delete it to begin again, or name another folder with --output."
        ) from None


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"moments.{place}.{name}": value.detach().cpu().clone()
        for place, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in moments.items():
        place, _, name = key.partition(".")
        state.setdefault(int(place), {})[name] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
