"""The background process of ``kaito sandbox up``: starts everything, keeps it, stops it.

``lifecycle.py`` starts it as ``python -m kaito.sandbox.supervisor``. Its standard output is a pipe
to that starter: one ``Message`` a line as JSON, the last one ``ready`` or ``failed``; its standard
error is its log. It ends on SIGTERM, when a program of the control plane ends by itself, and with
the process it is bound to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from kaito import logs
from kaito.clock import SystemClock
from kaito.constants import LABEL_AGENTPOOL
from kaito.errors import KaitoError, NotFound
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import from_kubeconfig
from kaito.sandbox.aks import SimulatedAks
from kaito.sandbox.controlplane import ControlPlane
from kaito.sandbox.crds import crd_folder, install_crds
from kaito.sandbox.errors import SandboxError
from kaito.sandbox.nodes import NODES, NodeAgent
from kaito.sandbox.plan import DATA, OPERATOR_LOG, Message, Plan, read_plan
from kaito.sandbox.processes import Identity, Program, gone, identity
from kaito.sandbox.state import State, clear_state, write_state

_LABEL_CLUSTER = "kubernetes.azure.com/cluster"
_CLIENT_ID = "5a0d0000-0000-4000-8000-000000000003"
_OPERATOR_GRACE_SECONDS = 25.0  # over the grace that it gives itself
_LAUNCH_RETRY_MAX_SECONDS = 3  # hours are right for a real cloud's quota; here people look on

log = structlog.get_logger()


async def supervise(plan: Plan, tell: Callable[[Message], None]) -> None:
    """Run the sandbox until something ends it; then everything it started is stopped.

    Raises:
        ExceptionGroup: of what made it end, unless that was a signal or the starter's end.
    """
    me = identity(os.getpid())
    assert me is not None, "this process runs"
    loop = asyncio.get_running_loop()
    try:
        write_state(plan.folder, State(me))
        async with asyncio.TaskGroup() as group:

            def ready(exports: dict[str, str]) -> None:
                write_state(plan.folder, State(me, exports))
                if not plan.is_bound:
                    guard.cancel()
                tell(Message(ready=True))

            body = group.create_task(_run(plan, tell, ready))
            guard = group.create_task(_cancel_with(plan.starter, body))
            body.add_done_callback(lambda _: guard.cancel())
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.add_signal_handler(signum, body.cancel)
    finally:
        shutil.rmtree(plan.folder / DATA, ignore_errors=True)
        clear_state(plan.folder)


async def _cancel_with(starter: Identity, body: asyncio.Task[None]) -> None:
    await gone(starter)
    log.info("stopping: the starter has ended", pid=starter.pid)
    body.cancel()


async def _run(
    plan: Plan, tell: Callable[[Message], None], ready: Callable[[dict[str, str]], None]
) -> None:
    clock = SystemClock()
    # Leaving the stack stops in reverse: the cloud, our client, then the control plane.
    async with contextlib.AsyncExitStack() as stack:
        kubeconfig, plane = plan.kubeconfig, None
        if plan.programs is not None:
            tell(Message(progress="starting etcd and the Kubernetes control plane"))
            plane = ControlPlane(plan.folder / DATA, binaries=plan.programs, audit=plan.audit)
            stack.push_async_callback(plane.stop)
            await plane.start()
            kubeconfig = plane.kubeconfig
        config = await from_kubeconfig(kubeconfig)
        kube = await connect(config, clock=clock, component="kaito-sandbox")
        stack.push_async_callback(kube.close)

        aks = SimulatedAks(kube=kube, clock=clock)
        await _refuse_real_nodes(kube, aks.site.node_resource_group)
        tell(Message(progress="installing the CRDs"))
        versions = await install_crds(kube, clock=clock, folder=crd_folder())
        if plane is not None:
            await plane.wait_documented(versions)
        tell(Message(progress="starting the simulated AKS and the node agent"))
        stack.push_async_callback(aks.stop)
        await aks.start()
        agent = NodeAgent(kube=kube, clock=clock, script=lambda: aks.script)
        aks.on_node_power = agent.set_power
        if plane is None:
            stack.push_async_callback(_remove_nodes, kube, agent)
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            if plane is not None:
                group.create_task(plane.guard())
            exports = {"KUBECONFIG": str(kubeconfig), **aks.environment()}
            exports["AZURE_CLIENT_ID"] = _CLIENT_ID
            exports["KAITO_LAUNCH_RETRY_MAX"] = str(_LAUNCH_RETRY_MAX_SECONDS)
            if plan.operator is not None:
                operator = _operator(plan, exports)
                stack.push_async_callback(operator.stop, grace_seconds=_OPERATOR_GRACE_SECONDS)
                operator.start()
                group.create_task(_guard(operator))
            ready(exports)


def _operator(plan: Plan, exports: Mapping[str, str]) -> Program:
    command = (sys.executable, "-m", "kaito", "operator", *(plan.operator or ()))
    log_file = plan.folder / OPERATOR_LOG
    log_file.unlink(missing_ok=True)
    inherited = dict(os.environ)  # noqa: TID251 - handed on, not read
    return Program("operator", command, log=log_file, environ={**inherited, **exports})


async def _guard(operator: Program) -> None:
    await operator.wait()
    operator.require_running()


async def _refuse_real_nodes(kube: KubeClient, cluster: str) -> None:
    """A real AKS cluster's Nodes have the labels by which the agent knows its own: hands off."""
    for node in await kube.list(NODES, label_selector=LABEL_AGENTPOOL):
        if node.metadata.labels.get(_LABEL_CLUSTER) != cluster:
            raise SandboxError(
                f"Node {node.metadata.name} is a real AKS node: the sandbox would answer for it. "
                "Use a cluster of your own, as kind or minikube make it"
            )


async def _remove_nodes(kube: KubeClient, agent: NodeAgent) -> None:
    """From a cluster that stays: its Nodes would be NotReady for ever."""
    for name in agent.nodes:
        with contextlib.suppress(NotFound):
            await kube.delete(NODES, "", name)


def _write_line(message: Message) -> None:
    # A starter that has ended reads no more; that it has is the guard's business.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()
        if message.ready:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # or the starter would read for ever


def main(arguments: Sequence[str]) -> int:
    """Run one sandbox; the exit code."""
    logs.configure(level="info", form="json")
    failure: KaitoError | None = None
    try:
        asyncio.run(supervise(read_plan(arguments), _write_line))
    except* KaitoError as group:
        failure = _first(group)
    if failure is None:
        return 0
    log.error("sandbox failed", reason=failure.reason, error=str(failure))
    _write_line(Message(failed=str(failure)))
    return 1


def _first(group: BaseExceptionGroup[KaitoError]) -> KaitoError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, KaitoError)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
