"""The child process that owns a model: the event loop stays free; a crash, a hang or a full memory is survivable."""

import asyncio
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

from msgspec import Struct

from workers.engine import Clip, Engine, EngineError, EngineRequest, Failure, Progress, Update

SPAWN: Final = multiprocessing.get_context("spawn")


class Ready(Struct, frozen=True):
    device: str
    capacity: int


class Refused(Struct, frozen=True):
    error: str


class Cancel(Struct, frozen=True):
    request_id: str


class Stopped(Struct, frozen=True):
    request_id: str


class Died(Struct, frozen=True):
    reason: str


Order: TypeAlias = EngineRequest | Cancel
Heard: TypeAlias = Update | Stopped | Died


class EngineProcess:
    """An engine in a process of its own: started by `start` and, after a death, by the next `generate`.

    `build(*arguments)` makes the engine inside the child, so both must be picklable. In seconds: `load_timeout` is for
    that, `stall_timeout` is the longest silence while the child has work, `stop_timeout` is its time to end.
    """

    def __init__(
        self,
        build: Callable[..., Engine],
        *arguments: Any,
        load_timeout: float = 600.0,
        stall_timeout: float = 120.0,
        stop_timeout: float = 5.0,
    ) -> None:
        self._build = build
        self._arguments = arguments
        self._load_timeout = load_timeout
        self._stall_timeout = stall_timeout
        self._stop_timeout = stop_timeout
        self._starting = asyncio.Lock()
        self._slots = asyncio.Semaphore(0)
        self._child: _Child | None = None
        self._device = "unknown"

    @property
    def device(self) -> str:
        """Torch's name for where the model is; "unknown" before the first start."""
        return self._device

    @property
    def alive(self) -> bool:
        return self._child is not None and not self._child.gone.is_set()

    @property
    def pid(self) -> int | None:
        return self._child.process.pid if self._child else None

    async def start(self) -> None:
        """Raises EngineError when the model cannot be loaded, or not in time."""
        await self._living()

    async def stop(self) -> None:
        """Ends the child; a request that it holds fails as with any death."""
        if self._child is not None:
            await self._child.end("was stopped")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        """Waits for its turn, and yields until the last take's clip. Raises EngineError.

        Closed or cancelled early, it is over once the child has said that it let go of the request.
        """
        await self._living()
        async with self._slots:
            child = await self._living()
            heard = child.open(request)
            owed = len(request.takes)
            try:
                while owed:
                    match await heard.get():
                        case Clip() as clip:
                            owed -= 1
                            yield clip
                        case Progress() as progress:
                            yield progress
                        case Failure(error=error, transient=transient):
                            owed = 0
                            raise EngineError(error, transient=transient)
                        case Died(reason=reason):
                            owed = 0
                            raise EngineError(reason, transient=True)
            finally:
                if owed:
                    child.send(Cancel(request.id))
                    while not isinstance(await heard.get(), Stopped | Died):
                        pass
                child.close(request.id)

    async def _living(self) -> "_Child":
        async with self._starting:
            if self._child is None or self._child.gone.is_set():
                child = _Child(self._build, self._arguments, self._stall_timeout, self._stop_timeout)
                ready = await child.start(patience=self._load_timeout)
                if self._child is None:
                    for _ in range(ready.capacity):
                        self._slots.release()
                self._child, self._device = child, ready.device
            return self._child


