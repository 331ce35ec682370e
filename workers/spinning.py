"""How long a process's threads of OpenMP spin while they wait for each other, set before its libraries are loaded."""

import os
from typing import Final

# On a busy core the others wait for long, and burn what theirs would give to somebody else.
BRIEF: Final = {"GOMP_SPINCOUNT": "1000"}


def spin_briefly() -> None:
    """From now on in this process, unless its environment says otherwise."""
    for name, value in BRIEF.items():
        os.environ.setdefault(name, value)
