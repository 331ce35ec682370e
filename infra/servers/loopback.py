"""Kafka, MongoDB and S3 as real servers on loopback, kept in one folder."""

import fcntl
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, Literal, Self

import msgspec
from msgspec import Struct, field

from domain.errors import UnavailableError
from infra.servers import ports, s3
from infra.servers.addresses import Addresses
from infra.servers.installation import Announce
from infra.servers.kafka import Kafka
from infra.servers.mongodb import MongoDB
from infra.servers.process import Process, complaint
from infra.servers.s3 import S3

Name = Literal["kafka", "mongo", "s3"]
NAMES: Final[tuple[Name, ...]] = ("kafka", "mongo", "s3")
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 15.0


class State(Struct, kw_only=True):
    """The content of servers.json, by which the servers are found again."""

    ports: dict[Name, list[int]]
    s3_secret_key: str
    processes: dict[Name, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if [len(self.ports.get(name, ())) for name in NAMES] != [2, 1, 1]:
            raise ValueError("it does not name every port")

    @classmethod
    def new(cls) -> Self:
        kafka, controller, mongo, gateway = islice(ports.free(), 4)
        chosen: dict[Name, list[int]] = {"kafka": [kafka, controller], "mongo": [mongo], "s3": [gateway]}
        return cls(ports=chosen, s3_secret_key=secrets.token_hex(16))


class Status(Struct, frozen=True, kw_only=True):
    """`pid` is None for a server that does not run."""

    title: str
    address: str
    pid: int | None
    healthy: bool


class Servers:
    """The servers of one folder, which outlive the process that starts them. Starts and stops take turns."""

    def __init__(self, folder: Path, announce: Announce = lambda _: None) -> None:
        """`announce` is told what takes long."""
        self.folder = folder.expanduser().absolute()
        self._announce = announce
        self._file = self.folder / "servers.json"

    @property
    def addresses(self) -> Addresses:
        state = self._read()
        kafka, mongo, gateway = (_server(name, self.folder, state) for name in NAMES)
        return Addresses(
            kafka=kafka.address,
            mongo=mongo.address,
            s3_endpoint=gateway.address,
            s3_access_key=s3.ACCESS_KEY,
            s3_secret_key=state.s3_secret_key,
            s3_region=s3.REGION,
        )

    def up(self) -> list[Name]:
        """Starts what does not run and returns its names, on new ports where strangers have taken the old ones.

        Raises UnavailableError when something cannot be installed, or does not start.
        """
        with self._changing() as state:
            for name in NAMES:
                if not _runs(name, state) and any(ports.taken(port) for port in state.ports[name]):
                    state.ports[name] = list(islice(ports.free(), len(state.ports[name])))
            return self._start(NAMES, state)

    def start(self, name: Name) -> None:
        """Starts it on the port it had, and returns when it is healthy. Raises UnavailableError as `up` does."""
        with self._changing() as state:
            self._start([name], state)

    def kill(self, name: Name) -> None:
        """By SIGKILL; returns when it is gone."""
        with self._changing() as state:
            self._end(name, state, (signal.SIGKILL,))

    def stop_all(self) -> list[Name]:
        """Asks each to stop, kills what does not, and returns the names of what ran."""
        if not self._file.exists():
            return []
        with self._changing() as state:
            running = [name for name in NAMES if _runs(name, state)]
            for name in running:
                self._end(name, state, (signal.SIGTERM, signal.SIGKILL))
            return running

    def status(self) -> list[Status]:
        """Raises UnavailableError where no servers were ever started."""
        state = self._read()
        return [
            Status(
                title=server.title,
                address=server.address,
                pid=state.processes[name].pid if (runs := _runs(name, state)) else None,
                healthy=runs and server.answers(),
            )
            for name in NAMES
            for server in [_server(name, self.folder, state)]
        ]

    def _start(self, names: Sequence[Name], state: State) -> list[Name]:
        stopped = [name for name in names if not _runs(name, state)]
        programs = self._install(stopped, state)
        printed = {name: log.stat().st_size if (log := self._log(name)).exists() else 0 for name in names}
        for name in stopped:
            server = _server(name, self.folder, state)
            for port in state.ports[name]:
                if ports.taken(port):
                    raise UnavailableError(
                        f"Port {port} of {server.title} is taken by another process. Stop that first."
                    )
            server.folder.mkdir(exist_ok=True)
            command = server.command(programs[name])
            try:
                state.processes[name] = Process.spawn(command, server.environment(), self._log(name))
            except OSError as error:
                raise UnavailableError(f"{server.title} cannot be run: {error.strerror}: {command[0]}.") from None
            self._write(state)
        for name in names:
            self._await_health(name, state, printed[name])
        return stopped

    def _install(self, names: Sequence[Name], state: State) -> dict[Name, Path]:
        programs: dict[Name, Path] = {}
        faults = []
        for name in names:
            try:
                programs[name] = _server(name, self.folder, state).install(self._announce)
            except UnavailableError as error:
                faults.append(str(error))
        if faults:
            raise UnavailableError("\n".join(faults))
        return programs

    def _await_health(self, name: Name, state: State, printed: int) -> None:
        """`printed` is how long the log was before the start."""
        server, log = _server(name, self.folder, state), self._log(name)
        end = time.monotonic() + START_SECONDS
        while not server.answers():
            if not _runs(name, state):
                output = log.read_bytes()[printed:].decode(errors="replace")
                raise UnavailableError(f"{server.title} ended while it started: {complaint(output)} (from {log})")
            if time.monotonic() > end:
                self._end(name, state, (signal.SIGKILL,))
                raise UnavailableError(f"{server.title} was not ready after {START_SECONDS:g} s. Its log is {log}.")
            time.sleep(0.05)

    def _end(self, name: Name, state: State, signals: Sequence[signal.Signals]) -> None:
        process = state.processes.pop(name, None)
        if process and not any(process.end(number, STOP_SECONDS) for number in signals):
            raise UnavailableError(f"Process {process.pid} does not end, not even by SIGKILL; its disk may hang.")
        self._write(state)

    def _log(self, name: Name) -> Path:
        return self.folder / f"{name}.log"

    @contextmanager
    def _changing(self) -> Iterator[State]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                state = self._read() if self._file.exists() else State.new()
                yield state
        except OSError as error:
            raise UnavailableError(f"The folder {self.folder} cannot be used: {error}. Choose another.") from None

    def _read(self) -> State:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=State)
        except (FileNotFoundError, NotADirectoryError):
            raise UnavailableError(f"No servers were started in {self.folder}.") from None
        except OSError as error:
            raise UnavailableError(f"{self._file} cannot be read: {error.strerror}.") from None
        except msgspec.DecodeError as error:
            raise UnavailableError(
                f"{self._file} is damaged: {error}. End the servers that were started there by hand, and remove it."
            ) from None

    def _write(self, state: State) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_bytes(msgspec.json.encode(state))
        temporary.replace(self._file)


def _server(name: Name, folder: Path, state: State) -> Kafka | MongoDB | S3:
    port, *others = state.ports[name]
    match name:
        case "kafka":
            return Kafka(folder / name, port, *others)
        case "mongo":
            return MongoDB(folder / name, port)
        case "s3":
            return S3(folder / name, port, state.s3_secret_key)


def _runs(name: Name, state: State) -> bool:
    return name in state.processes and state.processes[name].alive
