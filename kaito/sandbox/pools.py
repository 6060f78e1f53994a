"""The agent pools of the simulated cluster: states, operations, preconditions, quota.

Comes in: PUT, DELETE, abort, already parsed. Goes out: pools, operations, or ``Refused``. All that
happens by itself is a timer of the clock. No HTTP, no Kubernetes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from kaito.clock import Clock
from kaito.sandbox.answers import Refused
from kaito.sandbox.ledger import Ledger
from kaito.sandbox.pool_request import PoolRequest
from kaito.sandbox.quota import check_quota
from kaito.sandbox.script import PoolFate, ScriptBook
from kaito.sandbox.site import Service, Site, guid
from kaito.sandbox.vm_sizes import VmSize

SETTLED: Final = frozenset({"Succeeded", "Failed", "Canceled"})
_CANCEL_SECONDS: Final = 1.0
_HISTORY_SECONDS: Final = 600.0


@dataclass(slots=True)
class Operation:
    """A long-running operation as the operations route shows it (P5.9)."""

    id: str
    pool: str
    kind: str
    started: float
    status: str = "InProgress"
    ended: float | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """One agent pool at one moment. ``properties``: what was PUT, without what AKS adds."""

    name: str
    size: VmSize
    count: int
    properties: Mapping[str, Any]
    state: str
    etag: str
    error: Mapping[str, Any] | None = None


class VmHost(Protocol):
    """Whoever runs the machines of the pools."""

    def provision(self, pool: Pool) -> None:
        """The pool is to have ``pool.count`` machines, from now on."""
        ...

    def hold(self, name: str) -> None:
        """No further machine of the pool may join: its creation has ended without success."""
        ...

    def release(self, name: str, within: float) -> None:
        """The pool's machines go, before so many seconds have passed."""
        ...


@dataclass(slots=True)
class _Entry:
    pool: Pool
    operation: Operation
    incarnation: int
    version: int = 1


