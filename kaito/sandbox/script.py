"""What the simulated cloud and its nodes are told to do: ``PUT /sandbox/script`` (design.md §9).

Comes in: JSON. Goes out: frozen structs, or ``ScriptError`` naming the field. ``ScriptBook`` holds
the script in force and counts, per rule, the calls it has seen. Not here: carrying anything out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec

from kaito.sandbox.vm_sizes import vm_size

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
ObjectName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Operation = Literal["put", "get", "list", "delete", "abort"]
NodeTrouble = Literal["Never", "NeverReady", "NoGPU", "SpotEvicted"]


class ScriptError(Exception):
    """The script is not one. The message names the field."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parts: a key that is not known is an error, never ignored."""


class Latency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds per phase. ``create`` and ``join`` count from the accepted PUT, ``ready`` from join.

    ``call``: every ARM call, before it has an effect. ``pod``: from binding (the node agent's).
    """

    call: Seconds = 0.0
    create: Seconds = 4.0
    join: Seconds = 3.0
    ready: Seconds = 2.0
    delete: Seconds = 2.0
    pod: Seconds = 1.0


class Rule(_Section, frozen=True):
    """A fault for matching calls number ``after`` + 1 to ``after`` + ``times`` (None: for ever).

    ``apply``: the cloud does the work and the answer is this fault all the same. ``hang``: seconds
    to wait first, true for as long as the client likes. ``drop``: the connection is cut. Without a
    ``status`` and with ``hang`` or ``apply`` the connection is cut too. An error without ``code``
    has one by its status, from 500 up it has none and ``message`` is the raw body; so it is below
    400, which makes a success with broken JSON.
    """

    operation: Operation
    pool: str = "*"
    after: Count = 0
    times: Count | None = None
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    code: str | None = None
    message: str | None = None
    retry_after: Seconds | None = None
    hang: bool | Seconds | None = None
    drop: bool = False
    apply: bool = False


class PoolFate(_Section, frozen=True):
    """What becomes of a pool whose PUT is accepted while this is in force: no Node ever joins."""

    state: Literal["Stuck", "Failed"]
    pool: str = "*"
    code: str = "AllocationFailed"
    message: str = "Allocation failed. There is no capacity for the requested VM size here."


class PodFate(_Section, frozen=True):
    """What becomes of pods with such an image, the first ``times`` of them (the node agent's)."""

    state: Literal["Pending", "ErrImagePull", "CrashLoopBackOff", "OOMKilled", "Failed", "Unready"]
    image: str = "*"
    times: Count | None = None


class NodeFate(_Section, frozen=True):
    """What becomes of the Nodes of such pools from now on; ``index``: instance number of the VM."""

    pool: str = "*"
    state: NodeTrouble | None = None
    index: Count = 0


class SpareNode(_Section, frozen=True):
    """A Node of no pool, there from now on and gone when the script has it no more."""

    name: ObjectName
    vm_size: str
    labels: dict[str, str] = {}


class ClusterState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The managed cluster's own state; all but Running and settled closes the gate (P5.14)."""

    power_state: Literal["Running", "Stopped"] = "Running"
    provisioning_state: str = "Succeeded"


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be told. ``Script()`` is a cloud that works.

    ``quota``: vCPUs by VM family as P7.9 spells it, ``cores`` for the region, ``lowPriorityCores``
    for spot. ``page_size`` 0: one page. ``stale_list``: how old, in seconds, what LIST shows is.
    """

    latency: Latency = Latency()
    quota: dict[str, Count] = {}
    rules: tuple[Rule, ...] = ()
    pools: tuple[PoolFate, ...] = ()
    pods: tuple[PodFate, ...] = ()
    nodes: tuple[NodeFate, ...] = ()
    spare: tuple[SpareNode, ...] = ()
    page_size: Count = 0
    stale_list: Seconds = 0.0
    pool_limit: Count = 100
    delete_absent: Literal[404, 204] = 404
    cluster: ClusterState = ClusterState()

    def pool_fate(self, pool: str) -> PoolFate | None:
        """The first entry of ``pools`` that matches."""
        return next((f for f in self.pools if fnmatchcase(pool, f.pool)), None)

    def node_trouble(self, pool: str) -> NodeTrouble | None:
        """The first state that ``nodes`` has for Nodes of this pool."""
        matching = (f.state for f in self.nodes if fnmatchcase(pool, f.pool))
        return next((state for state in matching if state is not None), None)

    def first_index(self, pool: str) -> int:
        """Instance number that the first VM of a pool made now gets."""
        return next((f.index for f in self.nodes if fnmatchcase(pool, f.pool) and f.index), 0)

    def as_json(self) -> dict[str, Any]:
        """The form that ``parse_script`` takes."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def parse_script(source: bytes | str | Mapping[str, Any]) -> Script:
    """Read a script strictly.

    Raises:
        ScriptError: no JSON, an unknown key, a wrong type or a value out of range.
    """
    try:
        if isinstance(source, Mapping):
            script = msgspec.convert(source, Script)
        else:
            script = msgspec.json.decode(source, type=Script)
    except msgspec.MsgspecError as err:
        raise ScriptError(f"script refused: {err}") from err
    for number, spare in enumerate(script.spare):
        if vm_size(spare.vm_size) is None:
            where = f"`$.spare[{number}].vm_size`"
            raise ScriptError(f"script refused: no such VM size {spare.vm_size!r} - at {where}")
    return script


class ScriptBook:
    """The script in force. Replacing it starts every rule's count anew."""

    def __init__(self) -> None:
        self.script = Script()
        self._seen: list[int] = []
        self._listeners: list[Callable[[], None]] = []

    def replace(self, script: Script) -> None:
        """Put another script in force and tell the listeners."""
        self.script = script
        self._seen = [0] * len(script.rules)
        for listener in self._listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call back after every replacement."""
        self._listeners.append(listener)

    def fault(self, operation: str, pool: str) -> Rule | None:
        """Count one call; the first rule that is due for it."""
        due: Rule | None = None
        for number, rule in enumerate(self.script.rules):
            if rule.operation != operation or not fnmatchcase(pool, rule.pool):
                continue
            self._seen[number] += 1
            past = self._seen[number] - rule.after
            if due is None and past > 0 and (rule.times is None or past <= rule.times):
                due = rule
        return due
