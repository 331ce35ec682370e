"""Loads a checkpoint as an engine, in the process that will run it."""

import os
from importlib.util import find_spec
from typing import Final

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars

from workers.cores import spin_briefly, usable_cores
from workers.engine import Engine, EngineError
from workers.engines.checkpoints import BUILT_IN, Checkpoint

INSTALL: Final = "make install, or without make: pip install '.[diffusion]'"
NEEDED: Final = ("diffusers", "torchsde")


def load(checkpoint: Checkpoint, device: str | None = None) -> Engine:
    """Also sets this process's thread count, silences the libraries and disables hub downloads. Raises EngineError."""
    is_pipeline = checkpoint.model.family != "musicgen"
    if is_pipeline and not all(map(find_spec, NEEDED)):
        raise EngineError(
            f"Model {checkpoint.model.id} takes further packages. Install them in the studio's folder: {INSTALL}"
        )
    constants.HF_HUB_OFFLINE = True
    disable_progress_bars()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    spin_briefly()

    # The parent process imports this module only to pass `load` on, and these imports would slow it down.
    import torch  # noqa: PLC0415

    cores = usable_cores()
    # The built-in models are too small to gain from a second thread, which a busy core would then hold up.
    torch.set_num_threads(1 if checkpoint in BUILT_IN or cores == 1 else max(2, cores - 1))
    if is_pipeline:
        from workers.engines.diffusion.engine import DiffusionEngine  # noqa: PLC0415

        return DiffusionEngine.load(checkpoint, device)
    from workers.engines.musicgen.engine import MusicgenEngine  # noqa: PLC0415

    return MusicgenEngine.load(checkpoint, device)
