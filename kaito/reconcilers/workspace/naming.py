"""Names of owned objects, references to them, and the labels that tie them to a Workspace. Pure."""

from __future__ import annotations

import hashlib
from typing import Final

from kaito import constants
from kaito.api.meta import ObjectMeta, ObjectRef
from kaito.api.workspace import MAX_NODES, LabelSelector, Workspace

HASH_DIGITS: Final = 9


def claim_name(workspace_uid: str, slot: int) -> str:
    """A claim's name that is a legal AKS agent-pool name too: 11 of [a-z0-9].

    One name per slot, for ever: however stale the asker's cache is, the API server admits one claim
    and ARM one pool. A failed claim is replaced under the same name once it is gone.
    """
    return f"ws{digest(f'{workspace_uid}/{slot}')[:HASH_DIGITS]}"


def owns(workspace_uid: str, count: int, claim: ObjectMeta) -> bool:
    """Is this claim that Workspace's? By its uid label, or by a name that only its slots have.

    A claim without the label is the original's: it belongs to whoever has the name now. The name
    holds against a slip of the hand on the label, which would else end a node that is paid for.
    """
    if claim.labels.get(constants.LABEL_WORKSPACE_UID, workspace_uid) == workspace_uid:
        return True
    slots = range(min(count, MAX_NODES))
    return any(claim.name == claim_name(workspace_uid, slot) for slot in slots)


def digest(text: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def workspace_ref(meta: ObjectMeta) -> ObjectRef:
    """The reference to a Workspace."""
    return ObjectRef(
        constants.WORKSPACE_API_VERSION, "Workspace", meta.namespace, meta.name, meta.uid
    )


def node_ref(meta: ObjectMeta) -> ObjectRef:
    """The reference to a Node."""
    return ObjectRef("v1", "Node", "", meta.name, meta.uid)


def workspace_key(meta: ObjectMeta) -> str:
    """``namespace/name`` of the Workspace that a claim's or Node's labels name; empty without."""
    namespace = meta.labels.get(constants.LABEL_WORKSPACE_NAMESPACE, "")
    name = meta.labels.get(constants.LABEL_WORKSPACE, "")
    return f"{namespace}/{name}" if namespace and name else ""


def node_labels(workspace: Workspace) -> dict[str, str]:
    """Labels the user's selector asks of a node, without those that are ours to set (rule G7).

    ``In`` with one value is the same as a matchLabel; validation refuses other expressions.
    """
    selector = workspace.resource.label_selector if workspace.resource else LabelSelector()
    wanted = selector.labels()
    return {
        key: wanted[key]
        for key in sorted(wanted)
        if not key.startswith(constants.RESERVED_LABEL_PREFIXES)
    }
