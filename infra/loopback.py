"""Servers on this machine, which nothing that an environment says of proxies may come between."""

from ipaddress import ip_address


def is_loopback_alone(host: str) -> bool:
    """Whether what listens there can be reached from this machine alone."""
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return is_loopback(host)


def is_loopback(host: str) -> bool:
    """Also for an address to listen on everywhere: connected to, it is this machine."""
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return host.lower().removesuffix(".").rpartition(".")[2] == "localhost"
    return address.is_loopback or address.is_unspecified
