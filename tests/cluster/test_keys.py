"""Keys and limits of a cluster: what one API process is told or counts, holds for the others."""

from pathlib import Path

import httpx

from tests.cluster.roles import PATIENCE, studio
from tests.conditions import eventually
from tests.servers import servers


async def test_api_processes_share_keys_and_limits(tmp_path: Path) -> None:
    async with studio(servers().addresses, tmp_path) as place, httpx.AsyncClient(trust_env=False, timeout=60) as http:

        async def made(*scopes: str) -> str:
            options = [option for scope in scopes for option in ("--scope", scope)]
            command = await place.command("keys", "create", "--owner", "ann", *options)
            said, _ = await command.communicate()
            return said.decode().split()[-1]

        admin, key = await made("admin"), await made("read")
        apis = [place.role("api", TEXT2SONG_READ_LIMIT="5/day") for _ in range(2)]
        for role in (*apis, place.role("project")):
            await role.start()

        async def status(at: int, sent: str, path: str = "/prompts/x") -> int:
            try:
                return (await http.get(f"{apis[at].url}{path}", headers={"X-API-Key": sent})).status_code
            except httpx.TransportError:
                return 503

        async def knows(at: int) -> bool:
            return await status(at, "t2s_nobody_x") == 401

        for at in (0, 1):
            await eventually(lambda at=at: knows(at), PATIENCE)  # type: ignore[misc]
        assert [await status(number % 2, key) for number in range(8)] == [404] * 5 + [429] * 3
        another = await made("write")
        revoked = await http.delete(f"{apis[0].url}/keys/{key.split('_')[1]}", headers={"X-API-Key": admin})
        assert revoked.status_code == 200, revoked.text

        async def refused() -> bool:
            return await status(1, key) == 401 and await status(1, another) == 403

        await eventually(refused, PATIENCE)
        assert [await role.stop() for role in place.roles] == [0] * 3
