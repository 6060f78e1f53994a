"""ARM calls through azure-mgmt-containerservice. Each is one request and returns at once.

Nothing of the SDK's own retries, polling, redirects or provider registration is used (facts P5.21,
P5.31, P5.32). Errors leave here as CloudError, except the two answers a caller acts on: None for a
pool that is not there, PoolExists for one that is. The SDK is imported by this module, which is
imported only where machines are ordered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
)
from azure.core.pipeline import policies
from azure.core.pipeline.transport import AioHttpTransport
from azure.core.polling import AsyncLROPoller
from azure.mgmt.containerservice.aio import ContainerServiceClient
from azure.mgmt.containerservice.models import AgentPool

from kaito.clock import Clock
from kaito.errors import CloudError
from kaito.metrics import ARM_REQUESTS, ARM_SECONDS
from kaito.provisioner.backends.agentpool import errors
from kaito.provisioner.backends.agentpool.auth import ArmTarget, NoCredential, credential, scope

T = TypeVar("T")

_CALL_SECONDS: Final = 90.0
_USER_AGENT: Final = "kaito/0.1"
_ON_A_POOL: Final = frozenset({"get", "delete", "abort"})
"""Operations that may be told that the pool they name is not there."""


async def _send_once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Of itself aiohttp sends PUT and DELETE again after a cut: no blind second PUT (P5.36)."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise  # never sent
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as err:
        raise aiohttp.ClientPayloadError(f"connection cut: {err}") from err


class PoolExists(Exception):
    """The PUT's precondition failed: a pool has the name."""


