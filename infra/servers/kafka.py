"""One Kafka node that is broker and controller."""

import base64
import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar, Final

from msgspec import Struct

from domain.errors import UnavailableError
from infra.servers import installation, ports, versions
from infra.servers.installation import Announce
from infra.servers.process import Process, complaint

# After a kill the node may register again only when its old session is over: a second, not the usual nine.
PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=300
group.initial.rebalance.delay.ms=0
log.cleaner.backoff.ms=500
offsets.topic.num.partitions=8
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""
LOGGING: Final = [
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
]
ARCHIVE_SECONDS: Final = 60.0
METADATA: Final = struct.pack(">ihhihi", 14, 3, 1, 0, -1, 0)  # size, api, version, correlation, no client id, no topics


class Kafka(Struct, frozen=True):
    title: ClassVar[str] = f"Kafka {versions.KAFKA}"
    folder: Path
    port: int
    controller_port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def install(self, announce: Announce) -> Path:
        jars = installation.kafka(announce)
        _classes(jars, announce)
        return jars

    def command(self, jars: Path, configured: str = "") -> list[str]:
        """`configured` has properties that replace those of the same name.

        Raises UnavailableError when the folder cannot be made a log of.
        """
        return self.started_with([f"-XX:SharedArchiveFile={_classes(jars)}"], jars, configured)

    def started_with(self, options: list[str], jars: Path, configured: str = "") -> list[str]:
        """`options` are the JVM's."""
        java = [installation.java(), "-Xmx512m", *LOGGING, *options, "-cp", f"{jars}/*"]
        data, properties = self.folder / "data", self.folder / "server.properties"
        if "," in str(data) or "\\" in str(data):
            raise UnavailableError(f"Kafka takes no folder with a comma or backslash in its name: {data}.")
        own = PROPERTIES.format(port=self.port, controller=self.controller_port, data=data)
        properties.write_text(own + configured)
        if not (data / "meta.properties").exists():
            # Kafka's tool takes an id that begins with a dash for an option, so this one begins with a letter.
            cluster = base64.urlsafe_b64encode(b"log" + os.urandom(13)).decode().rstrip("=")
            arguments = ["format", "--ignore-formatted", "--cluster-id", cluster, "--config", str(properties)]
            done = subprocess.run(  # noqa: S603
                [*java, "kafka.tools.StorageTool", *arguments], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise UnavailableError(f"Kafka cannot use the folder {data}: {complaint(done.stdout + done.stderr)}")
        return [*java, "kafka.Kafka", str(properties)]

    def environment(self) -> dict[str, str]:
        return {}

    def answers(self) -> bool:
        """Whether the cluster knows its node as alive, which it does once every partition is led again."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(METADATA)
                header = connection.recv(12)
        except OSError:
            return False
        return len(header) == 12 and struct.unpack(">iii", header)[2] == 1


def _classes(jars: Path, announce: Announce = lambda _: None) -> Path:
    return installation.kafka_classes(jars, announce, partial(_archive, jars))


def _archive(jars: Path, file: Path) -> None:
    """Runs Kafka until it answers, and has the JVM write down at its end which classes it had."""
    with tempfile.TemporaryDirectory(dir=file.parents[1]) as folder:
        kafka = Kafka(Path(folder), *islice(ports.free(), 2))
        command = kafka.started_with([f"-XX:ArchiveClassesAtExit={file}"], jars)
        process = Process.spawn(command, kafka.environment(), Path(folder) / "log")
        ends = time.monotonic() + ARCHIVE_SECONDS
        while process.alive and not kafka.answers() and time.monotonic() < ends:
            time.sleep(0.1)
        if not process.end(signal.SIGTERM, ARCHIVE_SECONDS):
            process.end(signal.SIGKILL, ARCHIVE_SECONDS)
