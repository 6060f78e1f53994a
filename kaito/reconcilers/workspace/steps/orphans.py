"""Claims whose Workspace is no longer there: a create that was under way when it went."""

from __future__ import annotations

from kaito.reconcilers.actions import Delete
from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.naming import owns
from kaito.reconcilers.workspace.state import Orphaned


def orphans(found: Orphaned) -> Step:
    """Delete the claims that the Workspace of that name, as read live, does not own."""
    return Step(
        done=True,
        actions=tuple(
            Delete(claim.ref)
            for claim in found.claims
            if not claim.metadata.is_deleting
            and (found.live_uid is None or not owns(found.live_uid, found.count, claim.metadata))
        ),
    )
