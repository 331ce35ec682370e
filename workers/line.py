"""Who is next: the most urgent rank first, in it the owners in turn, and of each owner the most urgent thing."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from msgspec import Struct, field


class Waiting(Struct, eq=False):
    turn: int
    things: list[tuple[Any, str]] = field(default_factory=list)


class Line:
    """An owner whose turn it was goes behind all others of its rank, and so does one that comes anew. So whoever waits
    sees every other owner served once at most. Each call takes time that grows with the logarithm of the length.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[Any, str], Waiting] = {}
        # Some are out of date: of an owner's turns, the latest counts.
        self._turns: list[tuple[Any, int, str]] = []
        self._count = 0

    def put(self, rank: Any, owner: str, urgency: Any, id_: str) -> None:
        """Smaller ranks and urgencies come first; no two urgencies are the same."""
        if (rank, owner) not in self._waiting:
            self._waiting[rank, owner] = Waiting(0)
            self.pass_on(rank, owner)
        heappush(self._waiting[rank, owner].things, (urgency, id_))

    def pass_on(self, rank: Any, owner: str) -> None:
        """Says that the owner was served."""
        if (waiting := self._waiting.get((rank, owner))) is not None:
            self._count += 1
            waiting.turn = self._count
            heappush(self._turns, (rank, self._count, owner))

    def first(self, may_go: Callable[[str], bool], has_enough: Callable[[str], bool] = lambda _: False) -> str | None:
        """Stays in the line. Those before it that may not go are dropped from it.

        Owners that have enough are passed over, and keep their turn.
        """
        passed: list[tuple[Any, int, str]] = []
        try:
            while self._turns:
                rank, turn, owner = self._turns[0]
                waiting = self._waiting.get((rank, owner))
                if waiting is not None and waiting.turn == turn:
                    while waiting.things and not may_go(waiting.things[0][1]):
                        heappop(waiting.things)
                    if waiting.things and not has_enough(owner):
                        return waiting.things[0][1]
                    if waiting.things:
                        passed.append(self._turns[0])
                    else:
                        del self._waiting[rank, owner]
                heappop(self._turns)
            return None
        finally:
            for each in passed:
                heappush(self._turns, each)
