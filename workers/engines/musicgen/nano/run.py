"""Resumable training: a state on disk that survives being stopped at any moment, and the learning-rate schedule."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

SAVE_SECONDS: Final = 120.0
WARMUP_STEPS: Final = 200
MIN_LR_RATIO: Final = 0.05


class Run:
    """A training run of a fixed number of steps in a folder; opened again, it resumes from its last saved state.

    `parts` are the objects to save, which have state_dict and load_state_dict; their names are keys of the state file.
    """

    def __init__(self, folder: Path, steps: int, **parts: Any) -> None:
        self.path = folder / "state.pt"
        self.steps = steps
        self.parts = parts
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            if state["steps"] != steps:
                raise SystemExit(
                    f"{self.path} is of a run of {state['steps']} steps, not {steps}; name another folder."
                )
            self.step = state["step"]
            for name, part in parts.items():
                part.load_state_dict(state[name])

    def __iter__(self) -> Iterator[int]:
        """Yields the steps left, and saves between them. Each seeds torch, so a resumed run draws the same numbers."""
        saved = time.monotonic()
        while self.step < self.steps:
            torch.manual_seed(self.step)
            yield self.step
            self.step += 1
            if time.monotonic() - saved > SAVE_SECONDS or self.step == self.steps:
                self.save()
                saved = time.monotonic()

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        partial = self.path.with_suffix(".partial")
        torch.save({"step": self.step, "steps": self.steps, **state}, partial)
        partial.replace(self.path)

    def learning_rate(self, peak: float) -> float:
        """The rate of this step: cosine decay to MIN_LR_RATIO of the peak, times a linear warm-up."""
        warmup = min(1.0, (self.step + 1) / WARMUP_STEPS)
        progress = self.step / self.steps
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return peak * warmup * (MIN_LR_RATIO + (1 - MIN_LR_RATIO) * cosine)
