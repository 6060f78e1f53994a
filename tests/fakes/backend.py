"""A cloud in memory that keeps ``NodeBackend``'s contract, with a ledger and scripted refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kaito.errors import After, CloudError
from kaito.provisioner.interface import (
    ClusterInfo,
    Fault,
    Instance,
    InstanceState,
    LaunchRequest,
    Word,
)
from tests.fakes.clock import FakeClock


def refusal(
    reason: str, *, waits: tuple[float, ...] = (600.0, 1200.0, 2400.0, 3600.0), code: str = ""
) -> CloudError:
    return CloudError(
        f"{reason} by script",
        reason=reason,
        retry=After(waits[0]),
        remedy="Do something",
        code=code,
        waits=waits,
    )


@dataclass
class InMemoryBackend:
    """Creations and deletions take their time on the hand-turned clock.

    ``refuse``: asked for every launch; an error is raised and nothing is made. ``faults``: name to
    the fault with which its creation ends. ``lose_answers``: calls of these operations are run, and
    their answers lost. ``before_call``: told the operation and the name; may raise.
    ``stale_seconds``: how old is what ``list()`` shows; no other call is ever behind.
    """

    clock: FakeClock
    create_seconds: float = 30.0
    delete_seconds: float = 20.0
    refuse: Callable[[LaunchRequest], CloudError | None] = lambda _: None
    faults: dict[str, Fault] = field(default_factory=dict)
    lose_answers: set[str] = field(default_factory=set)
    before_call: Callable[[str, str], None] = lambda _operation, _name: None
    list_failure: CloudError | None = None
    stale_seconds: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    created: int = 0
    peak: int = 0
    _instances: dict[str, Instance] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)
    _past: list[tuple[float, str, Instance | None]] = field(default_factory=list)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """What there is, without a call."""
        self._settle()
        return tuple(self._instances.values())

    @property
    def live(self) -> int:
        return len([i for i in self.instances if i.is_ours])

    async def launch(self, request: LaunchRequest) -> None:
        self._called("put", request.name)
        present = self._instances.get(request.name)
        if present is not None:
            self._judge(present, request)
            return
        if error := self.refuse(request):
            raise error
        self.created += 1
        self._keep(
            Instance(
                name=request.name,
                state=InstanceState.CREATING,
                raw_state="Creating",
                instance_type=request.instance_type,
                is_ours=True,
                claim_uid=request.claim_uid,
                launched_at=request.launched_at,
                labels=dict(request.labels),
            )
        )
        self._due[request.name] = self.clock.monotonic() + self.create_seconds
        self.peak = max(self.peak, self.live)
        self._answer("put")

    async def terminate(self, name: str) -> Word:
        self._called("delete", name)
        present = self._instances.get(name)
        if present is not None and present.state is not InstanceState.DELETING:
            self._move(name, InstanceState.DELETING, "Deleting")
            self._due[name] = self.clock.monotonic() + self.delete_seconds
        self._answer("delete")
        return Word.ABSENT if present is None else Word.GOING

    async def abort(self, name: str) -> None:
        self._called("abort", name)
        present = self._instances.get(name)
        if present is not None and present.state in (InstanceState.CREATING, InstanceState.BUSY):
            self._move(name, InstanceState.FAILED, "Canceled")
            self._due.pop(name, None)
        self._answer("abort")

    async def get(self, name: str) -> Instance | None:
        self._called("get", name)
        return self._instances.get(name)

    async def list(self) -> tuple[Instance, ...]:
        self._called("list", "")
        if self.list_failure is not None:
            raise self.list_failure
        if not self.stale_seconds:
            return tuple(self._instances.values())
        moment = self.clock.monotonic() - self.stale_seconds
        shown = {name: instance for at, name, instance in self._past if at <= moment}
        return tuple(instance for instance in shown.values() if instance is not None)

    async def cluster(self) -> ClusterInfo:
        self._called("cluster", "")
        return ClusterInfo("nowhere", "nodes", is_settled=True, state="Succeeded")

    async def close(self) -> None:
        self._instances.clear()

    def add_foreign(self, name: str) -> None:
        """A pool that somebody else made."""
        self._keep(Instance(name, InstanceState.READY, "Succeeded", "Other", False))

    def add_leftover(
        self, name: str, claim_uid: str, *, state: InstanceState = InstanceState.READY
    ) -> None:
        """A pool of ours that nobody here has launched."""
        self._keep(
            Instance(name, state, "Succeeded", "Standard_NC6s_v3", True, claim_uid=claim_uid)
        )

    def _called(self, operation: str, name: str) -> None:
        self.before_call(operation, name)
        self.calls[operation] += 1
        self._settle()

    def _answer(self, operation: str) -> None:
        if operation in self.lose_answers:
            self.lose_answers.discard(operation)
            raise refusal("CloudUnavailable", waits=(5.0, 10.0))

    def _judge(self, present: Instance, request: LaunchRequest) -> None:
        if not present.is_ours:
            raise refusal("NameTaken", waits=(60.0,))
        gone_soon = present.state is InstanceState.DELETING
        if gone_soon or present.claim_uid not in (None, request.claim_uid):
            raise refusal("OperationInProgress", waits=(30.0,))

    def _settle(self) -> None:
        for due, name in sorted((due, name) for name, due in self._due.items()):
            if due > self.clock.monotonic():
                continue
            del self._due[name]
            if self._instances[name].state is InstanceState.DELETING:
                del self._instances[name]
                self._past.append((due, name, None))
            elif fault := self.faults.pop(name, None):
                self._move(name, InstanceState.FAILED, "Failed", fault, at=due)
            else:
                self._move(name, InstanceState.READY, "Succeeded", at=due)

    def _move(
        self,
        name: str,
        state: InstanceState,
        raw_state: str,
        fault: Fault | None = None,
        at: float | None = None,
    ) -> None:
        present = self._instances[name]
        self._keep(replace(present, state=state, raw_state=raw_state, fault=fault), at=at)

    def _keep(self, instance: Instance, at: float | None = None) -> None:
        self._instances[instance.name] = instance
        when = self.clock.monotonic() if at is None else at
        self._past.append((when, instance.name, instance))
