"""Who holds which node slot, and when an empty one may be asked for again. Pure.

Slots are filled, not counted: with slot 0 gone and slot 1 alive, it is slot 0 that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kaito import constants
from kaito.api.views import Node, gpu_allocatable, is_ready
from kaito.api.workspace import MAX_NODES, NodeSlot
from kaito.clock import parse_rfc3339, rfc3339
from kaito.reconcilers.workspace.causes import cause, claim_status
from kaito.reconcilers.workspace.naming import claim_name, digest
from kaito.reconcilers.workspace.sizing import needs_gpu
from kaito.reconcilers.workspace.state import OwnClaim, State

ASK_WAITS_SECONDS: Final = (10.0, 60.0, 300.0, 900.0, 3600.0)
ASK_JITTER: Final = 0.2
WELL_SECONDS: Final = 600.0
LOST_ASK_SECONDS: Final = 5.0
"""A claim made this much after its slot's recorded ask was asked for by a pass that crashed."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One place for a node: its holder, and what the status remembers of it."""

    index: int
    name: str
    claim: OwnClaim | None
    node: Node | None
    record: NodeSlot
    wants_gpu: bool

    @property
    def is_kept(self) -> bool:
        """A claim holds it, and is to stay."""
        return self.claim is not None and not self.claim.metadata.is_deleting

    @property
    def is_ready(self) -> bool:
        """The Node reports Ready, has the GPUs where the size has them, and is to stay."""
        return (
            self.is_kept
            and self.node is not None
            and not self.node.metadata.is_deleting
            and is_ready(self.node)
            and not self.lacks_gpu
        )

    @property
    def lacks_gpu(self) -> bool:
        """The Node is Ready and the device plugin has not (or no longer) offered its GPUs.

        A Node that is not Ready has no GPUs either, but that is not its trouble.
        """
        return (
            self.node is not None
            and self.wants_gpu
            and is_ready(self.node)
            and gpu_allocatable(self.node) == 0
        )


def fill(state: State) -> tuple[tuple[Slot, ...], tuple[OwnClaim, ...]]:
    """Slots 0..count-1 with their holders, and the claims that are left over (rule G1).

    Never more than MAX_NODES, whatever the Workspace says: a name costs a hash.
    A claim named for a slot holds it. Others, which the original left, hold the slot that the
    status has for them, else the lowest free one. A claim that is being deleted holds on.
    """
    count = min(state.resource.count, MAX_NODES)
    records = {r.slot: r for r in state.workspace.status.nodes}
    names = {claim_name(state.uid, i): i for i in range(count)}
    holders: dict[int, OwnClaim] = {}
    others: list[OwnClaim] = []
    for claim in sorted(state.claims, key=_age):
        index = names.get(claim.metadata.name)
        if index is not None and index not in holders:
            holders[index] = claim
        else:
            others.append(claim)
    recorded = {r.claim: i for i, r in records.items() if i < count and i not in holders}
    for claim in list(others):
        index = recorded.get(claim.metadata.name)
        if index is not None and index not in holders:
            holders[index] = claim
            others.remove(claim)
    for index in (i for i in range(count) if i not in holders):
        if others:
            holders[index] = others.pop(0)
    gpu = needs_gpu(state.resource.instance_type, state.options.provider)
    slots = tuple(
        Slot(i, name, claim, _node_of(claim, state), records.get(i, NodeSlot(slot=i)), gpu)
        for name, i in names.items()
        for claim in (holders.get(i),)
    )
    return slots, tuple(others)


def ask_wait(slot: Slot, state: State) -> float | None:
    """Seconds until this slot may be asked for; 0 is now; None while a claim holds it (rule G3)."""
    if slot.claim is not None:
        return None
    at = next_ask(slot, state)
    return 0.0 if at is None else max(0.0, at - state.now)


def next_ask(slot: Slot, state: State) -> float | None:
    """When an empty slot that was asked for may be again; None when it need not wait.

    The jitter follows from uid, slot and count of asks: the same on every pass and every replica.
    """
    asks, last = slot.record.asks, seconds_of(slot.record.last_asked)
    if asks == 0 or last is None:
        return None
    wait = ASK_WAITS_SECONDS[min(asks, len(ASK_WAITS_SECONDS)) - 1]
    share = int(digest(f"{state.uid}/{slot.index}/{asks}")[:8], 16) / 0xFFFF_FFFF
    return min(last, state.now) + wait * (1 - ASK_JITTER + 2 * ASK_JITTER * share)


