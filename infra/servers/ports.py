"""Ports of loopback on which nobody listens."""

import random
import socket
from collections.abc import Iterator
from typing import Final

# Below the ports that outgoing connections take: a client that keeps calling a dead server on one of those ends up
# connected to itself, and the server cannot come back.
PORTS: Final = range(20_000, 32_768)


def free() -> Iterator[int]:
    return (port for port in random.sample(PORTS, len(PORTS)) if not taken(port))


def taken(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False
