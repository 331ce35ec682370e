import pytest

from api.http.hosts import AllowedHosts
from api.http.refusals import ForbiddenError

LOOPBACK = AllowedHosts.of("127.0.0.1", "box", [])
NAMED = AllowedHosts.of("studio.lan", "box", ["Music.example.org ", "[2001:DB8:0::1]"])
EVERYWHERE = AllowedHosts.of("0.0.0.0", "Box", [])  # noqa: S104
ALL = AllowedHosts.of("127.0.0.1", "box", ["*"])


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "localhost.:1", "127.0.0.1", "[::1]:9"])
@pytest.mark.parametrize("hosts", [LOOPBACK, NAMED, EVERYWHERE, ALL])
def test_loopback_is_always_allowed(hosts: AllowedHosts, host: str) -> None:
    hosts.check("GET", [(b"host", host.encode())])


@pytest.mark.parametrize(
    ("hosts", "allowed", "forbidden"),
    [
        (
            LOOPBACK,
            [],
            ["evil.example", "box", "10.0.0.1:8000", "localhost.evil.example", "evil.example:a", ""],
        ),
        (LOOPBACK, [], ["localhost@evil.example", "localhost/", "::1", "[::1", "127.0.0.1 ", "127.0.0.1.evil.example"]),
        (NAMED, ["studio.lan:8000", "music.example.org", "[2001:db8::1]:8000"], ["box", "10.0.0.1", "example.org"]),
        (EVERYWHERE, ["box:8000", "10.0.0.1", "[fe80::1]:8000"], ["evil.example:8000", "0.0.0.0.evil.example"]),
        (ALL, ["evil.example", "10.0.0.1", ""], []),
    ],
)
def test_other_hosts_are_those_that_were_named(hosts: AllowedHosts, allowed: list[str], forbidden: list[str]) -> None:
    for host in allowed:
        hosts.check("GET", [(b"host", host.encode())])
    for host in forbidden:
        with pytest.raises(ForbiddenError, match=r"does not answer to the host .* TEXT2SONG_ALLOWED_HOSTS") as caught:
            hosts.check("GET", [(b"host", host.encode())])
        assert caught.value.code == "forbidden_host"


@pytest.mark.parametrize(
    ("hosts", "host", "origin", "is_allowed"),
    [
        (LOOPBACK, "localhost:8000", "http://127.0.0.1:3000", True),
        (LOOPBACK, "localhost:8000", "http://evil.example", False),
        (LOOPBACK, "localhost:8000", "null", False),
        (LOOPBACK, "localhost:8000", "chrome-extension://localhost", False),
        (LOOPBACK, "localhost:8000", "http://[", False),
        (NAMED, "music.example.org", "https://music.example.org", True),
        (EVERYWHERE, "10.0.0.1:8000", "http://10.0.0.1:8000", True),
        (EVERYWHERE, "10.0.0.1:8000", "http://10.0.0.1:3000", True),
        (EVERYWHERE, "10.0.0.1:8000", "http://203.0.113.9", False),
        (ALL, "anything", "null", True),
    ],
)
def test_pages_of_other_hosts_write_nothing(hosts: AllowedHosts, host: str, origin: str, *, is_allowed: bool) -> None:
    headers = [(b"host", host.encode()), (b"origin", origin.encode())]
    hosts.check("GET", headers)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        if is_allowed:
            hosts.check(method, headers)
            continue
        with pytest.raises(ForbiddenError, match="takes no writes from pages of") as caught:
            hosts.check(method, headers)
        assert caught.value.code == "forbidden_origin"


def test_each_of_several_host_headers_counts_and_none_is_no_browser() -> None:
    LOOPBACK.check("GET", [])
    with pytest.raises(ForbiddenError):
        LOOPBACK.check("GET", [(b"host", b"localhost"), (b"host", b"evil.example")])


@pytest.mark.parametrize("name", ["http://studio", "studio:8000", "*.example.org", "a b", "-"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a host"):
        AllowedHosts.of("127.0.0.1", "box", [name])
