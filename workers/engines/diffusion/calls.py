"""A pipeline's call beside the engine's own thread, as it returns only with the finished audio."""

import queue
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Sound: TypeAlias = NDArray[np.float32]
# Says how much of the denoising is done, 0 to 1, after each step.
Tell: TypeAlias = Callable[[float], None]


class Dropped(BaseException):
    """Ends a call between two steps. Libraries that catch Exception let it pass."""


class Call:
    """`news` are how much of the denoising is done, then the sound, or what went wrong."""

    def __init__(self, make: Callable[[Tell], Sound]) -> None:
        self._make = make
        self._dropped = threading.Event()
        self._news: Final = queue.SimpleQueue[float | Sound | Exception]()
        self._thread = threading.Thread(target=self._run, name="text2song-pipeline", daemon=True)
        self._thread.start()

    def news(self, seconds: float | None) -> float | Sound | Exception | None:
        """None if there are none for so long."""
        try:
            return self._news.get(timeout=seconds)
        except queue.Empty:
            return None

    def drop(self) -> None:
        """Has it end after the step that it is at."""
        self._dropped.set()

    def has_ended(self, seconds: float | None) -> bool:
        """Waits for its end for so long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._news.put(self._make(self._tell))
        except Dropped:
            pass
        except Exception as error:
            self._news.put(error)

    def _tell(self, share: float) -> None:
        if self._dropped.is_set():
            raise Dropped
        self._news.put(share)
