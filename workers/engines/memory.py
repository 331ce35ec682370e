"""How much memory a model takes."""

import ctypes
import resource
import sys
from pathlib import Path
from typing import Final

STATUS: Final = Path("/proc/self/status")
PEAK: Final = "VmHWM:"  # in kB


def peak(device: str) -> int:
    """The most that this process took so far, in bytes: of a GPU's memory, or else of the machine's."""
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415

        return torch.cuda.max_memory_reserved(device)
    if STATUS.exists():
        # What getrusage tells began with what the parent took.
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(PEAK))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def give_back() -> None:
    """Returns to the system what the C library keeps of memory that was freed, where it can: glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
