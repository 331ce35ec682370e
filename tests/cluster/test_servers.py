"""The servers themselves: that they come up, come back, keep what they were given, and leave strangers alone."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

import msgspec
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from botocore.exceptions import ClientError
from pymongo import MongoClient
from pymongo.write_concern import WriteConcern

from domain.errors import UnavailableError
from infra.servers import installation, versions
from infra.servers.addresses import BUCKET, Addresses
from infra.servers.loopback import NAMES, Name, Servers
from infra.servers.process import Process
from tests.conditions import eventually_sync
from tests.local.test_cli import text2song
from tests.servers import SHARED, do_without, start

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("servers")
    try:
        asyncio.run(prepare(start(folder).addresses))
    except UnavailableError as error:
        do_without(f"There are no real servers: {error}")
    yield folder
    Servers(folder).stop_all()


@pytest.fixture
def running(folder: Path) -> Servers:
    running = Servers(folder)
    running.up()
    return running


async def prepare(addresses: Addresses) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=addresses.kafka)
    await admin.start()
    made = await admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
    await admin.close()
    assert [code for _, code, *_ in made.topic_errors] == [0]
    async with s3_client(addresses) as client:
        await client.create_bucket(Bucket=BUCKET)


async def append(addresses: Addresses, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=addresses.kafka, acks="all", request_timeout_ms=5000)
    await producer.start()
    await producer.send_and_wait("kept", value)
    await producer.stop()


async def appended(addresses: Addresses) -> list[bytes]:
    partition = TopicPartition("kept", 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=addresses.kafka, auto_offset_reset="none")
    await consumer.start()
    consumer.assign([partition])
    end = (await consumer.end_offsets([partition]))[partition]
    consumer.seek(partition, 0)
    found: list[bytes] = []
    while len(found) < end:
        found += [record.value for record in (await consumer.getmany(timeout_ms=500)).get(partition, [])]
    await consumer.stop()
    return found


async def insert(addresses: Addresses, value: bytes) -> None:
    with MongoClient[dict[str, Any]](addresses.mongo) as client:
        kept = client.studio.get_collection("kept", write_concern=WriteConcern("majority"))
        kept.insert_one({"value": value})


async def inserted(addresses: Addresses) -> list[bytes]:
    with MongoClient[dict[str, Any]](addresses.mongo) as client:
        return [document["value"] for document in client.studio.kept.find().sort("_id")]


def s3_client(addresses: Addresses) -> Any:
    return get_session().create_client(
        "s3",
        endpoint_url=addresses.s3_endpoint,
        region_name=addresses.s3_region,
        aws_access_key_id=addresses.s3_access_key,
        aws_secret_access_key=addresses.s3_secret_key,
        config=AioConfig(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


async def put(addresses: Addresses, value: bytes) -> None:
    async with s3_client(addresses) as client:
        count = (await client.list_objects_v2(Bucket=BUCKET))["KeyCount"]
        await client.put_object(Bucket=BUCKET, Key=f"kept/{count:03}", Body=value)


async def stored(addresses: Addresses) -> list[bytes]:
    async with s3_client(addresses) as client:
        keys = [item["Key"] for item in (await client.list_objects_v2(Bucket=BUCKET)).get("Contents", [])]
        return [await (await client.get_object(Bucket=BUCKET, Key=key))["Body"].read() for key in keys]


Write = Callable[[Addresses, bytes], Coroutine[Any, Any, None]]
Read = Callable[[Addresses], Coroutine[Any, Any, list[bytes]]]
CLIENTS: dict[Name, tuple[Write, Read]] = {
    "kafka": (append, appended),
    "mongo": (insert, inserted),
    "s3": (put, stored),
}


def exports(output: str) -> dict[str, str]:
    return dict(re.findall(r"^export (\w+)='?([^'\n]+)'?$", output, re.MULTILINE))


def test_a_second_up_leaves_them_running_and_prints_the_same_settings(running: Servers, tmp_path: Path) -> None:
    before = running.status()
    done = text2song("servers", "up", "--data", str(running.folder), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "The servers run already.\n")
    assert exports(done.stdout) == running.addresses.environment()
    assert running.status() == before
    assert all(server.healthy for server in before)
    shown = text2song("servers", "status", "--data", str(running.folder), cwd=tmp_path, COLUMNS="120")
    assert shown.returncode == 0
    for server in before:
        assert re.search(
            rf"{re.escape(server.title)}\W+healthy\W+{server.pid}\W+{re.escape(server.address)}", shown.stdout
        )


@pytest.mark.parametrize("name", NAMES)
async def test_each_comes_back_from_a_kill_with_what_it_acknowledged(running: Servers, name: Name) -> None:
    write, read = CLIENTS[name]
    addresses = running.addresses
    before = await read(addresses)
    await write(addresses, b"one")
    running.kill(name)
    assert [server.healthy for server in running.status()] == [other != name for other in NAMES]
    running.start(name)
    assert running.addresses == addresses
    await write(addresses, b"two")
    assert await read(addresses) == [*before, b"one", b"two"]


async def test_what_was_stored_is_there_after_down_and_up_even_on_other_ports(running: Servers, tmp_path: Path) -> None:
    for write, _ in CLIENTS.values():
        await write(running.addresses, b"before")
    old = running.addresses
    done = text2song("servers", "down", "--data", str(running.folder), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "Stopped kafka, mongo, s3.\n")
    shown = text2song("servers", "status", "--data", str(running.folder), cwd=tmp_path)
    assert (shown.returncode, shown.stdout.count("stopped")) == (1, 3)
    again = text2song("servers", "down", "--data", str(running.folder), cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, "None of them runs.\n")

    with contextlib.ExitStack() as strangers:
        for address in (old.kafka, old.mongo, old.s3_endpoint):
            port = address.partition("127.0.0.1:")[2].partition("/")[0]
            strangers.enter_context(socket.create_server(("127.0.0.1", int(port))))
        with pytest.raises(UnavailableError, match=f"Port {port} of versitygw .* is taken by another process"):
            running.start("s3")
        up = text2song("servers", "up", "--data", str(running.folder), cwd=tmp_path)
    assert up.returncode == 0, up.stderr
    new = running.addresses
    assert exports(up.stdout) == new.environment()
    assert {old.kafka, old.mongo, old.s3_endpoint} & {new.kafka, new.mongo, new.s3_endpoint} == set()
    for _, read in CLIENTS.values():
        assert (await read(new))[-1] == b"before"


async def test_the_store_of_objects_refuses_a_wrong_secret(running: Servers) -> None:
    async with s3_client(msgspec.structs.replace(running.addresses, s3_secret_key="guess")) as client:  # noqa: S106
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            await client.list_objects_v2(Bucket=BUCKET)
    assert stat.S_IMODE((running.folder / "servers.json").stat().st_mode) == 0o600


def test_a_server_that_ends_as_it_starts_says_why(running: Servers) -> None:
    """And goes on once that is mended."""
    running.kill("kafka")
    identity = running.folder / "kafka" / "data" / "meta.properties"
    good = identity.read_text()
    identity.write_text(good.replace("node.id=1", "node.id=2"))
    with pytest.raises(UnavailableError, match=r"Kafka .* ended while it started: .*node id 2 .*kafka\.log"):
        running.start("kafka")
    identity.write_text(good)
    running.start("kafka")
    assert all(server.healthy for server in running.status())


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_recycled_pid_is_nobody_to_stop(running: Servers, stranger: "subprocess.Popen[bytes]") -> None:
    """The state of a machine that lost power: its pids are other programs' now."""
    running.kill("s3")
    state = msgspec.json.decode((running.folder / "servers.json").read_bytes())
    state["processes"]["s3"] = {"pid": stranger.pid, "birth": "another boot 4711"}
    (running.folder / "servers.json").write_bytes(msgspec.json.encode(state))
    assert [server.pid is None for server in running.status()] == [name == "s3" for name in NAMES]
    running.kill("s3")
    assert stranger.poll() is None
    running.start("s3")
    assert all(server.healthy and server.pid != stranger.pid for server in running.status())


