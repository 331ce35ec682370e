"""The child process that a model lives in, and what it and its parent tell each other."""

import os
import queue
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

from msgspec import Struct

from workers.engine import Clip, Engine, EngineError, EngineRequest, Failure, Update
from workers.engines import memory
from workers.garbage import uncollected

# An ordered stop may signal every process of a terminal or a service. The parent alone acts on it, and ends the child.
ORDERS_TO_STOP: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class Ready(Struct, frozen=True):
    device: str
    capacity: int


class Refused(Struct, frozen=True):
    error: str


class Cancel(Struct, frozen=True):
    request_id: str


class Stopped(Struct, frozen=True):
    request_id: str


class Measure(Struct, frozen=True):
    """Asks for Measured."""


class Measured(Struct, frozen=True):
    """The most memory that was taken so far, in bytes: the device's, or the process's where that has none."""

    memory: int


Order: TypeAlias = EngineRequest | Cancel | Measure
Message: TypeAlias = Ready | Refused | Measured | Update | Stopped


def serve(
    pipe: "Connection[Any, Any]", build: Callable[..., Engine], arguments: tuple[Any, ...], log: Callable[[], None]
) -> None:
    for number in ORDERS_TO_STOP:
        signal.signal(number, signal.SIG_IGN)
    log()
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
    try:
        with uncollected():
            engine = build(*arguments)
    except EngineError as error:
        pipe.send(Refused(str(error)))
        return
    pipe.send(Ready(engine.device, engine.capacity))
    with suppress(BrokenPipeError):
        work(engine, orders, pipe)


def _receive(pipe: "Connection[Any, Any]", orders: "queue.SimpleQueue[Order]") -> None:
    """Ends the process when the parent is gone, even while the main thread is busy."""
    with suppress(EOFError, OSError):
        while True:
            orders.put(pipe.recv())
    os._exit(0)


def work(engine: Engine, orders: "queue.SimpleQueue[Order]", pipe: "Connection[Any, Any]") -> None:
    owed: dict[str, int] = {}
    capacity = engine.capacity
    while True:
        while not owed or not orders.empty():
            match orders.get():
                case EngineRequest() as request:
                    try:
                        engine.admit(request)
                    except EngineError as error:
                        pipe.send(Failure(request_id=request.id, error=str(error), transient=error.transient))
                    else:
                        owed[request.id] = len(request.takes)
                case Cancel(request_id=request_id):
                    engine.cancel(request_id)
                    owed.pop(request_id, None)
                    pipe.send(Stopped(request_id))
                case Measure():
                    pipe.send(Measured(memory.peak(engine.device)))
        for update in engine.advance():
            match update:
                case Clip(request_id=request_id) if owed[request_id] > 1:
                    owed[request_id] -= 1
                case Clip(request_id=request_id) | Failure(request_id=request_id):
                    del owed[request_id]
            pipe.send(update)
        if engine.capacity != capacity:
            capacity = engine.capacity
            pipe.send(Ready(engine.device, capacity))
