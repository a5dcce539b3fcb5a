"""Addresses of hosts that others name: public, or in networks that whoever runs this allows."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network

_NAT64 = ip_network("64:ff9b::/96")
_OF_MACHINES = tuple(
    map(ip_network, ("168.63.129.16/32", "192.0.0.0/24", "240.0.0.0/4", "64:ff9b:1::/48"))
)
"""Addresses that count as public in places, and at which clouds answer their machines."""


def is_reachable(address: IPv4Address | IPv6Address, networks: Sequence[str]) -> bool:
    """True if an address is public, or in one of the networks; one that is embedded in another
    (IPv4 in IPv6) is what counts."""
    return is_allowed(address, networks) or all(
        item.is_global
        and not item.is_multicast
        and not any(item in network for network in _OF_MACHINES)
        for item in _within(address) or (address,)
    )


def is_allowed(address: IPv4Address | IPv6Address, networks: Sequence[str]) -> bool:
    """True if an address, or one that is embedded in it, is in one of the networks."""
    allowed_networks = [ip_network(network) for network in networks]
    return any(
        item in network for network in allowed_networks for item in (address, *_within(address))
    )


def _within(address: IPv4Address | IPv6Address) -> tuple[IPv4Address, ...]:
    if isinstance(address, IPv4Address):
        return ()
    candidates = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        candidates.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return tuple(candidate for candidate in candidates if candidate is not None)
