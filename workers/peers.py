"""Which workers are silent, by the heartbeats that came back through the log."""

from typing import Final

REMEMBERED: Final = 100_000


class Peers:
    """Silence is counted in one's own heartbeats that came back: while the log is away, nobody is silent."""

    def __init__(self, own_id: str) -> None:
        self._own_id = own_id
        self._beats = 0
        self._heard: dict[str, int] = {}

    def hear(self, worker_id: str) -> None:
        self._beats += worker_id == self._own_id
        self._heard.pop(worker_id, None)
        self._heard[worker_id] = self._beats
        if len(self._heard) > REMEMBERED:
            del self._heard[next(iter(self._heard))]

    def meet(self, worker_id: str) -> None:
        """One that is heard of for the first time has been silent from now on."""
        self._heard.setdefault(worker_id, self._beats)

    def is_silent(self, worker_id: str | None, beats: float) -> bool:
        """Whether it was not heard for more than so many heartbeats."""
        return self._heard.get(worker_id or "", 0) < self._beats - beats