def test_a_process_is_known_by_its_birth(stranger: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    process = Process.spawn(["/bin/sleep", "600"], {}, tmp_path / "log")
    assert process.alive
    # Both may have been born in the same tick of the clock.
    assert Process(stranger.pid, f"{process.birth}0").end(signal.SIGKILL, 0)
    assert stranger.poll() is None
    assert process.end(signal.SIGTERM, 10)
    assert not process.alive


def test_a_process_that_ignores_a_request_to_stop_is_said_to_be_there_still(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = Process.spawn(["/bin/sh", "-c", "trap '' TERM; echo $READY; sleep 600 & wait"], {"READY": "yes"}, log)
    eventually_sync(lambda: log.read_text() == "yes\n")
    assert not process.end(signal.SIGTERM, 0.2)
    assert process.alive
    assert process.end(signal.SIGKILL, 10)


@pytest.mark.parametrize("command", ["up", "down", "status"])
@pytest.mark.parametrize("content", [b"", b'{"ports": {', b'{"ports": {"s3": [1]}, "s3_secret_key": "x"}'])
def test_a_damaged_state_file_ends_in_a_sentence(tmp_path: Path, command: str, content: bytes) -> None:
    (tmp_path / "servers.json").write_bytes(content)
    done = text2song("servers", command, "--data", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}/servers.json is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_without_servers_and_a_folder_that_cannot_be_made_end_in_a_sentence(tmp_path: Path) -> None:
    never = text2song("servers", "status", cwd=tmp_path)
    assert (never.returncode, "No servers were started in" in never.stderr) == (1, True)
    for command in ("status", "down"):
        none = text2song("servers", command, "--data", "/dev/null/data", cwd=tmp_path)
        assert "Traceback" not in none.stderr
    nowhere = text2song("servers", "up", "--data", "/dev/null/data", cwd=tmp_path)
    assert (nowhere.returncode, "The folder /dev/null/data cannot be used" in nowhere.stderr) == (1, True)
    assert "Traceback" not in never.stderr + nowhere.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_missing_tool_is_named_at_once(tmp_path: Path) -> None:
    done = text2song(
        "servers", "up", cwd=tmp_path, PATH="", XDG_CACHE_HOME=str(tmp_path), PIP_NO_INDEX="1", PIP_FIND_LINKS=""
    )
    assert done.returncode == 1
    assert "java is needed for Kafka and is not on the PATH. Install it: on Debian sudo apt-get install" in done.stderr
    assert "go is needed for building versitygw and is not on the PATH" in done.stderr
    assert f"{versions.MONGODB_WHEEL}` failed: ERROR: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_this_machine_cannot_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "text2song" / "servers" / f"versitygw-{versions.VERSITYGW}" / "versitygw"
    program.parent.mkdir(parents=True)
    program.write_text("for another machine")
    program.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=f"versitygw .* cannot be run: Exec format error: {program}"):
        Servers(tmp_path / "data").start("s3")


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ('openjdk version "11.0.2" 2019-01-15', "Kafka needs Java 17 or newer, and .*/java is 11."),
        ('java version "1.8.0_392"', "Kafka needs Java 17 or newer, and .*/java is 1."),
        ('openjdk version "21" 2023-09-19', "mvn is needed for installing Kafka"),
    ],
)
def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, words: str) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho '{version}' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError, match=words):
        installation.kafka(print)


