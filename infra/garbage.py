"""How often a process that serves looks for objects that nobody needs."""

import gc
from typing import Final

# Of new objects, older ones, and all: CPython's own are 700, 10 and 10.
THRESHOLDS: Final = (5_000, 40, 20)


def collect_rarely() -> None:
    """To be called once everything is imported, as what lives then lives to the end, and is not looked through again.

    Left as it is, CPython looks through the new objects of every few requests, which costs a tenth of a submission,
    and through all of them whenever there are a quarter more, while every request waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