class _Child:
    """One life of the process. Everything but `_listen` runs on the event loop."""

    def __init__(
        self, build: Callable[..., Engine], arguments: tuple[Any, ...], stall_timeout: float, stop_timeout: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe, self._far_end = SPAWN.Pipe()
        self.process = SPAWN.Process(
            target=_serve, args=(self._far_end, build, arguments), name="text2song-engine", daemon=True
        )
        self.gone = asyncio.Event()
        self._answer: asyncio.Future[Ready | Refused | Died] = self._loop.create_future()
        self._routes: dict[str, asyncio.Queue[Heard]] = {}
        self._owed: dict[str, int] = {}
        self._reason: str | None = None
        self._stall_timeout = stall_timeout
        self._stop_timeout = stop_timeout
        self._alarm: asyncio.TimerHandle | None = None

    async def start(self, *, patience: float) -> Ready:
        await asyncio.to_thread(self._spawn)
        self._far_end.close()
        threading.Thread(target=self._listen, name="text2song-engine-listener", daemon=True).start()
        try:
            async with asyncio.timeout(patience):
                answer = await self._answer
        except BaseException as error:
            await self.end("was stopped")
            if isinstance(error, TimeoutError):
                raise EngineError(f"The model was not loaded within {patience:g} s.", transient=True) from error
            raise
        match answer:
            case Ready():
                return answer
            case Refused(error=refusal):
                await self.gone.wait()
                raise EngineError(refusal)
            case Died(reason=reason):
                raise EngineError(f"{reason} It was loading the model.", transient=True)

    def _spawn(self) -> None:
        # Ctrl-C reaches the whole process group, and the child while it is still importing. The tracker is started
        # first, because starting it unblocks the signal again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    async def end(self, reason: str) -> None:
        self._reason = self._reason or f"The generation process {reason}."
        self.process.terminate()
        try:
            async with asyncio.timeout(self._stop_timeout):
                await self.gone.wait()
        except TimeoutError:
            self.process.kill()
            await self.gone.wait()

    def open(self, request: EngineRequest) -> asyncio.Queue[Heard]:
        self._owed[request.id] = len(request.takes)
        self._routes[request.id] = asyncio.Queue()
        self.send(request)
        self._watch()
        return self._routes[request.id]

    def send(self, order: Order) -> None:
        with suppress(OSError):  # a dead child is reported by `_listen`
            self._pipe.send(order)

    def close(self, request_id: str) -> None:
        self._routes.pop(request_id, None)

    def _listen(self) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            with suppress(EOFError, OSError):
                while True:
                    self._loop.call_soon_threadsafe(self._hear, self._pipe.recv())
            self.process.join(self._stop_timeout)
            self.process.kill()
            self.process.join()
            self._loop.call_soon_threadsafe(self._die, self.process.exitcode)
        self._pipe.close()

    def _hear(self, message: Ready | Refused | Update | Stopped) -> None:
        match message:
            case Ready() | Refused():
                if not self._answer.done():
                    self._answer.set_result(message)
                return
            case Clip(request_id=request_id) if self._owed.get(request_id, 0) > 1:
                self._owed[request_id] -= 1
            case Clip(request_id=request_id) | Failure(request_id=request_id) | Stopped(request_id=request_id):
                self._owed.pop(request_id, None)
        self._watch()
        if route := self._routes.get(message.request_id):
            route.put_nowait(message)

    def _watch(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(self._stall_timeout, self._give_up) if self._owed else None

    def _give_up(self) -> None:
        self._reason = f"The generation process said nothing for {self._stall_timeout:g} s and was ended."
        self.process.kill()

    def _die(self, exit_code: int | None) -> None:
        died = Died(self._reason or f"The generation process died ({_cause(exit_code)}).")
        self._owed.clear()
        self._watch()
        if not self._answer.done():
            self._answer.set_result(died)
        for route in self._routes.values():
            route.put_nowait(died)
        self.gone.set()


def _cause(exit_code: int | None) -> str:
    match exit_code:
        case None:
            return "exit code unknown"
        case -9:
            return "signal 9, out of memory?"
        case _ if exit_code < 0:
            return f"signal {-exit_code}"
        case _:
            return f"exit code {exit_code}"


def _serve(pipe: "Connection[Any, Any]", build: Callable[..., Engine], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C reaches every process of the terminal; here the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
    try:
        engine = build(*arguments)
    except EngineError as error:
        pipe.send(Refused(str(error)))
        return
    pipe.send(Ready(engine.device, engine.capacity))
    with suppress(BrokenPipeError):
        _work(engine, orders, pipe)


def _receive(pipe: "Connection[Any, Any]", orders: "queue.SimpleQueue[Order]") -> None:
    """Ends the process when the parent is gone, whatever the main thread is in the middle of."""
    with suppress(EOFError, OSError):
        while True:
            orders.put(pipe.recv())
    os._exit(0)


def _work(engine: Engine, orders: "queue.SimpleQueue[Order]", pipe: "Connection[Any, Any]") -> None:
    owed: dict[str, int] = {}
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
        for update in engine.advance():
            match update:
                case Clip(request_id=request_id) if owed[request_id] > 1:
                    owed[request_id] -= 1
                case Clip(request_id=request_id) | Failure(request_id=request_id):
                    del owed[request_id]
            pipe.send(update)