def well_wait(slot: Slot, state: State) -> float | None:
    """Seconds until this slot has been Ready long enough to forget its asks; None if not due."""
    if not slot.is_ready or current_asks(slot)[0] == 0:
        return None
    return max(0.0, _ready_since(slot, state.now) + WELL_SECONDS - state.now)


def current_asks(slot: Slot) -> tuple[int, str]:
    """Count and time of the asks, with one added that was made and not written down.

    A pass that dies between the POST and its status patch leaves a claim younger than the record.
    """
    asks, last = slot.record.asks, slot.record.last_asked
    if slot.claim is None or slot.claim.metadata.name != slot.name:
        return asks, last
    made = slot.claim.metadata.creation_timestamp
    made_at, last_at = seconds_of(made), seconds_of(last)
    if made_at is not None and (last_at is None or made_at > last_at + LOST_ASK_SECONDS):
        return asks + 1, made
    return asks, last


def record(slot: Slot, state: State, *, was_asked: bool) -> NodeSlot:
    """What the status says of this slot after a pass that asked for it, or did not."""
    if was_asked:
        asks, last = slot.record.asks + 1, rfc3339(state.now)
    else:
        asks, last = current_asks(slot)
        if well_wait(slot, state) == 0.0:
            asks = 0
    phase, reason = progress(slot, was_asked=was_asked)
    labels = slot.node.metadata.labels if slot.node else {}
    return NodeSlot(
        slot=slot.index,
        name=slot.node.metadata.name if slot.node else "",
        claim=slot.claim.metadata.name if slot.claim else slot.name,
        instance_type=state.resource.instance_type,
        zone=labels.get(constants.LABEL_ZONE, ""),
        phase=phase,
        reason=reason,
        asks=asks,
        last_asked=last,
    )


def progress(slot: Slot, *, was_asked: bool = False) -> tuple[str, str]:
    """How far a slot is, and why it is no further."""
    claim, node = slot.claim, slot.node
    if claim is None:
        if was_asked:
            return "Requested", ""
        return "Waiting" if slot.record.asks else "Pending", ""
    if claim.metadata.is_deleting:
        return "Deleting", ""
    if slot.is_ready:
        return "Ready", ""
    was_well = claim_status(claim, "Initialized") == "True"
    if node is None:
        if was_well:
            return "NotReady", "NodeLost"
        found = cause(claim)
        launched = claim_status(claim, "Launched")
        return ("Joining" if launched == "True" else "Creating"), found.reason if found else ""
    if not is_ready(node):
        return ("NotReady" if was_well else "Starting"), "NodeNotReady"
    return "Starting", "ResourceNotRegistered" if slot.lacks_gpu else ""


def worker_nodes(slots: tuple[Slot, ...]) -> tuple[str, ...]:
    """Names of the Nodes in use, sorted."""
    return tuple(sorted(s.node.metadata.name for s in slots if s.node is not None))


def seconds_of(text: str) -> float | None:
    """A timestamp of an object in seconds since the epoch; None when absent or unreadable."""
    try:
        return parse_rfc3339(text)
    except ValueError:
        return None


def _age(claim: OwnClaim) -> tuple[str, str]:
    return claim.metadata.creation_timestamp, claim.metadata.name


def _node_of(claim: OwnClaim | None, state: State) -> Node | None:
    return state.nodes.get(claim.node_name) if claim is not None else None


def _ready_since(slot: Slot, now: float) -> float:
    """The later of the Node's and the claim's turn to Ready; now when neither is dated."""
    node = slot.node.status.conditions if slot.node else ()
    claim = slot.claim.conditions if slot.claim else ()
    times = [
        at
        for c in (*node, *claim)
        if c.type == "Ready" and c.status == "True"
        for at in (seconds_of(c.last_transition_time),)
        if at is not None
    ]
    return max(times, default=now)
