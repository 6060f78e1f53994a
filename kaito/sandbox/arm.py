"""The agent-pool part of Azure Resource Manager: a request in, a reply out (facts §5).

Routes, api versions, not-found levels, buckets, the script's faults, bodies and headers. No socket:
``aks.py`` has it. What pools do is in ``pools.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode

from kaito.clock import Clock, rfc3339_micro
from kaito.sandbox.answers import Answer, Cut, Refused, Reply, json_answer, scripted_fault
from kaito.sandbox.azure_nodes import DEFAULT_MAX_PODS, image_version, os_sku
from kaito.sandbox.ledger import Ledger
from kaito.sandbox.pool_request import check_pool_name, parse_pool_request
from kaito.sandbox.pools import Operation, Pool, Pools
from kaito.sandbox.script import Rule, ScriptBook
from kaito.sandbox.site import Service, Site, guid
from kaito.sandbox.throttle import Throttle

_OLDEST_API: Final = "2023-07-01"
_API_VERSION: Final = re.compile(r"(\d{4}-\d{2}-\d{2})(-preview)?")
_OPERATION_API: Final = "2017-08-31"
_RETRY_AFTER: Final = "1"
_HANG_SECONDS: Final = 3600.0
_CLUSTER_PATH: Final = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"/providers/Microsoft\.ContainerService/managedClusters/(?P<cluster>[^/]+)"
    r"(?P<pools>/agentPools)?(?:/(?P<pool>[^/]+)(?P<abort>/abort)?)?",
    re.IGNORECASE,
)
_OPERATION_PATH: Final = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/providers/Microsoft\.ContainerService"
    r"/locations/(?P<location>[^/]+)/(?P<kind>operations|operationresults)/(?P<id>[^/]+)",
    re.IGNORECASE,
)
_READ_ONLY: Final = ("provisioningState", "eTag", "status", "currentOrchestratorVersion")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, header names lower. ``base``: scheme and host as the client spells them."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    base: str


Call = Callable[[], Answer]


class Arm:
    """Answers requests; the effect of each is done in one go, without waiting."""

    def __init__(
        self,
        *,
        clock: Clock,
        site: Site,
        service: Service,
        book: ScriptBook,
        ledger: Ledger,
        pools: Pools,
    ) -> None:
        self._clock = clock
        self._site = site
        self._service = service
        self._book = book
        self._ledger = ledger
        self._pools = pools
        self._throttle = Throttle(clock, is_enforced=service.throttling)
        self._requests = 0

    async def reply(self, request: Request) -> Reply:
        """The reply to one request, after the waits that the script orders."""
        kind = {"GET": "reads", "DELETE": "deletes"}.get(request.method, "writes")
        remaining = 0
        try:
            self._check_caller(request)
            remaining = self._throttle.front_door(kind)
            operation, pool, call = self._route(request)
        except Refused as refused:
            return self._with_headers(request, refused.answer(), kind, remaining)
        answer = await self._perform(operation, pool, call)
        if isinstance(answer, Cut):
            return answer
        return self._with_headers(request, answer, kind, remaining)

    # From request to call -------------------------------------------------------------------------

    def _check_caller(self, request: Request) -> None:
        token = request.headers.get("authorization", "")
        if self._service.require_authorization and not token.startswith("Bearer "):
            raise Refused(
                401,
                "AuthenticationFailed",
                "Authentication failed. The 'Authorization' header is missing.",
                headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
            )
        if "api-version" not in request.query:
            raise Refused(
                400,
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required for all requests.",
            )

    def _route(self, request: Request) -> tuple[str, str, Call]:
        """Operation, pool and what carries it out.

        Operations that scripts and ledger do not have are ``cluster`` and ``operation``.
        """
        path = request.path.rstrip("/")
        if match := _OPERATION_PATH.fullmatch(path):
            self._check_subscription(match["subscription"])
            return "operation", "", lambda: self._operation(request, match["kind"], match["id"])
        match = _CLUSTER_PATH.fullmatch(path)
        if match is None or (match["pool"] and not match["pools"]):
            raise Refused(404, "InvalidResourceType", f"No resource is served at {request.path}")
        self._check_api_version(request.query["api-version"])
        name = unquote(match["pool"] or "")
        is_put = request.method == "PUT"
        self._check_cluster(match["subscription"], match["group"], match["cluster"], is_put=is_put)
        match request.method, bool(match["pools"]), bool(name), bool(match["abort"]):
            case "GET", False, False, False:
                return "cluster", "", self._cluster
            case "GET", True, False, False:
                return "list", "", lambda: self._list(request)
            case "GET", True, True, False:
                return "get", name, lambda: self._pool(200, self._pools.get(name))
            case "PUT", True, True, False:
                return "put", name, lambda: self._put(request, name)
            case "DELETE", True, True, False:
                return "delete", name, lambda: self._delete(request, name)
            case "POST", True, True, True:
                return "abort", name, lambda: self._abort(request, name)
        raise Refused(
            405, "HttpMethodNotAllowed", f"{request.method} is not allowed on {request.path}"
        )

    def _check_api_version(self, text: str) -> None:
        match = _API_VERSION.fullmatch(text)
        try:
            is_served = match is not None and date.fromisoformat(match[1]) >= _OLDEST
        except ValueError:
            is_served = False
        if not is_served:
            raise Refused(
                400,
                "InvalidApiVersionParameter",
                f"The api-version '{text}' is invalid. Dates from {_OLDEST_API} on are served.",
            )

    def _check_subscription(self, subscription: str) -> None:
        if subscription.lower() != self._site.subscription_id.lower():
            raise Refused(
                404,
                "SubscriptionNotFound",
                f"The subscription '{subscription}' could not be found.",
            )

    def _check_cluster(self, subscription: str, group: str, cluster: str, *, is_put: bool) -> None:
        self._check_subscription(subscription)
        if group.lower() != self._site.resource_group.lower():
            raise Refused(
                404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found."
            )
        if cluster.lower() == self._site.cluster.lower():
            return
        where = f"'Microsoft.ContainerService/managedClusters/{cluster}'"
        if is_put:
            raise Refused(
                404,
                "ParentResourceNotFound",
                f"Failed to perform 'write' on resource of type 'managedClusters/agentPools', "
                f"because the parent resource {where} could not be found.",
            )
        raise Refused(
            404, "ResourceNotFound", f"The Resource {where} under '{group}' was not found."
        )

    async def _perform(self, operation: str, pool: str, call: Call) -> Reply:
        rule = None
        if operation in self._ledger.calls:
            self._ledger.count(operation)
            rule = self._book.fault(operation, pool)
        await self._wait(self._book.script.latency.call)
        if rule is None:
            return self._answer(operation, pool, call)
        if rule.apply:
            self._answer(operation, pool, call)  # the work is done, what came of it stays untold
        return await self._fault(rule)

    def _answer(self, operation: str, pool: str, call: Call) -> Answer:
        try:
            self._throttle.service(operation, pool)
            return call()
        except Refused as refused:
            return refused.answer()

    async def _fault(self, rule: Rule) -> Reply:
        if rule.hang:
            await self._wait(_HANG_SECONDS if rule.hang is True else float(rule.hang))
        if rule.drop or (rule.status is None and (rule.hang or rule.apply)):
            return Cut()
        is_throttle = rule.retry_after is not None and rule.code is None
        status = rule.status or (429 if is_throttle else 500)
        return scripted_fault(status, rule.code, rule.message, rule.retry_after)

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._clock.sleep(seconds)

    # The calls ------------------------------------------------------------------------------------

    def _put(self, request: Request, name: str) -> Answer:
        check_pool_name(name)
        wanted = parse_pool_request(request.body)
        if_none_match, if_match = self._preconditions(request)
        pool, operation, is_new = self._pools.put(
            name, wanted, if_none_match=if_none_match, if_match=if_match
        )
        answer = self._pool(201 if is_new else 200, pool)
        url = self._operation_url(request, "operations", operation)
        return replace(answer, headers={**answer.headers, "Azure-AsyncOperation": url})

    def _delete(self, request: Request, name: str) -> Answer:
        _, if_match = self._preconditions(request)
        operation = self._pools.delete(name, if_match=if_match)
        return Answer(204) if operation is None else self._accepted(request, operation)

    def _abort(self, request: Request, name: str) -> Answer:
        return self._accepted(request, self._pools.abort(name))

    def _list(self, request: Request) -> Answer:
        pools = self._pools.list()
        size = self._book.script.page_size or len(pools)
        after = request.query.get("$skipToken", "")
        rest = [pool for pool in pools if pool.name > after]
        body: dict[str, Any] = {"value": [self._body(pool) for pool in rest[:size]]}
        if len(rest) > size:
            token = {"api-version": request.query["api-version"], "$skipToken": rest[size - 1].name}
            body["nextLink"] = f"{request.base}{quote(request.path)}?{urlencode(token, safe='$')}"
        return json_answer(200, body)

    def _cluster(self) -> Answer:
        state, version = self._book.script.cluster, self._site.kubernetes_version
        profiles = [
            {"name": pool.name, **self._body(pool)["properties"]} for pool in self._pools.list()
        ]
        body = {
            "id": self._site.cluster_id,
            "name": self._site.cluster,
            "location": self._site.location,
            "type": "Microsoft.ContainerService/ManagedClusters",
            "properties": {
                "provisioningState": state.provisioning_state,
                "powerState": {"code": state.power_state},
                "kubernetesVersion": version.rpartition(".")[0],
                "currentKubernetesVersion": version,
                "nodeResourceGroup": self._site.node_resource_group,
                "agentPoolProfiles": profiles,
            },
        }
        return json_answer(200, body)

    def _operation(self, request: Request, kind: str, operation_id: str) -> Answer:
        operation = self._pools.operation(operation_id)
        headers = {} if operation.ended is not None else {"Retry-After": _RETRY_AFTER}
        if kind.lower() == "operationresults":
            if operation.ended is not None:
                return Answer(204)
            url = self._operation_url(request, "operationresults", operation)
            return Answer(202, headers={**headers, "Location": url})
        body: dict[str, Any] = {
            "id": f"{self._site.operations_path}/operations/{operation.id}",
            "name": operation.id,
            "status": operation.status,
            "startTime": _milliseconds(operation.started),
        }
        if operation.ended is not None:
            body["endTime"] = _milliseconds(operation.ended)
        if operation.error is not None:
            body["error"] = operation.error
        return json_answer(200, body, headers)

    # Parts of answers -----------------------------------------------------------------------------

    def _preconditions(self, request: Request) -> tuple[bool, str | None]:
        """(If-None-Match is ``*``, If-Match), as far as this api-version obeys them (P5.13)."""
        if request.query["api-version"] < self._service.preconditions_since:
            return False, None
        return request.headers.get("if-none-match") == "*", request.headers.get("if-match")

    def _pool(self, status: int, pool: Pool) -> Answer:
        return json_answer(status, self._body(pool), {"ETag": pool.etag})

    def _body(self, pool: Pool) -> dict[str, Any]:
        """What was sent, with what AKS adds (P5.5)."""
        sent = {k: v for k, v in pool.properties.items() if k not in _READ_ONLY and v is not None}
        version = self._site.kubernetes_version
        properties = {
            "osDiskType": "Managed",
            "maxPods": DEFAULT_MAX_PODS,
            "type": "VirtualMachineScaleSets",
            "mode": "User",
            "orchestratorVersion": version.rpartition(".")[0],
            "enableAutoScaling": False,
            "osType": "Linux",
            "nodeLabels": {},
            "nodeTaints": [],
            **sent,
            "vmSize": pool.size.name,
            "count": pool.count,
            "osDiskSizeGB": sent.get("osDiskSizeGB") or pool.size.default_disk_gb,
            "osSKU": os_sku(sent),
            "provisioningState": pool.state,
            "powerState": {"code": "Running"},
            "currentOrchestratorVersion": version,
            "nodeImageVersion": image_version(sent),
            "eTag": pool.etag,
            "status": {"provisioningError": pool.error},
        }
        return {
            "id": f"{self._site.cluster_id}/agentPools/{pool.name}",
            "name": pool.name,
            "type": "Microsoft.ContainerService/managedClusters/agentPools",
            "properties": properties,
        }

    def _accepted(self, request: Request, operation: Operation) -> Answer:
        headers = {
            "Azure-AsyncOperation": self._operation_url(request, "operations", operation),
            "Location": self._operation_url(request, "operationresults", operation),
            "Retry-After": _RETRY_AFTER,
        }
        return Answer(202, headers=headers)

    def _operation_url(self, request: Request, kind: str, operation: Operation) -> str:
        path = f"{self._site.operations_path}/{kind}/{operation.id}"
        return f"{request.base}{path}?api-version={_OPERATION_API}"

    def _with_headers(self, request: Request, answer: Answer, kind: str, remaining: int) -> Answer:
        """The headers that every answer has (P5.2)."""
        self._requests += 1
        request_id = guid(f"request/{self._requests}")
        headers = {
            "x-ms-request-id": request_id,
            "x-ms-correlation-request-id": request.headers.get(
                "x-ms-correlation-request-id", request_id
            ),
            f"x-ms-ratelimit-remaining-subscription-{kind}": str(remaining),
        }
        if client_id := request.headers.get("x-ms-client-request-id"):
            headers["x-ms-client-request-id"] = client_id
        return replace(answer, headers={**headers, **answer.headers})


_OLDEST: Final = date.fromisoformat(_OLDEST_API)


def _milliseconds(epoch_seconds: float) -> str:
    return f"{rfc3339_micro(epoch_seconds)[:-4]}Z"
