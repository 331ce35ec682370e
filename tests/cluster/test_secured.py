"""Kafka, MongoDB and S3 that speak TLS by an authority of the test's own and ask for a login: one studio on them."""

import asyncio
import base64
import datetime
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from domain.errors import DeniedError
from infra import bootstrap, cluster
from infra.servers import installation, ports
from infra.servers.kafka import PROPERTIES, Kafka
from infra.servers.mongodb import REPLICA_SET, MongoDB
from infra.servers.process import Process
from infra.servers.s3 import ACCESS_KEY, S3
from infra.settings import load
from tests.cluster.roles import PATIENCE, Studio, studio
from tests.conditions import eventually, eventually_sync
from tests.servers import servers

PASSWORD: Final = "s3cret/with:odd@letters"  # noqa: S105
QUOTED: Final = "s3cret%2Fwith%3Aodd%40letters"
LISTENERS: Final = """\
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{locked},SSL://127.0.0.1:{tls}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{locked},SSL://127.0.0.1:{tls}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={pem}
listener.name.ssl.ssl.client.auth=required
listener.name.ssl.ssl.truststore.type=PEM
listener.name.ssl.ssl.truststore.location={ca}
"""

REFUSALS: Final[list[tuple[str, str | tuple[str, str], str]]] = [
    ("KAFKA_CA", "stranger", r"Kafka .* is not signed by an authority of TEXT2SONG_KAFKA_CA"),
    ("STORE_CA", "stranger", r"MongoDB at .* is not signed by an authority of TEXT2SONG_STORE_CA"),
    ("S3_CA", "stranger", r"S3 at .* is not signed by an authority of TEXT2SONG_S3_CA"),
    ("KAFKA_USERNAME", "bob", r"it refused the login .*TEXT2SONG_KAFKA_PASSWORD"),
    ("STORE", ("ann:", "bob:"), r"MongoDB at .* refuses this user and password.*TEXT2SONG_STORE"),
    ("S3_ACCESS_KEY", "bob", r"S3 at .* refuses the access key 'bob'.*TEXT2SONG_S3_SECRET_KEY"),
    ("LOG", ("127.0.0.1", "localhost"), r"Kafka .* not made out for this host"),
    ("STORE", ("127.0.0.1", "localhost"), r"MongoDB at .* not made out for this host"),
    ("S3_ENDPOINT", ("127.0.0.1", "localhost"), r"S3 at .* not made out for this host"),
]


class Authority:
    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def certify(self, name: str, address: str) -> tuple[Path, Path, Path]:
        """Files of the certificate, of its key, and of both."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._signed(subject, key, x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]))
        public = made.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files = [self._folder / f"{name}.{end}" for end in ("crt", "key", "both")]
        for file, content in zip(files, (public, private, private + public), strict=True):
            file.write_bytes(content)
        return files[0], files[1], files[2]

    def _signed(self, subject: x509.Name, key: Any, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        building = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        building = building.not_valid_before(now - datetime.timedelta(hours=1))
        building = building.not_valid_after(now + datetime.timedelta(days=1)).add_extension(extension, critical=False)
        return building.sign(self._key, hashes.SHA256())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The settings of a studio on the three."""
    servers()  # installs, or skips
    folder = tmp_path_factory.mktemp("secured")
    authority, stranger = Authority(folder, "authority"), Authority(folder, "stranger")
    crt, key, both = authority.certify("server", "127.0.0.1")
    port, controller, locked, tls, mongo_port, s3_port = islice(ports.free(), 6)
    secret = folder / "password"
    secret.write_text(PASSWORD + "\n")
    kafka, mongo, s3 = folder / "kafka", folder / "mongo", folder / "s3"
    for each in (kafka, mongo, s3):
        each.mkdir()
    listeners = LISTENERS.format(port=port, controller=controller, locked=locked, tls=tls, pem=both, ca=authority.file)
    with ExitStack() as stack:

        def spawn(command: list[str], environment: dict[str, str], at: Path) -> None:
            process = Process.spawn(command, environment, at / "log")
            stack.callback(process.end, signal.SIGKILL, PATIENCE)

        broker = Kafka(kafka, port, controller)
        jars = broker.install(print)
        _format(kafka, jars, PROPERTIES.format(port=port, controller=controller, data=kafka / "data") + listeners)
        spawn(broker.command(jars, listeners), {}, kafka)
        database = MongoDB(mongo, mongo_port)
        shared = mongo / "shared.key"
        shared.write_text(base64.b64encode(os.urandom(96)).decode())
        shared.chmod(0o600)
        options = ["--tlsMode", "preferTLS", "--tlsCertificateKeyFile", str(both), "--tlsCAFile", str(authority.file)]
        options += ["--tlsAllowConnectionsWithoutCertificates", "--auth", "--keyFile", str(shared)]
        spawn([*database.command(database.install(print)), *options], {}, mongo)
        gateway = S3(s3, s3_port, PASSWORD)
        spawn([*_with_tls(gateway.command(gateway.install(print)), crt, key)], gateway.environment(), s3)
        _make_user(mongo_port)
        eventually_sync(broker.answers, PATIENCE)
        eventually_sync(lambda: _listens(s3_port), PATIENCE)
        yield {
            "TEXT2SONG_LOG": f"kafka://127.0.0.1:{locked}",
            "TEXT2SONG_KAFKA_SECURITY": "SASL_SSL",
            "TEXT2SONG_KAFKA_MECHANISM": "SCRAM-SHA-512",
            "TEXT2SONG_KAFKA_USERNAME": "ann",
            "TEXT2SONG_KAFKA_PASSWORD_FILE": str(secret),
            "TEXT2SONG_KAFKA_CA": str(authority.file),
            "TEXT2SONG_STORE": f"mongodb://ann:{QUOTED}@127.0.0.1:{mongo_port}/studio?authSource=admin",
            "TEXT2SONG_STORE_CA": str(authority.file),
            "TEXT2SONG_OBJECTS": "s3://studio",
            "TEXT2SONG_S3_ENDPOINT": f"https://127.0.0.1:{s3_port}",
            "TEXT2SONG_S3_ACCESS_KEY": ACCESS_KEY,
            "TEXT2SONG_S3_SECRET_KEY_FILE": str(secret),
            "TEXT2SONG_S3_CA": str(authority.file),
            "stranger": str(stranger.file),
            "tls": f"kafka://127.0.0.1:{tls}",
            "crt": str(crt),
            "key": str(key),
        }


