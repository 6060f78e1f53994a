"""Claims whose Workspace is no longer there: a create that was under way when it went."""

from __future__ import annotations

from kaito import constants
from kaito.reconcilers.actions import Delete
from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.state import Orphaned


def orphans(found: Orphaned) -> Step:
    """Delete the claims that the Workspace of that name, as read live, does not own.

    A claim without the uid label is the original's: it belongs to whoever has the name now.
    """
    return Step(
        done=True,
        actions=tuple(
            Delete(claim.ref)
            for claim in found.claims
            if not claim.metadata.is_deleting
            and claim.metadata.labels.get(constants.LABEL_WORKSPACE_UID, found.live_uid)
            not in _living(found)
        ),
    )


def _living(found: Orphaned) -> tuple[str, ...]:
    return (found.live_uid,) if found.live_uid is not None else ()
