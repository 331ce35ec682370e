"""The cores of this process, and how its threads of OpenMP wait for each other on them."""

import os
from typing import Final

# On a busy core the others wait for long, and burn what theirs would give to somebody else.
BRIEF: Final = {"GOMP_SPINCOUNT": "1000"}


def usable_cores() -> int:
    """Those that the system lets this process run on, where it says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spin_briefly() -> None:
    """Before OpenMP is loaded, unless the environment says otherwise."""
    for name, value in BRIEF.items():
        os.environ.setdefault(name, value)
