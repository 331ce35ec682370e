"""An S3 gateway over a folder."""

from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import httpx
from msgspec import Struct

from infra.servers import installation, versions
from infra.servers.installation import Announce

ACCESS_KEY: Final = "text2song"
REGION: Final = "us-east-1"
HEALTH: Final = "/healthz"


class S3(Struct, frozen=True):
    title: ClassVar[str] = f"versitygw {versions.VERSITYGW}"
    folder: Path
    port: int
    secret_key: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def install(self, announce: Announce) -> Path:
        return installation.versitygw(announce)

    def command(self, program: Path) -> list[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        return [
            *(str(program), "--port", f"127.0.0.1:{self.port}", "--region", REGION, "--health", HEALTH),
            *("--keep-alive", "--quiet", "posix", str(data)),
        ]

    def environment(self) -> dict[str, str]:
        return {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": self.secret_key}

    def answers(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(self.address + HEALTH, timeout=2, trust_env=False).is_success
        return False
