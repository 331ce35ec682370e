"""What the training runs share: a state on disk that survives being stopped at any moment, and the learning rate."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

SAVE_SECONDS: Final = 120.0
WARM_UP: Final = 200


class Run:
    """A training run of a fixed number of steps in a folder; opened again, it goes on from its last saved state.

    What is given as `parts` has state_dict and load_state_dict.
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
        """The steps still to do, saving between them; each seeds torch, so that a resumed run draws the same."""
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

    def rate(self, peak: float) -> float:
        """A warm-up, then a cosine down to a twentieth of the peak."""
        share = self.step / self.steps
        return peak * min(1.0, (self.step + 1) / WARM_UP) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
