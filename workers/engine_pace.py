"""How much audio an engine makes in a second of work."""

from collections.abc import Callable
from typing import Final

HALF_LIFE: Final = 120.0  # seconds of work, after which what was before counts half


class Pace:
    """`clock` is in seconds and never jumps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        self._worked = self._made = 0.0
        self._known = False

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of audio a second, None before the first clip is there."""
        worked = self._worked + self._running
        return self._made / worked if self._known and worked > 0 else None

    @property
    def _running(self) -> float:
        return 0.0 if self._since is None else self._clock() - self._since

    def go_on(self) -> None:
        """Says that the engine has something to do."""
        if self._since is None:
            self._since = self._clock()

    def rest(self) -> None:
        self._worked += self._running
        self._since = None

    def made(self, seconds: float) -> None:
        """Says that so much audio is there."""
        if self._since is not None:
            now = self._clock()
            self._worked, self._since = self._worked + now - self._since, now
        self._made += seconds
        self._known = True
        if self._worked > HALF_LIFE:
            self._worked, self._made = self._worked / 2, self._made / 2
