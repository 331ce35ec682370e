"""From a checkpoint to an engine, inside the process that is to own it."""

import os

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars

from workers.engine import Engine
from workers.engines.checkpoints import Checkpoint


def load(checkpoint: Checkpoint, device: str | None = None) -> Engine:
    """Sets the process's threads, chatter and network too. Raises EngineError."""
    constants.HF_HUB_OFFLINE = True
    disable_progress_bars()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"

    # The parent imports this module to name the function, and must not wait for these.
    import torch  # noqa: PLC0415

    from workers.engines.musicgen.engine import MusicgenEngine  # noqa: PLC0415

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # The built-in model is so small that its threads would only wait for each other.
    torch.set_num_threads(1 if checkpoint.folder is None or cores == 1 else max(2, cores - 1))
    return MusicgenEngine.load(checkpoint, device)
