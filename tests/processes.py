"""The roles of a studio, as processes of their own on the real servers."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

from msgspec import Struct

from infra.servers.addresses import Addresses
from tests.servers import ROOT


class Role(Struct, frozen=True):
    """`said` is its first line, which it prints when it begins to work."""

    pid: int
    said: str

    @property
    def url(self) -> str:
        return next(word for word in self.said.split() if word.startswith("http")).rstrip(";")


def fresh(addresses: Addresses) -> dict[str, str]:
    """The settings of another studio on the servers: with topics, a database and a bucket of its own."""
    name = f"studio-{uuid4().hex}"
    return addresses.environment() | {
        "TEXT2SONG_KAFKA_PREFIX": f"{name}.",
        "TEXT2SONG_STORE": urlsplit(addresses.mongo)._replace(path=f"/{name}").geturl(),
        "TEXT2SONG_OBJECTS": f"s3://{name}",
        "TEXT2SONG_PORT": "0",
    }


@contextmanager
def running(role: str, settings: Mapping[str, str]) -> Iterator[Role]:
    """`text2song api`, `project` or `work`."""
    with subprocess.Popen(
        [sys.executable, "-m", "infra.cli", role],
        env={**os.environ, **settings},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Role(process.pid, process.stdout.readline().strip())
        finally:
            process.terminate()
