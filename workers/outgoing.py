"""Requests to strangers' addresses, which cannot be led inside.

A name is looked up once, refused where any of its addresses is not public, and the connection goes to one of those
addresses: a name that leads elsewhere at the next look-up changes nothing. Nothing is taken from the environment,
redirects are not followed, and no cookie is kept.
"""

import asyncio
import errno
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

import httpcore
import httpx

from domain.errors import Fault, Text2SongError
from domain.webhooks import host, url_faults
from workers.addresses import is_loopback, is_public

LOOK_UPS: Final = 128  # at once
LOOK_UP_SECONDS: Final = 3.0  # for somebody who waits for the answer to a request
MAX_ADDRESSES: Final = 20
CONNECT_SECONDS: Final = 5.0
SECONDS: Final = re.compile("[0-9]{1,8}")
# The name is wrong; with any other fault of a look-up, it may be the machine's own.
NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

# A host's addresses. Raises OSError.
Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[str]]]


class ForbiddenAddressError(Text2SongError):
    """The host has an address that nothing is sent to."""


class Answer(NamedTuple):
    status: int
    retry_after: float | None


class LookUps:
    """Each in a thread of its own: one that waits for a dead name server holds up no other, and no exit."""

    def __init__(self, at_once: int = LOOK_UPS) -> None:
        self._free = threading.Semaphore(at_once)

    async def __call__(self, name: str) -> Sequence[str]:
        if not self._free.acquire(blocking=False):
            raise OSError(errno.EAGAIN, "too many names are being looked up")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[str]] = loop.create_future()
        threading.Thread(target=self._ask, args=(name, loop, found), name="text2song-look-up", daemon=True).start()
        return await found

    def _ask(self, name: str, loop: asyncio.AbstractEventLoop, found: "asyncio.Future[Sequence[str]]") -> None:
        addresses: list[str] = []
        error: Exception | None = None
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except (OSError, UnicodeError) as caught:
            error = caught
        finally:
            self._free.release()
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(_tell, found, addresses, error)


def _tell(found: "asyncio.Future[Sequence[str]]", addresses: Sequence[str], error: Exception | None) -> None:
    if found.done():
        return
    if error is None:
        found.set_result(addresses)
    else:
        found.set_exception(error)


class Receivers:
    """Where webhooks may lead. `loopback` allows this machine's own addresses as well."""

    def __init__(self, *, loopback: bool = False, resolve: Resolve | None = None) -> None:
        self._loopback = loopback
        self._resolve = resolve or LookUps()

    async def check(self, url: str, pointer: str = "/webhook_url") -> list[Fault]:
        """What is wrong with the place that the URL leads to, for somebody who waits for an answer.

        Where the look-up itself fails nothing is: the connection is held to the same rules later.
        """
        if any(url_faults(url, pointer)):
            return []
        said = f"{pointer.removeprefix('/')} is {url!r}"
        try:
            httpx.URL(url)
            async with asyncio.timeout(LOOK_UP_SECONDS):
                await self.addresses(host(url).strip("[]"))
        except httpx.InvalidURL as error:
            return [Fault(pointer, f"{said}: {error}. Write one such as https://example.org/hook.")]
        except ForbiddenAddressError as error:
            return [Fault(pointer, f"{said}: {error}")]
        except UnicodeError:
            return [Fault(pointer, f"{said}: no host has that name. Correct the name.")]
        except socket.gaierror as error:
            if error.errno in NO_SUCH_NAME:
                return [Fault(pointer, f"{said}: its host has no address. Correct the name.")]
        except (OSError, TimeoutError):
            pass
        return []

    async def addresses(self, name: str) -> Sequence[str]:
        """Raises ForbiddenAddressError where one of them may not be sent to, and OSError where there is none."""
        found = (await self._resolve(name))[:MAX_ADDRESSES]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        for address in found:
            if not (is_public(address) or (self._loopback and is_loopback(address))):
                way_out = ", or set TEXT2SONG_WEBHOOK_LOOPBACK=true" if is_loopback(address) else ""
                raise ForbiddenAddressError(
                    f"Its host {name!r} leads to {address}, which is not public; webhooks go to public addresses only. "
                    f"Name a host that is on the internet{way_out}."
                )
        return found


class _Network(httpcore.AsyncNetworkBackend):
    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- the name and its meaning are httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        last: Exception | None = None
        for address in await self._receivers.addresses(host):
            try:
                return await self._inner.connect_tcp(
                    address, port, min(timeout or CONNECT_SECONDS, CONNECT_SECONDS), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise last or httpcore.ConnectError("no address")

    async def connect_unix_socket(self, path: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError(f"{path} is no place for a webhook")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class Outgoing(httpx.AsyncHTTPTransport):
    """A connection each: what was looked up for one is not used for the next."""

    def __init__(self, receivers: Receivers, at_once: int) -> None:
        super().__init__(trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            max_connections=at_once,
            max_keepalive_connections=0,
            network_backend=_Network(receivers),
        )

    async def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        """Reads the answer's head and nothing of its body. Raises ForbiddenAddressError, httpx.HTTPError,
        httpx.InvalidURL and OSError.
        """
        response = await self.handle_async_request(httpx.Request("POST", url, content=content, headers=headers))
        await response.aclose()
        wait = response.headers.get("retry-after", "")
        seconds = float(wait) if SECONDS.fullmatch(wait) else None
        return Answer(response.status_code, seconds)
