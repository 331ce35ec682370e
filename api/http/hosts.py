"""The hosts that a studio answers to.

A page of another site can have its own name resolve to this machine (DNS rebinding), and then reads and writes here as
if it were a page of the studio. Only the Host header tells: it has the name that the browser was sent to.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, Self

from msgspec import Struct

from api.http.refusals import ForbiddenError

WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 -- compared with, not listened on
ALL: Final = "*"
AUTHORITY: Final = re.compile(r"(\[[^\[\]]+\]|[^\s:/?#@\[\]]+)(?::[0-9]*)?")
NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")
ADVICE: Final = "If it should, add the host's name to TEXT2SONG_ALLOWED_HOSTS."


class AllowedHosts(Struct, frozen=True):
    """`names` in lower case, and addresses as ipaddress writes them; every port is allowed.

    `origins` are those of other pages that may use the API, `*` among them any page.
    With `any_address` a request may also name any address as its host: to rebind, a page needs a name.
    """

    names: frozenset[str] = LOOPBACK
    any_address: bool = False
    origins: tuple[str, ...] = ()

    @classmethod
    def of(cls, listening_on: str, own_name: str, others: Iterable[str], pages: Sequence[str] = ()) -> Self:
        """Loopback, where the server listens, and the others, among which `*` stands for all there are.

        A server that listens on every address answers to each of them, and to the machine's own name. Raises
        ValueError for a name that no host can have.
        """
        names = {_written(name) for name in others}
        if bad := sorted(name for name in names - {ALL} if not (_is_address(name) or NAME.fullmatch(name))):
            raise ValueError(f"{bad[0]!r} is no name of a host")
        wide = _written(listening_on) in EVERYWHERE
        own = _written(own_name if wide else listening_on)
        return cls(LOOPBACK | names | {own}, any_address=wide, origins=tuple(pages))

    def check(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises ForbiddenError for a Host that is not one of them, and for a write by a page of one that is not."""
        if ALL in self.names:
            return
        given = [(name, content.decode("latin-1")) for name, content in headers if name in {b"host", b"origin"}]
        hosts = [content for name, content in given if name == b"host"]
        for host in hosts:
            if not _allows(self, host):
                raise ForbiddenError("forbidden_host", f"This studio does not answer to the host {host!r}. {ADVICE}")
        for origin in (content for name, content in given if name == b"origin" and method in WRITES):
            if ALL in self.origins or origin.lower() in self.origins:
                continue
            # Not any address: an attacker's page may be at one.
            if (page := _page(origin)) not in self.names and page not in map(_name, hosts):
                detail = f"This studio takes no writes from pages of {origin!r}. {ADVICE}"
                raise ForbiddenError("forbidden_origin", detail)

    def allows(self, host: str) -> bool:
        """`host` is written as in a Host header: with or without a port, IPv6 in brackets."""
        name = _name(host)
        return name in self.names or (self.any_address and name is not None and _is_address(name))


def origins(texts: Iterable[str]) -> tuple[str, ...]:
    """As browsers write them. Raises ValueError for what is no origin of a page."""
    found = [text.strip().rstrip("/").lower() for text in texts if text.strip()]
    if bad := [text for text in found if text != ALL and (ALL in text or _page(text) is None)]:
        raise ValueError(f"{bad[0]!r} is no origin of a page")
    return tuple(found)


@lru_cache(256)
def _allows(hosts: AllowedHosts, host: str) -> bool:
    return hosts.allows(host)


def _name(authority: str) -> str | None:
    """Without the port; None for what is no authority."""
    found = AUTHORITY.fullmatch(authority)
    return _written(found[1]) if found else None


def _page(origin: str) -> str | None:
    """The name of the host that a page came from; None for what came from no host, such as `null` or an extension."""
    scheme, _, authority = origin.partition("://")
    return _name(authority) if scheme in {"http", "https"} else None


def _written(host: str) -> str:
    """The one way to write it."""
    text = host.strip().removeprefix("[").removesuffix("]")
    try:
        return str(ip_address(text))
    except ValueError:
        return text.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
