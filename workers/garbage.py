"""When a process that loads a model looks for objects that nobody needs: not while it loads."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """While libraries are imported: the collector would look through all their objects again and again, a seventh of
    the time. What is there in the end lives on, and is not looked through either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
