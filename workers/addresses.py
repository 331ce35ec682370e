"""Which addresses a webhook may be sent to: those of the public internet, and no others.

The lists are the registries' of special addresses (IANA). Python's own `is_global` lets some of them through that lead
back inside, such as addresses of IPv6 that hold one of IPv4.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

SPECIAL_4: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
# Nothing beyond it is in use on the internet.
GLOBAL_6: Final = ip_network("2000::/3")
SPECIAL_6: Final = tuple(ip_network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))


def is_public(text: str) -> bool:
    """Raises ValueError for what is no address."""
    address = _plain(text)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in SPECIAL_4)
    return address in GLOBAL_6 and not any(address in network for network in SPECIAL_6)


def is_loopback(text: str) -> bool:
    """Raises ValueError for what is no address."""
    return _plain(text).is_loopback


def _plain(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text)
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
