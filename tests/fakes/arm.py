"""The simulated ARM without a socket, on a clock turned by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kaito.sandbox.answers import Answer, Reply
from kaito.sandbox.arm import Arm, Request
from kaito.sandbox.fleet import Fleet
from kaito.sandbox.ledger import Ledger
from kaito.sandbox.pools import Pools
from kaito.sandbox.script import ScriptBook, parse_script
from kaito.sandbox.site import Service, Site
from tests.fakes.clock import FakeClock

API = "2026-08-01"
SITE = Site(subscription_id="s", resource_group="rg", cluster="c")
CLUSTER = (
    "/subscriptions/s/resourceGroups/rg/providers/Microsoft.ContainerService/managedClusters/c"
)
POOLS = f"{CLUSTER}/agentPools"


def pool_body(**properties: Any) -> dict[str, Any]:
    """The body of a PUT as the operator sends it (P4.2); None takes a property out."""
    sent = {
        "count": 1,
        "type": "VirtualMachineScaleSets",
        "vmSize": "Standard_NC6s_v3",
        "osType": "Linux",
        "nodeLabels": {"kaito.sh/workspace": "phi"},
        "nodeTaints": ["sku=gpu:NoSchedule"],
        **properties,
    }
    return {"properties": {k: v for k, v in sent.items() if v is not None}}


@dataclass(frozen=True)
class Said:
    """An answer, read."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """The error's code, in whichever of the two shapes."""
        return str(self.body.get("error", self.body)["code"])

    @property
    def message(self) -> str:
        """The error's message, in whichever of the two shapes."""
        return str(self.body.get("error", self.body)["message"])

    @property
    def state(self) -> str:
        """The pool's provisioningState."""
        return str(self.body["properties"]["provisioningState"])


class FakeArm:
    """``arm.put("ws1")`` and so on; ``arm.clock``, ``arm.ledger``, ``arm.script(...)``.

    ``kube``: where VMs join; the test runs ``arm.fleet``.
    """

    def __init__(self, *, kube: Any = None, site: Site = SITE, **service: Any) -> None:
        self.clock = FakeClock()
        self.book = ScriptBook()
        self.ledger = Ledger(self.clock)
        self.fleet = (
            None if kube is None else Fleet(kube=kube, clock=self.clock, book=self.book, site=site)
        )
        self.pools = Pools(
            clock=self.clock,
            book=self.book,
            ledger=self.ledger,
            service=Service(**service),
            site=site,
            host=self.fleet,
        )
        self.arm = Arm(
            clock=self.clock,
            site=site,
            service=Service(**service),
            book=self.book,
            ledger=self.ledger,
            pools=self.pools,
        )

    def script(self, **told: Any) -> None:
        self.book.replace(parse_script(told))

    async def reply(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        api: str | None = API,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        return await self.arm.reply(
            Request(
                method=method,
                path=path,
                query={**({} if api is None else {"api-version": api}), **(query or {})},
                headers=headers or {},
                body=body if isinstance(body, bytes) else json.dumps(body).encode(),
                base="http://arm:1",
            )
        )

    async def call(self, method: str, path: str, **options: Any) -> Said:
        answer = await self.reply(method, path, **options)
        assert isinstance(answer, Answer), answer
        return Said(
            answer.status, json.loads(answer.body) if answer.body else None, dict(answer.headers)
        )

    async def put(self, name: str, *, body: Any = None, **options: Any) -> Said:
        return await self.call(
            "PUT", f"{POOLS}/{name}", body=pool_body() if body is None else body, **options
        )

    async def get(self, name: str, **options: Any) -> Said:
        return await self.call("GET", f"{POOLS}/{name}", **options)

    async def delete(self, name: str, **options: Any) -> Said:
        return await self.call("DELETE", f"{POOLS}/{name}", **options)

    async def abort(self, name: str) -> Said:
        return await self.call("POST", f"{POOLS}/{name}/abort")

    async def list(self) -> list[str]:
        said = await self.call("GET", POOLS)
        return [pool["name"] for pool in said.body["value"]]

    async def state(self, name: str) -> str | None:
        """The pool's state, None when it is gone."""
        said = await self.get(name)
        return None if said.status == 404 else said.state

    async def made(self, name: str, **properties: Any) -> None:
        """A pool that has come to Succeeded."""
        assert (await self.put(name, body=pool_body(**properties))).status == 201
        await self.clock.advance(self.book.script.latency.create)
        assert await self.state(name) == "Succeeded"
