"""Who owns an object, and whether it already is what we want. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from kaito import constants
from kaito.api.meta import ObjectMeta
from kaito.catalog.quantities import parse_quantity

_QUANTITIES: Final = frozenset({"limits", "requests", "capacity", "hard", "overhead", "sizeLimit"})
"""Fields of Kubernetes' types below which every leaf is a quantity."""


def owner_reference(api_version: str, kind: str, owner: ObjectMeta) -> dict[str, Any]:
    """The controlling reference to ``owner``: the garbage collector deletes what carries it."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
    }


def belongs_to(obj: ObjectMeta, owner_uid: str) -> bool:
    """Is ``owner_uid`` the object's controlling owner, or the Workspace its label names?

    Claims are cluster-scoped and can have no owner reference to a Workspace: a label stands for it.
    """
    return owner_uid in (obj.controller_uid(), obj.labels.get(constants.LABEL_WORKSPACE_UID))


def with_hash(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the annotation by which a later pass sees it was applied (facts A7)."""
    digest = hashlib.sha256(orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), constants.ANNOTATION_MANIFEST_HASH: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def contains(live: object, desired: object, *, quantities: bool = False) -> bool:
    """Does the live value hold every leaf that we set? Fields of others and defaults may differ.

    Lists count as one value: same length, and element by element. What the server writes in another
    way is the same (facts A20): it leaves out null, false, zero, "" and [], and below
    ``_QUANTITIES`` ``0.5`` is ``500m``. Elsewhere it keeps text as it is: ``1.0`` is not ``1``. An
    empty map is not left out: ``emptyDir: {}`` says which kind of volume it is.
    """
    if live is None and not isinstance(desired, Mapping):
        return not desired
    match desired:
        case Mapping():
            return isinstance(live, Mapping) and all(
                contains(live.get(key), value, quantities=quantities or key in _QUANTITIES)
                for key, value in desired.items()
            )
        case list() | tuple():
            return (
                isinstance(live, list | tuple)
                and len(live) == len(desired)
                and all(contains(*pair) for pair in zip(live, desired, strict=True))
            )
        case _:
            return live == desired or (quantities and _is_same_quantity(live, desired))


def _is_same_quantity(live: object, desired: object) -> bool:
    try:
        return parse_quantity(str(live)) == parse_quantity(str(desired))
    except ValueError:
        return False
