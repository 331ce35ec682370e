"""How many requests a key, or an address where there are no keys, may send in a window of time.

All processes of a studio count in one place. Each takes a small share of a window's quota there and serves from it, so
that few requests wait for the count; together they never serve more than the quota, and now and then a little less.
Where the count cannot be had at once, nobody waits for it: each process serves a quota of its own for some seconds.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Self

from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from api.http.access import READS, Caller
from api.http.refusals import TooManyError
from domain.errors import UnavailableError
from domain.ports import Counters

FORM: Final = r"([1-9][0-9]{0,8})/(second|minute|hour|day)"
SECONDS: Final[Mapping[str, int]] = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
OFF: Final = "off"
SHARES: Final = 100  # that a window's quota is taken in
PATIENCE_SECONDS: Final = 0.5
AWAY_SECONDS: Final = 5.0
REMEMBERED: Final = 100_000

logger: Final = logging.getLogger(__name__)


class Policy(Struct, frozen=True):
    name: str
    quota: int
    seconds: int

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """`text` is such as `10/minute`. Raises ValueError."""
        if (found := re.fullmatch(FORM, text)) is None:
            raise ValueError(f"{text!r} is no limit; write a number and second, minute, hour or day, such as 10/minute")
        return cls(name, int(found[1]), SECONDS[found[2]])


# For keys, where no setting says otherwise. An open studio has no such limits unless they are set.
USUAL: Final[Mapping[str, Policy]] = {
    "read": Policy.parse("read", "6000/minute"),
    "write": Policy.parse("write", "1200/minute"),
}
# Requests of one address that were refused for want of a key.
REFUSED: Final = Policy.parse("refused", "600/minute")


class _Lease(Struct):
    """What this process may still serve in a window, and how much of the quota all have taken as far as it knows."""

    window: int
    left: int
    taken: int
    asking: asyncio.Lock


class Standing(Struct, frozen=True):
    policy: Policy
    remaining: int
    reset: int

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """As draft-ietf-httpapi-ratelimit-headers writes them."""
        policy = self.policy
        return [
            (b"ratelimit-policy", _announced(policy)),
            (b"ratelimit", f'"{policy.name}";r={self.remaining};t={self.reset}'.encode()),
        ]


class Limiter:
    """`settings` has a limit, or `off`, for `read` and `write`, as far as they are set."""

    def __init__(self, counters: Counters | None = None, settings: Mapping[str, str | None] | None = None) -> None:
        self._counters = counters
        self._settings = {name: text for name, text in (settings or {}).items() if text is not None}
        self._set = {name: Policy.parse(name, text) for name, text in self._settings.items() if text != OFF}
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._away_until = 0.0

    def policy(self, handler: BaseRouteHandler, method: str, caller: Caller) -> Policy | None:
        """The route's own, which its `opt` names as `limit`, or its group's; None where there is none."""
        if (own := handler.opt.get("limit")) is not None:
            return _own(str(getattr(handler, "operation_id", None) or handler.name), own)
        group = "read" if method in READS else "write"
        if group in self._settings:
            return self._set.get(group)
        return None if caller.key_id is None else USUAL[group]

    async def take(self, policy: Policy, who: str) -> Standing:
        """Counts one request. `Standing.remaining` is -1 where there were too many already."""
        now = time.time()
        window = int(now // policy.seconds)
        reset = math.ceil((window + 1) * policy.seconds - now)
        lease = self._lease(policy, who, window)
        if not lease.left and lease.taken < policy.quota:
            async with lease.asking:
                if not lease.left:
                    await self._ask(policy, who, lease)
        if not lease.left:
            return Standing(policy, -1, reset)
        lease.left -= 1
        return Standing(policy, lease.left + max(0, policy.quota - lease.taken), reset)

    def _lease(self, policy: Policy, who: str, window: int) -> _Lease:
        lease = self._leases.get((policy.name, who))
        if lease is None or lease.window != window:
            lease = _Lease(window, 0, 0, asyncio.Lock())
            self._leases.pop((policy.name, who), None)
            self._leases[policy.name, who] = lease
            if len(self._leases) > REMEMBERED:
                del self._leases[next(iter(self._leases))]
        return lease

    async def _ask(self, policy: Policy, who: str, lease: _Lease) -> None:
        share = max(1, policy.quota // SHARES)
        total = await self._add(f"{policy.name}/{who}/{policy.seconds}/{lease.window}", share, policy, lease)
        lease.left += max(0, share - max(0, total - policy.quota))
        lease.taken = min(policy.quota, total)

    async def _add(self, name: str, share: int, policy: Policy, lease: _Lease) -> int:
        if self._counters is None or time.monotonic() < self._away_until:
            return lease.taken + share
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._counters.add(name, share, (lease.window + 2) * policy.seconds)
        except UnavailableError as error:
            why = str(error)
        except TimeoutError:
            why = f"the common count did not answer within {PATIENCE_SECONDS:g} s."
        self._away_until = time.monotonic() + AWAY_SECONDS
        logger.warning("Requests are counted by this process alone for %g s: %s", AWAY_SECONDS, why)
        return lease.taken + share


@lru_cache(1_000)
def _announced(policy: Policy) -> bytes:
    return f'"{policy.name}";q={policy.quota};w={policy.seconds}'.encode()


@lru_cache(1_000)
def _own(name: str, text: str) -> Policy:
    return Policy.parse(name, text)


def refusal(standing: Standing) -> TooManyError:
    policy = standing.policy
    return TooManyError(
        "too_many_requests",
        f"That was more than {policy.quota:,} requests in {policy.seconds:,} s ({policy.name}); "
        f"go on in {standing.reset:,} s.",
        standing.reset,
    )
