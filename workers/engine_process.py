"""Runs a model in a child process, so a crash, a hang or full memory there does not stop the worker's event loop."""

import asyncio
import atexit
import itertools
import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any, Final, TypeAlias

from msgspec import Struct

from domain.models import MIN_DURATION
from workers.engine import Clip, Engine, EngineError, EngineRequest, Failure, Progress, Take, Update
from workers.engine_child import (
    ORDERS_TO_STOP,
    Cancel,
    Measure,
    Measured,
    Message,
    Order,
    Ready,
    Refused,
    Stopped,
    serve,
)
from workers.engine_pace import Pace
from workers.engine_places import Places

SPAWN: Final = multiprocessing.get_context("spawn")
EXIT_SECONDS: Final = 5.0
# For models that denoise: a check must not take as long as music. Others do not read it.
FEW_STEPS: Final = {"num_inference_steps": 2}

logger: Final = logging.getLogger(__name__)


class Died(Struct, frozen=True):
    reason: str


Heard: TypeAlias = Update | Stopped | Died


class EngineProcess:
    """An engine in a child process. `start` starts it; if it died, the next `generate` starts it again.

    With `unload_after`, the child is ended once it has had no request for that long, which frees its memory; it tells
    of itself as before, and the next `generate` starts it again.

    `build(*arguments)` makes the engine in the child, so both must be picklable, as
    `log`, which has the child log. The timeouts are in seconds:
    `load_timeout` limits the loading, `stall_timeout` the child's silence during a request.
    """

    def __init__(
        self,
        build: Callable[..., Engine],
        *arguments: Any,
        load_timeout: float = 600.0,
        stall_timeout: float = 120.0,
        unload_after: float | None = None,
        log: Callable[[], None] = logging.basicConfig,
    ) -> None:
        self._build = build
        self._log = log
        self._arguments = arguments
        self._load_timeout = load_timeout
        self._stall_timeout = stall_timeout
        self._starting = asyncio.Lock()
        self._places = Places()
        self._child: _Child | None = None
        self._device = "unknown"
        self._checks = itertools.count()
        self._pace = Pace(time.monotonic)
        self._unload_after = unload_after
        self._needs = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None

    @property
    def capacity(self) -> int:
        """How many takes the engine makes at once; 1 before the first start. Less, once memory has run out."""
        return self._places.capacity or 1

    @property
    def busy(self) -> int:
        """How many takes it is making."""
        return self._places.busy

    @property
    def real_time_factor(self) -> float | None:
        """How many seconds of audio it makes in a second of work, all takes together; None before the first clip."""
        return self._pace.real_time_factor

    @property
    def device(self) -> str:
        """The torch device of the model; "unknown" before the first start."""
        return self._device

    @property
    def alive(self) -> bool:
        return self._child is not None and not self._child.gone.is_set()

    @property
    def pid(self) -> int | None:
        return self._child.process.pid if self._child else None

    async def memory(self) -> int | None:
        """The most that it took so far, in bytes: of the device's, or else of the machine's. None while there is no
        child.
        """
        return None if self._child is None else await self._child.memory()

    async def start(self) -> None:
        """Raises EngineError if the model cannot be loaded, or not within `load_timeout`."""
        with self._needed():
            await self._living()

    async def stop(self) -> None:
        """Ends the child; its current requests fail as after a crash."""
        if self._timer is not None:
            self._timer.cancel()
        if self._unloading is not None:
            await asyncio.wait({self._unloading})
        if self._child is not None:
            await self._child.end("was stopped")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        """Waits until the engine has room for a take, then yields progress and clips until the last clip.

        Raises EngineError. When closed or cancelled early, it returns only after the child has confirmed the
        cancellation, or died.
        """
        with self._needed():
            async with aclosing(self._generate(request)) as updates:
                async for update in updates:
                    yield update

    async def _generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        await self._living()
        owed = held = len(request.takes)
        await self._places.take(held)
        self._pace.go_on()
        try:
            child = await self._living()
            heard = child.open(request)
            try:
                while owed:
                    match await heard.get():
                        case Clip() as clip:
                            owed -= 1
                            held -= 1
                            self._places.free(1)
                            self._pace.made(clip.pcm.shape[1] / clip.sample_rate)
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
        finally:
            self._places.free(held)
            if not self._places.busy:
                self._pace.rest()

    async def check(self) -> None:
        """Carries out a small request of its own. Raises EngineError: then no request can be carried out."""
        request = EngineRequest(
            id=f"check/{next(self._checks)}",
            prompt="a tone",
            duration=MIN_DURATION,
            takes=[Take(0, seed=0)],
            parameters=FEW_STEPS,
        )
        async with aclosing(self.generate(request)) as updates:
            async for _ in updates:
                pass

    @contextmanager
    def _needed(self) -> Iterator[None]:
        """The child is not unloaded meanwhile, and once nobody needs it any more, only after a while."""
        self._needs += 1
        if self._timer is not None:
            self._timer.cancel()
        try:
            yield
        finally:
            self._needs -= 1
            if not self._needs and self._unload_after is not None:
                self._timer = asyncio.get_running_loop().call_later(self._unload_after, self._leave)

    def _leave(self) -> None:
        self._unloading = asyncio.create_task(self._unload())

    async def _unload(self) -> None:
        """Whoever needs the child meanwhile waits until it is gone, and starts the next."""
        async with self._starting:
            if not self._needs and self._child is not None and self.alive:
                logger.info("The model is unloaded, as there was nothing to make for a while.")
                await self._child.end("was unloaded")

    async def _living(self) -> "_Child":
        async with self._starting:
            if self._child is None or self._child.gone.is_set():
                child = _Child(self._build, self._arguments, self._stall_timeout, self._places.resize, self._log)
                ready = await child.start(patience=self._load_timeout)
                self._child, self._device = child, ready.device
                self._places.resize(ready.capacity)
            return self._child


