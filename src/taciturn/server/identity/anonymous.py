"""Rate limits for requests without a valid token: how many are answered and put on record.

A request with a valid token is counted nowhere here. For the others there is so much a minute for
an address, and ten times as much for all addresses together, which bounds what strangers can write
into the audit log. Logins are counted apart, so that nobody is kept from logging in by somebody
behind the same address who asks for something else. Of what is beyond a limit one request a minute
and address is on record, within the limit of all; the rest is refused and leaves no trace.

The limits are those of the whole gateway: once a second each process tells the others how many it
has answered.
"""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from taciturn.server.problems import ProblemError

_MINUTE_S = 60.0
_ALL = 10  # so many times as much for all addresses together
_MOST_ADDRESSES = 10_000
"""That are remembered; of more, the limit for all takes care."""
_MESSAGE = 100  # addresses in a notification, which may have 7000 bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """Answer beyond a limit, and whether the request goes on record."""

    problem: ProblemError
    on_record: bool


@dataclass(slots=True)
class _Bucket:
    """Token bucket: requests that are still free; it fills up again with time."""

    n_left: float
    at_s: float
    told_s: float = float("-inf")

    def take(self, per_minute: int, now_s: float) -> bool:
        """One request, if there is one left."""
        refilled = self.n_left + (now_s - self.at_s) * per_minute / _MINUTE_S
        self.n_left, self.at_s = min(float(per_minute), refilled), now_s
        if self.n_left < 1:
            return False
        self.n_left -= 1
        return True

    def spend(self, number: int, per_minute: int) -> None:
        """Requests that were answered elsewhere; a debt is worked off in a minute at most."""
        self.n_left = max(self.n_left - number, -float(per_minute))

    def tell(self, now_s: float) -> bool:
        """True once a minute: the refusal is put on record then."""
        if now_s - self.told_s < _MINUTE_S:
            return False
        self.told_s = now_s
        return True


@dataclass(slots=True)
class Anonymous:
    """The count of them, of one kind. Each process counts its own, and once a second `publish`es
    how many it has answered, which the others `hear`."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    kind: str = ""
    _buckets: OrderedDict[str, _Bucket] = field(default_factory=OrderedDict)
    _all: _Bucket = field(init=False)
    _unpublished: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._all = _Bucket(float(_ALL * self.per_minute), self.clock())

    def enter(self, address: str) -> Refusal | None:
        """Count a request from an address; returns the refusal, if it is refused."""
        with self._lock:
            return self._enter(network(address), self.clock())

    def publish(self, publish: Callable[[str], object]) -> None:
        """Tell other processes what was answered here since the last time, in short messages."""
        with self._lock:
            counts = list(self._unpublished.items())
            self._unpublished.clear()
        for first in range(0, len(counts), _MESSAGE):
            publish(json.dumps([self.kind, dict(counts[first : first + _MESSAGE])]))

    def hear(self, message: str) -> None:
        """Count what another process has answered, if it is of this kind."""
        kind, counts = json.loads(message)
        if kind != self.kind:
            return
        with self._lock:
            now_s = self.clock()
            for key, number in counts.items():
                self._bucket(key, now_s).spend(number, self.per_minute)
                self._all.spend(number, _ALL * self.per_minute)

    def _enter(self, key: str, now_s: float) -> Refusal | None:
        bucket = self._bucket(key, now_s)
        if not bucket.take(self.per_minute, now_s):
            on_record = bucket.tell(now_s) and self._all.take(_ALL * self.per_minute, now_s)
            return Refusal(self._problem("from this address"), on_record)
        if not self._all.take(_ALL * self.per_minute, now_s):
            return Refusal(self._problem("from all addresses"), self._all.tell(now_s))
        self._unpublished[key] += 1
        return None

    def _bucket(self, key: str, now_s: float) -> _Bucket:
        bucket = self._buckets.setdefault(key, _Bucket(float(self.per_minute), now_s))
        self._buckets.move_to_end(key)
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket

    def _problem(self, where: str) -> ProblemError:
        wait_s = max(1, round(_MINUTE_S / self.per_minute))
        return ProblemError(
            "too_many_requests",
            f"too many requests without a valid token {where}: {self.per_minute} a minute are "
            f"answered; wait {wait_s} s, and show a token. Where this is a proxy's address, the "
            "gateway's operator names it in TACITURN_TRUSTED_PROXIES",
            headers={"Retry-After": str(wait_s)},
        )


@lru_cache(maxsize=4096)
def network(address: str) -> str:
    """Network of an address: of IPv6 one /64, which is what one line at home gets."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
