"""An engine's rows, as its worker gives them out."""

import asyncio
from collections import deque


class Places:
    """Rows, given out in the order in which they are asked for.

    One that is free is enough for a request with many takes: the engine starts the others as further rows get free.
    """

    def __init__(self) -> None:
        self.capacity = 0
        self._taken = 0
        self._asking: deque[tuple[asyncio.Future[None], int]] = deque()

    async def take(self, count: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._asking.append((turn, count))
        self.free(0)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.free(count)
            raise

    def free(self, count: int) -> None:
        self._taken -= count
        while self._asking and self._taken < self.capacity:
            turn, wanted = self._asking.popleft()
            if not turn.done():
                self._taken += wanted
                turn.set_result(None)

    @property
    def busy(self) -> int:
        return min(self._taken, self.capacity)

    def resize(self, capacity: int) -> None:
        self.capacity = capacity
        self.free(0)