class ArmClient:
    """The agent pools of one managed cluster. One per process; ``await close()``."""

    def __init__(self, target: ArmTarget, *, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._scope = (target.resource_group, target.cluster_name)
        self._credential = None if target.is_loopback else credential(target)
        self._session: aiohttp.ClientSession | None = None
        self._opened: ContainerServiceClient | None = None

    @property
    def _sdk(self) -> ContainerServiceClient:
        """Opened by the first call, as a session needs the running loop."""
        if self._opened is None:
            # A proxy from the environment is obeyed even for 127.0.0.1 (facts P5.30).
            use_env = not self._target.is_loopback
            self._session = aiohttp.ClientSession(
                trust_env=use_env,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                middlewares=(_send_once,),
            )
            self._opened = ContainerServiceClient(
                self._credential or NoCredential(),  # type: ignore[arg-type]  # no policy asks for it
                self._target.subscription_id,
                base_url=self._target.arm_url,
                policies=self._policies(),
                transport=AioHttpTransport(
                    session=self._session,
                    session_owner=False,
                    connection_timeout=10,
                    read_timeout=60,
                    use_env_settings=use_env,
                ),
            )
        return self._opened

    def _policies(self) -> list[Any]:
        chain: list[Any] = [
            policies.RequestIdPolicy(),
            policies.HeadersPolicy(),
            policies.UserAgentPolicy(_USER_AGENT),
            policies.ContentDecodePolicy(),
        ]
        if self._credential is not None:
            from azure.mgmt.core.policies import AsyncARMChallengeAuthenticationPolicy

            chain.append(
                AsyncARMChallengeAuthenticationPolicy(self._credential, scope(self._target))
            )
        return chain

    async def put(self, name: str, body: Mapping[str, Any], subject: errors.Subject) -> None:
        """Create the pool, only if there is none.

        Raises:
            PoolExists: there is one, in whatever state.
            CloudError: refused; ``CloudUnavailable`` when the answer was lost (facts P5.36).
        """

        async def call() -> None:
            poller = await self._sdk.agent_pools.begin_create_or_update(
                *self._scope,
                name,
                AgentPool(body),
                match_condition=MatchConditions.IfMissing,
                polling=False,
            )
            await poller.result()

        try:
            await self._call("put", call, subject, f"create agent pool {name}")
        except _Precondition:
            raise PoolExists(name) from None

    async def get(self, name: str) -> Mapping[str, Any] | None:
        """The pool, None when the cluster says it has none of that name."""

        async def call() -> Mapping[str, Any]:
            return await self._sdk.agent_pools.get(*self._scope, name)

        with suppress(_Absent):
            return await self._call("get", call, errors.Subject(name), f"read agent pool {name}")
        return None

    async def list(self) -> tuple[Mapping[str, Any], ...]:
        """All pools of the cluster: every page, or CloudError."""

        async def call() -> tuple[Mapping[str, Any], ...]:
            pages = self._sdk.agent_pools.list(*self._scope).by_page()
            found: list[Mapping[str, Any]] = []
            async for page in pages:
                found += [pool async for pool in page]
                # The SDK would follow the link to any host, with our token (facts P5.26).
                self._check_own(pages.continuation_token)  # type: ignore[attr-defined]  # AsyncPageIterator's
            return tuple(found)

        return await self._call("list", call, errors.Subject(""), "list agent pools")

    async def delete(self, name: str) -> bool:
        """Ask for deletion; whether there is a pool to delete: 404 and 204 say there is none."""

        async def call() -> bool:
            poller: AsyncLROPoller[Any] = await self._sdk.agent_pools.begin_delete(
                *self._scope,
                name,
                polling=False,
                cls=lambda response, *_: response.http_response.status_code,
            )
            status: int = await poller.result()
            return status != HTTPStatus.NO_CONTENT

        with suppress(_Absent):
            return await self._call(
                "delete", call, errors.Subject(name), f"delete agent pool {name}"
            )
        return False

    async def abort(self, name: str) -> None:
        """Ask for the end of the pool's running operation. No pool is done."""

        async def call() -> None:
            poller = await self._sdk.agent_pools.begin_abort_latest_operation(
                *self._scope, name, polling=False
            )
            await poller.result()

        with suppress(_Absent):
            await self._call("abort", call, errors.Subject(name), f"abort agent pool {name}")

    async def cluster(self) -> Mapping[str, Any]:
        """The managed cluster."""

        async def call() -> Mapping[str, Any]:
            return await self._sdk.managed_clusters.get(*self._scope)

        subject = errors.Subject(self._target.cluster_name)
        return await self._call("cluster", call, subject, "read the managed cluster")

    async def close(self) -> None:
        """Give back connections and the credential's own."""
        if self._opened is not None:
            await self._opened.close()
        if self._session is not None:
            await self._session.close()
        if self._credential is not None:
            await self._credential.close()

    def _check_own(self, link: str | None) -> None:
        if link is None:
            return
        own, given = urlsplit(self._target.arm_url), urlsplit(link)
        if (own.scheme, own.netloc) != (given.scheme, given.netloc):
            raise _lost(f"list agent pools: the next page is on {given.netloc}, not followed")

    async def _call(
        self, operation: str, call: Callable[[], Awaitable[T]], subject: errors.Subject, tried: str
    ) -> T:
        """One request, measured, its error translated at the door."""
        began = self._clock.monotonic()
        status, code = "<error>", "other"
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                answer = await call()
        except HttpResponseError as err:
            refusal = _refusal(err)
            status, code = str(refusal.status or "<error>"), _metric_code(refusal)
            if isinstance(err, ClientAuthenticationError):
                row = _credential_row(err)
                raise errors.cloud_error(refusal, subject, tried=tried, row=row) from err
            if operation == "put" and refusal.status == 412:
                raise _Precondition from err
            is_missing = refusal.status == 404 and "notfound" in refusal.codes
            if is_missing and operation in _ON_A_POOL:
                raise _Absent from err
            # Of what these calls name, only the cluster can be missing.
            known = errors.CLUSTER_NOT_FOUND if is_missing else None
            raise errors.cloud_error(refusal, subject, tried=tried, row=known) from err
        except ServiceRequestError as err:
            raise _lost(f"{tried}: {err.message}") from err
        except (AzureError, TimeoutError, ValueError) as err:
            # Cut, timed out, or a 2xx that is not JSON: it may have taken effect (facts P5.33).
            raise _lost(f"{tried}: no usable answer ({type(err).__name__})") from err
        except OSError as err:  # the federated token's file; the network's are AzureErrors
            refusal = errors.Refusal(0, (), "", str(err))
            row = errors.CREDENTIAL_MISSING
            raise errors.cloud_error(refusal, subject, tried=tried, row=row) from err
        else:
            status, code = "2xx", ""
            return answer
        finally:
            ARM_REQUESTS.labels(operation, status, code).inc()
            ARM_SECONDS.labels(operation).observe(self._clock.monotonic() - began)


class _Absent(Exception):
    """404 of the pool itself."""


class _Precondition(Exception):
    """412."""


def _refusal(err: HttpResponseError) -> errors.Refusal:
    headers: Mapping[str, str] = getattr(err.response, "headers", {})
    detail = {"message": err.message} if err.error is None else _detail(err.error)
    return errors.from_detail(
        detail,
        status=err.status_code or 0,
        retry_after=_seconds(headers.get("Retry-After")),
        request_id=headers.get("x-ms-request-id", ""),
    )


def _detail(error: Any) -> dict[str, Any]:
    """The SDK's ODataV4 error as plain data."""
    return {
        "code": error.code,
        "message": error.message,
        "target": error.target,
        "details": [_detail(entry) for entry in error.details or ()],
    }


def _seconds(retry_after: str | None) -> float | None:
    with suppress(TypeError, ValueError):
        seconds = float(retry_after or "")
        return seconds if 0 <= seconds < 86_400 else None
    return None


def _metric_code(refusal: errors.Refusal) -> str:
    return next((code for code in refusal.codes if code in errors.KNOWN_CODES), "other")


def _lost(message: str) -> CloudError:
    return errors.cloud_error(
        errors.Refusal(0, (), "", message),
        errors.Subject(""),
        tried="ARM",
        row=errors.CLOUD_UNAVAILABLE,
    )


def _credential_row(err: ClientAuthenticationError) -> errors.Row:
    # Lazily, and only where a credential has failed: loopback never gets here with one.
    from azure.identity import CredentialUnavailableError

    is_missing = isinstance(err, CredentialUnavailableError)
    return errors.CREDENTIAL_MISSING if is_missing else errors.CREDENTIAL_INVALID
