"""Simulated AKS on a loopback port: ARM's agent-pool API, and the sandbox's own interface.

The socket and the wiring; see ``arm.py`` for requests, ``pools.py`` for pools, ``fleet.py`` for
Nodes, ``script.py`` for what can be told. State lives in memory and ends with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import web

from kaito.clock import Clock
from kaito.kube.client import KubeClient
from kaito.sandbox.answers import Answer, Cut, json_answer
from kaito.sandbox.arm import Arm, Request
from kaito.sandbox.fleet import Fleet
from kaito.sandbox.ledger import Ledger
from kaito.sandbox.pools import Pools
from kaito.sandbox.script import Script, ScriptBook, ScriptError, parse_script
from kaito.sandbox.site import Service, Site

log = structlog.get_logger()

_HOST: Final = "127.0.0.1"
_TENANT: Final = "5a0d0000-0000-4000-8000-000000000002"
_MAX_BODY: Final = 4 * 1024 * 1024


class SimulatedAks:
    """A cloud of one AKS cluster.

    ``kube``: where the VMs join as Nodes; None: pools only. ``port`` 0: any free one.
    ``on_node_power``: told when a Node is cut off (False) or comes back (True).
    """

    def __init__(
        self,
        *,
        kube: KubeClient | None,
        clock: Clock,
        site: Site | None = None,
        service: Service | None = None,
        port: int = 0,
    ) -> None:
        self.site = site or Site()
        self.port = port
        self.on_node_power: Callable[[str, bool], None] = lambda _name, _is_on: None
        self._book = ScriptBook()
        self._ledger = Ledger(clock)
        self._fleet = None
        if kube is not None:
            self._fleet = Fleet(kube=kube, clock=clock, book=self._book, site=self.site)
            self._fleet.on_power = self._tell_power
        service = service or Service()
        self._pools = Pools(
            clock=clock,
            book=self._book,
            ledger=self._ledger,
            service=service,
            site=self.site,
            host=self._fleet,
        )
        self._arm = Arm(
            clock=clock,
            site=self.site,
            service=service,
            book=self._book,
            ledger=self._ledger,
            pools=self._pools,
        )
        self._runner: web.AppRunner | None = None
        self._task: asyncio.Task[None] | None = None

    # In-process interface -------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Base URL of ARM and of ``/sandbox/…``, without a slash at its end."""
        return f"http://{_HOST}:{self.port}"

    @property
    def script(self) -> Script:
        """The script in force."""
        return self._book.script

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each operation was called: put, get, list, delete, abort."""
        return self._ledger.calls

    def set_script(self, script: Script | Mapping[str, Any] | None = None) -> None:
        """Replace the script; None restores the defaults.

        Raises:
            ScriptError: not a script; the old one stays.
        """
        if not isinstance(script, Script):
            script = parse_script(script or {})
        self._book.replace(script)

    def ledger(self) -> dict[str, Any]:
        """What ``GET /sandbox/ledger`` answers."""
        return self._ledger.as_json()

    def environment(self) -> dict[str, str]:
        """The settings with which an operator, ours or the original, finds this cloud."""
        return {
            "AZURE_RESOURCE_MANAGER_URL": self.url,
            "ARM_SUBSCRIPTION_ID": self.site.subscription_id,
            "ARM_RESOURCE_GROUP": self.site.resource_group,
            "AZURE_CLUSTER_NAME": self.site.cluster,
            "AZURE_TENANT_ID": _TENANT,
            "AZURE_NODE_RESOURCE_GROUP": self.site.node_resource_group,
            "LOCATION": self.site.location,
        }

    async def start(self) -> int:
        """Listen; the port."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_get("/sandbox/ledger", self._get_ledger)
        app.router.add_get("/sandbox/script", self._get_script)
        app.router.add_put("/sandbox/script", self._put_script)
        app.router.add_delete("/sandbox/script", self._delete_script)
        app.router.add_post("/sandbox/nodes/{name}/{verb:fail|recover}", self._power_node)
        app.router.add_route("*", "/{path:.*}", self._serve_arm)
        # No grace for open calls: one that the script hangs would hold up the stop.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, _HOST, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        if self._fleet is not None:
            # A task root: stop() ends and awaits it.
            self._task = asyncio.get_running_loop().create_task(self._run_fleet(self._fleet))
        log.info("simulated AKS started", url=self.url)
        return self.port

    async def stop(self) -> None:
        """Close the port and leave the Nodes alone. Harmless when not started."""
        runner, self._runner = self._runner, None
        task, self._task = self._task, None
        if runner is not None:
            await runner.cleanup()
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _tell_power(self, name: str, is_on: bool) -> None:
        self.on_node_power(name, is_on)

    async def _run_fleet(self, fleet: Fleet) -> None:
        try:
            await fleet.run()
        except Exception:
            log.exception("the simulated VMs stopped")
            raise

    # Sockets --------------------------------------------------------------------------------------

    async def _serve_arm(self, request: web.Request) -> web.StreamResponse:
        reply = await self._arm.reply(
            Request(
                method=request.method,
                path=request.path,
                query=request.query,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=await request.read(),
                base=f"{request.scheme}://{request.host}",
            )
        )
        if isinstance(reply, Cut):
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        return _response(reply)

    async def _get_ledger(self, _request: web.Request) -> web.Response:
        return _response(json_answer(200, self.ledger()))

    async def _get_script(self, _request: web.Request) -> web.Response:
        return _response(json_answer(200, self.script.as_json()))

    async def _put_script(self, request: web.Request) -> web.Response:
        try:
            self._book.replace(parse_script(await request.read()))
        except ScriptError as err:
            return _refused(400, "InvalidScript", str(err))
        return await self._get_script(request)

    async def _delete_script(self, request: web.Request) -> web.Response:
        self.set_script()
        return await self._get_script(request)

    async def _power_node(self, request: web.Request) -> web.Response:
        name, is_on = request.match_info["name"], request.match_info["verb"] == "recover"
        if self._fleet is None or not self._fleet.set_power(name, is_on=is_on):
            return _refused(404, "NotFound", f"the sandbox runs no Node named {name}")
        return _response(json_answer(200, {"node": name, "reporting": is_on}))


def _refused(status: int, code: str, message: str) -> web.Response:
    return _response(json_answer(status, {"error": {"code": code, "message": message}}))


def _response(answer: Answer) -> web.Response:
    headers = dict(answer.headers)
    if answer.body:
        headers["Content-Type"] = answer.content_type
    return web.Response(status=answer.status, body=answer.body, headers=headers)
