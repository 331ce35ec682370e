"""A MongoDB replica set of one."""

from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from msgspec import Struct
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from infra.servers import installation, versions
from infra.servers.installation import Announce

REPLICA_SET: Final = "text2song"
NOT_YET_INITIALIZED: Final = 94
NOT_A_MEMBER: Final = 93


class MongoDB(Struct, frozen=True):
    title: ClassVar[str] = f"MongoDB {versions.MONGODB}"
    folder: Path
    port: int

    @property
    def address(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet={REPLICA_SET}"

    def install(self, announce: Announce) -> Path:
        return installation.mongod(announce)

    def command(self, program: Path) -> list[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        return [
            *(str(program), "--dbpath", str(data), "--bind_ip", "127.0.0.1", "--port", str(self.port)),
            *("--replSet", REPLICA_SET, "--nounixsocket", "--wiredTigerCacheSizeGB", "1"),
        ]

    def environment(self) -> dict[str, str]:
        return {}

    def answers(self) -> bool:
        """Whether it takes writes. The replica set is made on the first call, and follows the server to a new port."""
        with suppress(PyMongoError), self._client() as client:
            if client.admin.command("hello")["isWritablePrimary"]:
                return True
            self._configure(client)
        return False

    def _client(self) -> "MongoClient[dict[str, object]]":
        return MongoClient("127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=2000)

    def _configure(self, client: "MongoClient[dict[str, object]]") -> None:
        members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
        try:
            client.admin.command("replSetGetStatus")
        except OperationFailure as error:
            if error.code == NOT_YET_INITIALIZED:
                client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
            elif error.code == NOT_A_MEMBER:
                config = client.admin.command("replSetGetConfig")["config"]
                config = {**config, "version": config["version"] + 1, "members": members}
                client.admin.command("replSetReconfig", config, force=True)
