"""The command line's client: addresses, proxies in the environment, and other programs where a studio was expected."""

import asyncio
import contextlib
import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.loopback import is_loopback
from infra.storage.s3_objects import Bucket, S3Objects
from tests.local.conftest import Running
from tests.local.test_cli import text2song
from text2song.client import AsyncStudio, ClientError
from text2song.connection import ENVIRONMENT

NOT_USABLE = [
    {"ALL_PROXY": "socks5://127.0.0.1:1080"},
    {"all_proxy": "socks://127.0.0.1:7891"},
    {"NO_PROXY": "localhost,127.0.0.1,::1,[::1]"},
    {"no_proxy": "localhost,fe80::/10"},
    {"SSL_CERT_FILE": "/does/not/exist.pem"},
]


@pytest.fixture
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextlib.asynccontextmanager
async def answering(raw: bytes) -> AsyncIterator[str]:
    """A server that says the same to everybody, behind its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        head, blank, body = raw.partition(b"\r\n\r\n")
        writer.write(head + blank if request.startswith(b"HEAD") else head + blank + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def ok(body: bytes, headers: str = "Content-Type: application/json") -> bytes:
    return f"HTTP/1.1 200 OK\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.usefixtures("_no_proxies")
@pytest.mark.parametrize("environment", [{"HTTP_PROXY": "http://127.0.0.1:9"}, *NOT_USABLE])
async def test_no_proxy_comes_between_a_client_and_a_studio_on_loopback(
    studio: Running, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with AsyncStudio(studio.url) as client:
        assert "noise" in str((await client.index()).notice)


@pytest.mark.usefixtures("_no_proxies")
@pytest.mark.parametrize("environment", NOT_USABLE)
def test_an_environment_that_cannot_be_used_elsewhere_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ClientError, match=rf"that the environment names cannot be used: .* unset {next(iter(environment))}\."
    ):
        AsyncStudio("http://studio.example.org")


@pytest.mark.usefixtures("_no_proxies")
def test_so_is_one_that_no_model_can_be_pulled_through(tmp_path: Path) -> None:
    done = text2song("models", "pull", "facebook/musicgen-small", cwd=tmp_path, ALL_PROXY="socks://127.0.0.1:7891")
    assert done.returncode == 1
    assert re.fullmatch(r"text2song: The proxies .* cannot be used: Unknown scheme .* unset ALL_PROXY\.\n", done.stderr)


@pytest.mark.usefixtures("_no_proxies")
async def test_no_proxy_comes_between_a_studio_and_its_objects_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with answering(ok(b"<ListMultipartUploadsResult/>", "Connection: close")) as url:
        objects = await S3Objects.open(
            Bucket(name="bucket", region="us-east-1", endpoint=url, access_key="a", secret_key="b")  # noqa: S106
        )
        await objects.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST.", "music.localhost", "127.0.0.1", "127.9.9.9", "::1")),
        *((host, True) for host in ("[::1]", "0.0.0.0", "::")),  # noqa: S104
        *((host, False) for host in ("", "localhost.example.org", "10.0.0.1", "studio", "[2001:db8::1]")),
    ],
)
def test_loopback_is_this_machine(host: str, *, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    "raw",
    [
        ok(b"<html>It works</html>", "Content-Type: text/html"),
        ok(b'{"message": "Hello World"}'),
        ok(b'{"name": "Another Studio", "notice": null}'),
        ok(b"[]"),
        ok(b'"\xff"'),
        ok(b""),
        b'HTTP/1.1 404 Not Found\r\nContent-Length: 22\r\n\r\n{"detail": "Not Found"}',
        b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n[]",
    ],
)
async def test_another_program_on_the_port_is_told_from_a_studio(raw: bytes) -> None:
    async with answering(raw) as url, AsyncStudio(url) as client:
        with pytest.raises(ClientError, match=f"What answers at {url} is no Text2Song studio: it answered .* --url"):
            await client.index()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        ok(gzip.compress(b"{}", mtime=0)[4:], "Content-Encoding: gzip"),
    ],
)
async def test_a_program_that_speaks_no_http_is_no_studio_either(raw: bytes) -> None:
    async with answering(raw) as url, AsyncStudio(url) as client:
        with pytest.raises(ClientError, match=rf"No studio answers at {url} \(\w+Error\). Start one with"):
            await client.index()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:99999", "port 99999 is not from 1 to 65535"),
        ("127.0.0.1:0", "port 0 is not from 1 to 65535"),
        ("ftp://127.0.0.1", "'ftp' is neither http nor https"),
        ("", "it names no host"),
        ("http://[::1", "Invalid port"),
        ("http://\udce9", "Invalid IDNA hostname"),
    ],
)
def test_an_address_that_no_client_can_use_is_named(url: str, reason: str) -> None:
    with pytest.raises(
        ClientError, match=f"is no URL of a studio: {re.escape(reason)}.* such as http://127.0.0.1:8000"
    ):
        AsyncStudio(url)
