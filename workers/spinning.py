"""How long a process's threads of OpenMP spin while they wait for each other, set before its libraries are loaded."""

from typing import Final

# On a busy core the others wait for long, and burn what theirs would give to somebody else.
BRIEF: Final = {"GOMP_SPINCOUNT": "1000"}
