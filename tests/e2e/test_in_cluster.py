"""The operator as deploy/ runs it: two processes, two accounts, the rights of deploy/rbac."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.driver import Sandbox, workspace

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-in-cluster")]

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMESPACE = "kaito-system"


def test_each_side_walks_its_half_of_the_road_with_its_own_rights(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """P8.6, and design §6: cloud credentials stay with the node side."""
    sandbox.kubectl("apply", "-k", str(DEPLOY))
    (workspace_side, machine_side) = (
        sandbox.pod_environment(f"kaito-{side}", NAMESPACE, tmp_path / side)
        for side in ("workspace", "machine")
    )
    for name in [n for n in workspace_side if n.startswith(("AZURE_", "ARM_"))]:
        del workspace_side[name]
    with (
        sandbox.operator("--controllers=workspace", env=workspace_side),
        sandbox.operator("--controllers=machine", env=machine_side),
    ):
        sandbox.kubectl("apply", "-f", "-", stdin=workspace("in-cluster"))
        sandbox.kubectl(
            "wait", "--for=condition=WorkspaceReady", "workspace/in-cluster", "--timeout=90s"
        )
        leases = [
            lease["metadata"]["name"] for lease in sandbox.get("lease", "-n", NAMESPACE)["items"]
        ]
        assert sorted(leases) == ["kaito-machine", "kaito-workspace"]
        sandbox.kubectl("delete", "workspace", "in-cluster", "--timeout=90s")
        sandbox.settled_without_vms()
    said = (sandbox.directory / "operator.log").read_text()
    assert "Forbidden" not in said, said