class _Child:
    """One child process, from start to end. All methods but `_spawn` and `_listen` run on the event loop."""

    def __init__(
        self,
        build: Callable[..., Engine],
        arguments: tuple[Any, ...],
        stall_timeout: float,
        resize: Callable[[int], None],
        log: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pipe, self._far_end = SPAWN.Pipe()
        self.process = SPAWN.Process(
            target=serve, args=(self._far_end, build, arguments, log), name="text2song-engine", daemon=True
        )
        self.gone = asyncio.Event()
        self._answer: asyncio.Future[Ready | Refused | Died] = self._loop.create_future()
        self._routes: dict[str, asyncio.Queue[Heard]] = {}
        self._owed: dict[str, int] = {}
        self._reason: str | None = None
        self._stall_timeout = stall_timeout
        self._resize = resize
        self._alarm: asyncio.TimerHandle | None = None
        self._asking: list[asyncio.Future[int | None]] = []

    async def start(self, *, patience: float) -> Ready:
        spawning = asyncio.create_task(asyncio.to_thread(self._spawn))
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(spawning)
                answer = await self._answer
        except BaseException as error:
            # A stop that comes in between must not leave behind a child that nobody knows.
            await asyncio.wait({spawning})
            if spawning.exception() is not None:
                raise
            await self.end("was stopped")
            if isinstance(error, TimeoutError):
                raise EngineError(f"The model was not loaded within {patience:g} s.", transient=True) from error
            raise
        match answer:
            case Ready():
                return answer
            case Refused(error=refusal):
                await self.gone.wait()
                raise EngineError(refusal, transient=True)
            case Died(reason=reason):
                raise EngineError(f"{reason} It was loading the model.", transient=True)

    def _spawn(self) -> None:
        # The signals would kill the child during its imports, so it starts with them blocked. The tracker has to be
        # started before, because starting it unblocks them.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, ORDERS_TO_STOP)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ORDERS_TO_STOP)
        # Or else an exit that nobody ordered would wait for it: multiprocessing ends its processes by SIGTERM.
        atexit.register(self.process.kill)
        self._far_end.close()
        threading.Thread(target=self._listen, name="text2song-engine-listener", daemon=True).start()

    async def end(self, reason: str) -> None:
        """By force: it ignores the other signals, and keeps nothing that could be lost."""
        self._reason = self._reason or f"The generation process {reason}."
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

    async def memory(self) -> int | None:
        """None once it has died."""
        if self.gone.is_set():
            return None
        asking: asyncio.Future[int | None] = self._loop.create_future()
        self._asking.append(asking)
        self.send(Measure())
        return await asking

    def _listen(self) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            with suppress(EOFError, OSError):
                while True:
                    self._loop.call_soon_threadsafe(self._hear, self._pipe.recv())
            self.process.join(EXIT_SECONDS)
            self.process.kill()
            self.process.join()
            atexit.unregister(self.process.kill)
            self._loop.call_soon_threadsafe(self._die, self.process.exitcode)
        self._pipe.close()

    def _hear(self, message: Message) -> None:
        match message:
            case Measured(memory=memory):
                while self._asking:
                    if not (asking := self._asking.pop()).done():
                        asking.set_result(memory)
                return
            case Ready() | Refused():
                if not self._answer.done():
                    self._answer.set_result(message)
                elif isinstance(message, Ready) and not self.gone.is_set():
                    self._resize(message.capacity)
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
        self._reason = f"The generation process did not respond for {self._stall_timeout:g} s and was ended."
        self.process.kill()

    def _die(self, exit_code: int | None) -> None:
        died = Died(self._reason or f"The generation process died ({_cause(exit_code)}).")
        self._owed.clear()
        self._watch()
        if not self._answer.done():
            self._answer.set_result(died)
        for route in self._routes.values():
            route.put_nowait(died)
        for asking in self._asking:
            if not asking.done():
                asking.set_result(None)
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
