"""The decoder's step on a GPU: recorded once for each shape, as a CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from workers.engines.musicgen.batch import Shape

GRAPHS: Final = 128


class Graphs:
    def __init__(self) -> None:
        self._graphs: dict[Shape, Callable[[], None]] = {}
        self._pool: Any = None

    def replay(self, shape: Shape, step: Callable[[Shape], None], changed: Sequence[torch.Tensor]) -> None:
        """Records the step when a shape comes for the first time, and runs it.

        `changed` is what it reads and changes: recording runs it too often.
        """
        if shape not in self._graphs:
            if len(self._graphs) >= GRAPHS:
                self._graphs.clear()
            before = [tensor.clone() for tensor in changed]
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step(shape)
            torch.cuda.current_stream().wait_stream(stream)
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
            graph = torch.cuda.CUDAGraph()
            # Graphs run one after another and keep nothing, so they share their memory.
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool):
                step(shape)
            self._graphs[shape] = graph.replay
        self._graphs[shape]()
