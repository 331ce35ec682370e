"""Threads that share an engine's work on a CPU."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

import torch

from workers.cores import usable_cores

# With fewer, threads lose more by taking turns in Python than they win by computing at the same time.
ROWS_EACH: Final = 8
MOST: Final = 4


class Crew:
    """Where each product takes one thread, parts of the batch and pieces of audio are made side by side, a core each.

    They wait for each other once in many steps, and not in every product as OpenMP's threads do, so a busy core costs
    little. Where products take several threads, or on a GPU, one thing is done at a time.
    """

    def __init__(self, device: torch.device) -> None:
        is_shared = device.type == "cpu" and torch.get_num_threads() == 1
        self.size = min(usable_cores(), MOST) if is_shared else 1
        # More than there are cores: no part of the batch waits behind a piece of audio.
        self._threads = ThreadPoolExecutor(2 * MOST, "crew") if is_shared else None

    def parts(self, rows: range) -> list[range]:
        """As many as pay, and alike in size."""
        count = max(1, min(self.size, len(rows) // ROWS_EACH))
        return [rows[len(rows) * part // count : len(rows) * (part + 1) // count] for part in range(count)]

    def begin(self, job: Callable[[], None]) -> Future[None]:
        """Done already where one thing is done at a time."""
        if self._threads is not None:
            return self._threads.submit(job)
        done: Future[None] = Future()
        try:
            job()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        return done

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """All of them, the first in this thread. When all have ended, raises what the first one that failed raised."""
        first, *others = jobs
        begun = [self.begin(job) for job in others]
        try:
            first()
        finally:
            wait(begun)
        for job in begun:
            job.result()
