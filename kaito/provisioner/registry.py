"""Backend name to factory. Imports a cloud's room only when it is asked for: SDKs are heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from kaito.clock import Clock
from kaito.errors import InvalidSettings
from kaito.provisioner.interface import NodeBackend

if TYPE_CHECKING:
    from kaito.provisioner.backends.agentpool.auth import ArmTarget


def create(name: str, *, clock: Clock, arm: ArmTarget | None = None) -> NodeBackend:
    """The backend of that name. Opens no connection.

    ``arm``: the AKS cluster, needed by ``agentpool`` only.

    Raises:
        InvalidSettings: there is no such backend, or it lacks its settings.
    """
    try:
        factory = _BACKENDS[name]
    except KeyError:
        known = ", ".join(sorted(_BACKENDS))
        raise InvalidSettings(f"--provisioner: {name!r} is not one of {known}") from None
    return factory(clock, arm)


def _agentpool(clock: Clock, arm: ArmTarget | None) -> NodeBackend:
    from kaito.provisioner.backends.agentpool.backend import AgentPoolBackend
    from kaito.provisioner.backends.agentpool.client import ArmClient

    if arm is None:
        raise InvalidSettings("--provisioner agentpool needs the settings of an AKS cluster")
    return AgentPoolBackend(ArmClient(arm, clock=clock))


def _byo(clock: Clock, arm: ArmTarget | None) -> NodeBackend:  # noqa: ARG001 - a factory's shape
    from kaito.provisioner.backends.byo import ByoBackend

    return ByoBackend()


_BACKENDS: Final[Mapping[str, Callable[[Clock, ArmTarget | None], NodeBackend]]] = {
    "agentpool": _agentpool,
    "byo": _byo,
}
