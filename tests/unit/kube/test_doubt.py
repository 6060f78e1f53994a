"""Writes whose outcome nobody knows, whatever a later sending of them met."""

from __future__ import annotations

import asyncio

from aiohttp import web

from kaito.errors import Conflict
from kaito.kube.client import KubeClient, Written
from kaito.kube.transport import Transport
from tests.fakes.clock import FakeClock
from tests.unit.kube.server import caught, serving, until
from tests.unit.kube.test_client import PODS

BODY = {"metadata": {"namespace": "ns", "name": "a", "resourceVersion": "5"}}


def status(code: int, reason: str, **headers: str) -> web.Response:
    body = {"kind": "Status", "reason": reason, "code": code, "details": {"name": "a"}}
    return web.json_response(body, status=code, headers=headers)


async def test_a_server_error_before_the_answer_leaves_the_write_in_doubt() -> None:
    """A1, W14: the first sending timed out inside the server, which may have carried it out."""
    async with serving() as server:
        server.answers = [
            status(504, "ServerTimeout", **{"Retry-After": "1"}),
            status(409, "Conflict"),
        ]
        clock, told = FakeClock(), list[Written]()
        client = KubeClient(Transport(server.config, clock=clock, component="tests"))
        client.on_written = told.append
        async with asyncio.TaskGroup() as group:
            write = group.create_task(caught(client.replace(PODS, BODY)))
            await until(lambda: len(server.seen) == 1)
            while not write.done():
                await clock.advance(1)
                await asyncio.sleep(0)
        error = write.result()
        assert isinstance(error, Conflict)
        assert error.may_be_done
        assert [written.resource_version for written in told] == [None]
        await client.close()