def test_an_installation_is_made_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched = []

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise UnavailableError("The line went dead.")

    def fetch(folder: Path) -> None:
        fetched.append(folder)
        (folder / "program").touch()

    with pytest.raises(UnavailableError, match="line went dead"):
        installation._installed("program-1", print, fail)
    with ThreadPoolExecutor(8) as pool:
        homes = {
            future.result()
            for future in [pool.submit(installation._installed, "program-1", print, fetch) for _ in range(8)]
        }
    (home,) = homes
    assert [path.name for path in home.iterdir()] == ["program"]
    assert len(fetched) == 1
    assert sorted(path.name for path in home.parent.iterdir()) == ["program-1", "program-1.lock"]


@pytest.mark.usefixtures("folder")
def test_the_servers_of_a_test_run_go_when_it_is_killed() -> None:
    code = """
from tests.servers import servers
print(servers().folder, *[server.pid for server in servers().status()], flush=True)
input()
"""
    arguments = [sys.executable, "-c", code]
    own = {name: value for name, value in os.environ.items() if name != SHARED}
    with subprocess.Popen(arguments, cwd=ROOT, env=own, stdin=PIPE, stdout=PIPE, text=True) as run:
        assert run.stdout is not None
        place, *pids = run.stdout.readline().split()
        assert len(pids) == len(NAMES)
        run.kill()
    eventually_sync(lambda: not Path(place).exists())
    assert not [pid for pid in pids if (line := Path(f"/proc/{pid}/cmdline")).exists() and place in line.read_text()]


def test_docker_runs_the_same_versions() -> None:
    compose = (ROOT / "infra" / "deploy" / "compose.yaml").read_text()
    images = dict(re.findall(r"image: (\S+):v?([0-9.]+)$", compose, re.MULTILINE))
    same = {"apache/kafka": versions.KAFKA, "mongo": versions.MONGODB, "versity/versitygw": versions.VERSITYGW}
    assert images.items() >= same.items()
    assert images.keys() - same.keys() == {"prom/prometheus", "grafana/grafana"}
