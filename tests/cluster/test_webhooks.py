"""Webhooks of a cluster: sent by the role `react` alone, signed, each once, and none lost when that role is killed."""

import json
import signal
from pathlib import Path
from typing import Any, Final

import httpx
from standardwebhooks import Webhook

from tests.cluster.roles import PATIENCE, studio
from tests.cluster.test_roles import ask, submit
from tests.conditions import eventually
from tests.receiver import receiving
from tests.servers import servers

SHORT: Final = {"prompt": "rain on a tin roof", "num_samples": 1, "duration": 0.5}


async def test_each_job_is_told_of_once_and_a_kill_of_react_loses_none(tmp_path: Path) -> None:
    async with (
        studio(servers().addresses, tmp_path) as place,
        httpx.AsyncClient(trust_env=False, timeout=60) as http,
    ):
        # Only `react` may reach this machine: had another role sent anything, it would have been refused.
        allowed = {"TEXT2SONG_WEBHOOK_LOOPBACK": "true"}
        api, react = place.role("api", **allowed), place.role("react", **allowed)
        for role in (api, react, place.role("project"), place.role("work")):
            await role.start()

        async def delivered(job_id: str) -> dict[str, Any] | None:
            found = (await ask(http, "GET", f"{api.url}/jobs/{job_id}/webhooks")).json()["items"]
            return found[0] if found and found[0]["status"] == "delivered" else None

        with receiving() as receiver:
            hooked = {**SHORT, "webhook_url": receiver.url}
            first = await submit(http, api.url, hooked)
            shown = await eventually(lambda: delivered(first), PATIENCE)
            assert shown is not None
            assert [each["status_code"] for each in shown["attempts"]] == [204]
            assert [each.id for each in receiver.heard] == [shown["message_id"]]

            # Killed while the receiver has messages that it has not answered yet.
            receiver.may_answer.clear()
            jobs = [await submit(http, api.url, hooked) for _ in range(3)]

            async def in_the_middle() -> bool:
                return len(receiver.heard) > 1

            await eventually(in_the_middle, PATIENCE)
            react.send(signal.SIGKILL)
            assert await react.ending() == -signal.SIGKILL
            # One that ends while nobody reacts.
            jobs.append(await submit(http, api.url, hooked))

            async def is_done() -> bool:
                return bool((await ask(http, "GET", f"{api.url}/jobs/{jobs[-1]}")).json()["status"] == "completed")

            await eventually(is_done, PATIENCE)
            receiver.may_answer.set()
            await react.start()
            ids = [shown["message_id"]]
            for job_id in jobs:
                found = await eventually(lambda job_id=job_id: delivered(job_id), PATIENCE)  # type: ignore[misc]
                assert found is not None
                ids.append(found["message_id"])
            secret = (await ask(http, "GET", f"{api.url}/webhooks/secret")).json()["secret"]
            told = [Webhook(secret).verify(each.body, each.headers) for each in receiver.heard]

        # What was in the receiver's hands at the kill is sent again under its id, by which receivers tell repeats.
        assert {each.id for each in receiver.heard} == set(ids)
        assert len(set(ids)) == len(ids)
        assert {each["data"]["job_id"] for each in told} == {first, *jobs}
        assert {each["type"] for each in told} == {"job.completed"}
        for id_ in ids:
            bodies = {each.body for each in receiver.heard if each.id == id_}
            assert len(bodies) == 1
            assert json.loads(bodies.pop())["type"] == "job.completed"
        assert [await role.stop() for role in place.roles] == [0] * 4