class Pools:
    """The state machine of P5.11 and P5.12 for every pool of the cluster."""

    def __init__(
        self,
        *,
        clock: Clock,
        book: ScriptBook,
        ledger: Ledger,
        service: Service,
        site: Site,
        host: VmHost | None = None,
    ) -> None:
        self._clock = clock
        self._book = book
        self._ledger = ledger
        self._service = service
        self._site = site
        self._host = host
        self._entries: dict[str, _Entry] = {}
        self._past: dict[str, list[tuple[float, Pool | None]]] = {}
        self._operations: dict[str, Operation] = {}
        self._made = 0

    # Reading --------------------------------------------------------------------------------------

    def get(self, name: str) -> Pool:
        """The pool as it is now.

        Raises:
            Refused: 404, there is none.
        """
        return self._existing(name).pool

    def list(self) -> tuple[Pool, ...]:
        """All pools by name; as they were ``stale_list`` seconds ago when the script says so."""
        age = self._book.script.stale_list
        if not age:
            return tuple(e.pool for _, e in sorted(self._entries.items()))
        moment = self._clock.monotonic() - age
        seen = (_at(past, moment) for _, past in sorted(self._past.items()))
        return tuple(pool for pool in seen if pool is not None)

    def operation(self, operation_id: str) -> Operation:
        """The operation of that id.

        Raises:
            Refused: 404, there never was one.
        """
        operation = self._operations.get(operation_id.lower())
        if operation is None:
            raise Refused(404, "NotFound", f"Operation {operation_id} not found")
        return operation

    # Writing --------------------------------------------------------------------------------------

    def put(
        self, name: str, request: PoolRequest, *, if_none_match: bool, if_match: str | None
    ) -> tuple[Pool, Operation, bool]:
        """Create or update; the pool, its operation, and whether it is new.

        Raises:
            Refused: 412, 409 or 400; nothing has changed.
        """
        entry = self._entries.get(name)
        self._check_preconditions(entry, if_none_match=if_none_match, if_match=if_match)
        self._check_gate("put agentpool")
        if entry is not None:
            return self._update(entry, request)
        self._check_creation(name, request)
        operation = self._begin(name, "Creating")
        self._made += 1
        pool = Pool(name, request.size, request.count, request.properties, "Creating", "")
        entry = self._entries[name] = _Entry(pool, operation, self._made)
        self._record(entry)
        self._ledger.resize(name, request.size.name, request.count)
        fate = self._book.script.pool_fate(name)
        if self._host is not None and fate is None:
            self._host.provision(entry.pool)
        if fate is None or fate.state != "Stuck":
            self._after(self._book.script.latency.create, entry, lambda: self._created(entry, fate))
        return entry.pool, operation, True

    def delete(self, name: str, *, if_match: str | None) -> Operation | None:
        """Begin a deletion, or the one that is running; None when there was nothing (option 204).

        Raises:
            Refused: 412, 409, or 404 for an absent pool.
        """
        entry = self._entries.get(name)
        self._check_preconditions(entry, if_none_match=False, if_match=if_match)
        self._check_gate("delete agentpool")
        if entry is None and self._book.script.delete_absent == 204:
            return None
        entry = self._existing(name)
        if entry.pool.state == "Deleting":
            return entry.operation
        if entry.pool.state not in SETTLED:
            if not self._service.delete_preempts:
                raise _in_progress(entry)
            self._end(entry.operation, "Failed", _PREEMPTED)
        entry.operation = self._begin(name, "Deleting")
        self._change(entry, "Deleting")
        within = self._book.script.latency.delete
        if self._host is not None:
            self._host.release(name, within)
        self._after(within, entry, lambda: self._gone(entry))
        return entry.operation

    def abort(self, name: str) -> Operation:
        """Stop the running operation; what it has made so far stays (P5.11).

        Raises:
            Refused: 404, or 409 when nothing runs that could be stopped.
        """
        entry = self._existing(name)
        if entry.pool.state in SETTLED or entry.pool.state in ("Deleting", "Canceling"):
            raise Refused(
                409,
                "OperationNotAllowed",
                f"Operation is not allowed: agentpool {name} is {entry.pool.state}, "
                "no operation is running that could be aborted",
            )
        self._end(entry.operation, "Canceled")
        entry.operation = self._begin(name, "Canceling")
        self._change(entry, "Canceling")
        if self._host is not None:
            self._host.hold(name)
        self._after(
            min(_CANCEL_SECONDS, self._book.script.latency.delete),
            entry,
            lambda: self._settle(entry, "Canceled"),
        )
        return entry.operation

    # Transitions ----------------------------------------------------------------------------------

    def _update(self, entry: _Entry, request: PoolRequest) -> tuple[Pool, Operation, bool]:
        if entry.pool.state == "Deleting":
            raise Refused(
                409,
                "OperationNotAllowed",
                f"Operation is not allowed on agentpool {entry.pool.name} since deletion was "
                "issued on it, only allowed operation is deletion",
            )
        if entry.pool.state not in SETTLED:
            raise _in_progress(entry)
        if request.size.name.lower() != entry.pool.size.name.lower():
            raise Refused(
                400,
                "PropertyChangeNotAllowed",
                "Changing property 'properties.vmSize' is not allowed.",
                target="properties.vmSize",
            )
        name, added = entry.pool.name, request.count - entry.pool.count
        self._check_quota(request, added)
        entry.operation = self._begin(name, "Updating")
        entry.pool = replace(entry.pool, count=request.count, properties=request.properties)
        self._change(entry, "Updating")
        self._ledger.resize(name, request.size.name, request.count)
        if self._host is not None:
            self._host.provision(entry.pool)
        self._after(
            self._book.script.latency.create, entry, lambda: self._settle(entry, "Succeeded")
        )
        return entry.pool, entry.operation, False

    def _created(self, entry: _Entry, fate: PoolFate | None) -> None:
        if fate is None:
            self._settle(entry, "Succeeded")
            return
        cause = {"code": fate.code, "message": fate.message}
        error = {
            "code": "ReconcileVMSSAgentPoolFailed",
            "message": f"Agent pool {entry.pool.name} could not be created. {fate.message}",
            "details": [cause],
        }
        self._settle(entry, "Failed", error)

    def _settle(self, entry: _Entry, state: str, error: Mapping[str, Any] | None = None) -> None:
        done = "Succeeded" if entry.operation.kind == "Canceling" else state
        self._end(entry.operation, done, error)
        self._change(entry, state, error)

    def _gone(self, entry: _Entry) -> None:
        self._end(entry.operation, "Succeeded")
        del self._entries[entry.pool.name]
        self._remember(entry.pool.name, None)
        self._ledger.close(entry.pool.name)

    def _change(self, entry: _Entry, state: str, error: Mapping[str, Any] | None = None) -> None:
        entry.version += 1
        entry.pool = replace(entry.pool, state=state, error=error)
        self._record(entry)

    def _record(self, entry: _Entry) -> None:
        text = f"{entry.pool.name}/{entry.incarnation}/{entry.version}"
        entry.pool = replace(entry.pool, etag=f'"{guid(text)}"')
        self._remember(entry.pool.name, entry.pool)

    def _remember(self, name: str, pool: Pool | None) -> None:
        now = self._clock.monotonic()
        past = self._past.setdefault(name, [])
        past.append((now, pool))
        while len(past) > 1 and past[1][0] < now - _HISTORY_SECONDS:
            del past[0]

    def _begin(self, pool: str, kind: str) -> Operation:
        operation_id = guid(f"operation/{len(self._operations)}")
        operation = Operation(operation_id, pool, kind, self._clock.now())
        self._operations[operation_id] = operation
        return operation

    def _end(
        self, operation: Operation, status: str, error: Mapping[str, Any] | None = None
    ) -> None:
        operation.status, operation.ended, operation.error = status, self._clock.now(), error

    def _after(self, seconds: float, entry: _Entry, then: Callable[[], None]) -> None:
        """Go on in so many seconds, unless another operation has taken the pool by then."""
        operation = entry.operation

        def due() -> None:
            if entry.operation is operation:
                then()

        self._clock.call_later(seconds, due)

    # Checks ---------------------------------------------------------------------------------------

    def _existing(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise Refused(404, "NotFound", f"Agent Pool {name} not found")
        return entry

    def _check_preconditions(
        self, entry: _Entry | None, *, if_none_match: bool, if_match: str | None
    ) -> None:
        if if_none_match and entry is not None:
            raise Refused(412, "PreconditionFailed", f"Agent pool {entry.pool.name} already exists")
        if if_match is None:
            return
        if entry is None or (if_match != "*" and if_match != entry.pool.etag):
            raise Refused(412, "PreconditionFailed", "The ETag sent is not that of the agent pool")

    def _check_gate(self, verb: str) -> None:
        cluster = self._book.script.cluster
        if cluster.power_state == "Running" and cluster.provisioning_state in SETTLED:
            return
        raise Refused(
            409,
            "OperationNotAllowed",
            f"managed cluster is in Provisioning State({cluster.provisioning_state}) and "
            f"Power State({cluster.power_state}), {verb} cannot be performed",
        )

    def _check_creation(self, name: str, request: PoolRequest) -> None:
        if not self._service.parallel_puts:
            busy = (e for e in self._entries.values() if e.pool.state not in SETTLED)
            for entry in busy:
                raise _in_progress(entry)
        limit, used = self._book.script.pool_limit, len(self._entries)
        if used >= limit:
            raise Refused(
                400,
                "AgentPoolCountLimitReached",
                f"Agent pool {name} cannot be added to the cluster. Maximum allowed: {limit}, "
                f"Current in use: {used}, Additional requested: 1",
            )
        self._check_quota(request, request.count)

    def _check_quota(self, request: PoolRequest, added: int) -> None:
        pools = [entry.pool for entry in self._entries.values()]
        check_quota(self._book.script.quota, pools, request, added, location=self._site.location)


_PREEMPTED: Final = {
    "code": "AKSOperationPreemptedByDelete",
    "message": "The operation was preempted by a delete operation.",
}


def _in_progress(entry: _Entry) -> Refused:
    return Refused(
        409,
        "OperationNotAllowed",
        f"Operation is not allowed: Another agentpool operation ({entry.pool.name} - "
        f"{entry.pool.state}) is in progress, please wait for it to finish before starting a new "
        "operation",
    )


def _at(past: list[tuple[float, Pool | None]], moment: float) -> Pool | None:
    """What was there at that moment; None for a pool that was not made yet, or was gone."""
    return next((pool for when, pool in reversed(past) if when <= moment), None)