def _format(folder: Path, jars: Path, properties: str) -> None:
    """With the user, which Kafka's own tool can only be told to make before the first start."""
    (folder / "server.properties").write_text(properties)
    tool = [installation.java(), "-Xmx128m", "-cp", f"{jars}/*", "kafka.tools.StorageTool", "format"]
    user = f'SCRAM-SHA-512=[name="ann",password="{PASSWORD}"]'
    options = ["--cluster-id", "bG9nc2VjdXJlZHNlcnZlcg", "--config", str(folder / "server.properties")]
    subprocess.run([*tool, *options, "--add-scram", user], check=True, capture_output=True)


def _with_tls(command: list[str], crt: Path, key: Path) -> list[str]:
    return [command[0], "--cert", str(crt), "--key", str(key), *command[1:]]


def _make_user(port: int) -> None:
    members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]

    def made() -> bool:
        with suppress(PyMongoError), MongoClient[Any]("127.0.0.1", port, directConnection=True) as client:
            if not client.admin.command("hello")["isWritablePrimary"]:
                client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
                return False
            client.admin.command("createUser", "ann", pwd=PASSWORD, roles=["root"])
            return True
        return False

    eventually_sync(made, PATIENCE)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


async def test_a_job_is_made_over_three_servers_with_tls_and_logins(secured: dict[str, str], tmp_path: Path) -> None:
    async with studio(servers().addresses, tmp_path) as place:
        _move(place, secured)
        roles = [place.role(name) for name in ("project", "work", "api")]
        for role in roles:
            await role.start()
        url = roles[-1].url
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:

            async def post() -> Any:
                with suppress(httpx.TransportError):
                    answer = await http.post(f"{url}/generate", json={"prompt": "rain", "duration": 1.0})
                    return answer.json() if answer.status_code == 202 else None
                return None

            job = (await eventually(post, PATIENCE))["job_id"]

            async def done() -> Any:
                found = (await http.get(f"{url}/jobs/{job}")).json()
                return found if found.get("status") == "completed" else None

            sample = (await eventually(done, PATIENCE))["sample_ids"][0]
            stream = await http.get(f"{url}/audio/{sample}/stream")
            assert stream.status_code == 200
            assert len(stream.content) > 1000
        assert [await role.stop() for role in roles] == [0, 0, 0]
        assert not any("Traceback" in role.said or PASSWORD in role.said for role in roles)


def _move(place: Studio, secured: dict[str, str]) -> None:
    place.environment |= {name: value for name, value in secured.items() if name.startswith("TEXT2SONG_")}
    for name in ("KAFKA_PASSWORD", "S3_SECRET_KEY"):
        place.environment.pop(f"TEXT2SONG_{name}", None)


async def test_kafka_takes_a_clients_certificate(secured: dict[str, str]) -> None:
    own = {"KAFKA_SECURITY": "SSL", "KAFKA_CERTIFICATE": secured["crt"], "KAFKA_KEY": secured["key"]}
    log = await bootstrap.open_log(
        load(
            {**secured, **{f"TEXT2SONG_{name}": value for name, value in own.items()}, "TEXT2SONG_LOG": secured["tls"]}
        )
    )
    await log.close()


async def test_who_is_refused_is_told_why_and_does_not_wait(secured: dict[str, str]) -> None:
    async def opens(name: str, change: str | tuple[str, str], said: str) -> None:
        variable = f"TEXT2SONG_{name}"
        changed = secured[variable].replace(*change) if isinstance(change, tuple) else secured.get(change, change)
        settings = load({**secured, variable: changed})
        kind = "kafka" if name == "LOG" else name.partition("_")[0].lower()
        opening: Any = {"kafka": bootstrap.open_log, "store": cluster.mongo_counters, "s3": cluster.s3_objects}[kind]
        with pytest.raises(DeniedError, match=said) as refused:
            await opening(settings)
        assert PASSWORD not in str(refused.value)

    # At once, as clients try some of them again for seconds.
    await asyncio.gather(*(opens(*each) for each in REFUSALS))
