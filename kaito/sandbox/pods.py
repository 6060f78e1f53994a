"""What becomes of a pod on a node of the sandbox: ``PodRunner``, and the one that pretends.

A runner tells what the containers do; ``wire_status`` turns that into the ``status`` that a kubelet
would write. Not here: watching pods and writing their status, which is ``nodes.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

import msgspec

from kaito.api.meta import ObjectMeta, Owned, View
from kaito.clock import Clock, rfc3339
from kaito.sandbox.script import PodFate, Script

_LOOK_SECONDS = 1.0
_BACKOFF_SECONDS, _BACKOFF_CAP_SECONDS = 10.0, 300.0  # as a kubelet restarts containers
_EXIT_FAILED, _EXIT_KILLED, _EXIT_TERMINATED = 1, 137, 143


class Container(View, frozen=True):
    """A container as it was asked for; ``restart_policy`` Always on an init one: a sidecar."""

    name: str = ""
    image: str = ""
    restart_policy: str = ""


class PodSpec(View, frozen=True):
    """The part of ``spec`` that decides what a pretended pod does."""

    node_name: str = ""
    restart_policy: str = "Always"
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()


class PodStatus(View, frozen=True):
    """The part of ``status`` that tells how far it was when first seen."""

    phase: str = ""
    conditions: tuple[dict[str, Any], ...] = ()


class Pod(View, frozen=True):
    """A pod, to be read by this room."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_of_job(self) -> bool:
        """It is to end by itself."""
        return self.spec.restart_policy != "Always" and any(
            owner.kind == "Job" for owner in self.metadata.owner_references
        )

    @property
    def is_over(self) -> bool:
        """Its containers have ended for good."""
        return self.status.phase in ("Succeeded", "Failed")


def read_pod(pod: Owned) -> Pod:
    """The pod as this room reads it."""
    return msgspec.convert(pod.body, Pod)


@dataclass(frozen=True, slots=True)
class ContainerReport:
    """What one container does. ``state``, ``last_state``: as on the wire (``{"running": {…}}``)."""

    container: Container
    state: Mapping[str, Any]
    last_state: Mapping[str, Any] | None = None
    is_ready: bool = False
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class PodReport:
    """What a pod does now."""

    phase: str
    containers: tuple[ContainerReport, ...]
    init_containers: tuple[ContainerReport, ...] = ()
    message: str = ""


Report = Callable[[PodReport], Awaitable[None]]


class PodRunner(Protocol):
    """Runs pods of one kind. The seam for running containers as real processes."""

    async def run(self, pod: Owned, report: Report) -> None:
        """Run it from its binding on; return when nothing more will happen.

        Cancelled when the pod is deleted or its node is gone: then everything it started ends.
        A pod whose ``status`` says Running was started before this process was.
        """
        ...


class PretendedPods:
    """Runs nothing: pods become Running and Ready, those of Jobs Succeeded, or what is scripted."""

    def __init__(self, *, clock: Clock, script: Callable[[], Script]) -> None:
        self._clock = clock
        self._script = script
        self._counted: Script | None = None
        self._counts: list[int] = []

    async def run(self, pod: Owned, report: Report) -> None:
        """See ``PodRunner``."""
        shape = read_pod(pod)
        if shape.status.phase != "Running":
            await report(waiting(shape, "ContainerCreating"))
            await self._clock.sleep(self._script().latency.pod)
            restarts = 0
            while (fate := self._take_fate(shape)) is not None:
                is_over, restarts = await self._suffer(fate, shape, report, restarts)
                if is_over:
                    return
            await report(running(shape, self._now(), restarts=restarts))
        if shape.is_of_job:
            await self._clock.sleep(self._script().latency.pod)
            await report(ended(shape, self._now(), exit_code=0))

    def _take_fate(self, pod: Pod) -> PodFate | None:
        """The fate of a pod that starts now; counts it."""
        script = self._script()
        if script is not self._counted:
            self._counted, self._counts = script, [0] * len(script.pods)
        images = [c.image for c in (*pod.spec.init_containers, *pod.spec.containers)]
        for number, fate in enumerate(script.pods):
            if any(fnmatchcase(image, fate.image) for image in images) and (
                fate.times is None or self._counts[number] < fate.times
            ):
                self._counts[number] += 1
                return fate
        return None

    async def _suffer(
        self, fate: PodFate, pod: Pod, report: Report, restarts: int
    ) -> tuple[bool, int]:
        """Let it happen until the script is another. (it has ended, restarts so far)."""
        match fate.state:
            case "Pending":
                pass
            case "Unready":
                await report(running(pod, self._now(), restarts=restarts, is_ready=False))
            case "ErrImagePull":
                await report(waiting(pod, "ErrImagePull", f"no such image: {_images(pod)}"))
                if not await self._script_changed(_BACKOFF_SECONDS):
                    message = f"Back-off pulling image {_images(pod)}"
                    await report(waiting(pod, "ImagePullBackOff", message))
            case "Failed":
                await report(ended(pod, self._now(), exit_code=_EXIT_FAILED))
                return True, restarts
            case "CrashLoopBackOff" | "OOMKilled":
                return await self._crash(fate, pod, report, restarts)
        await self._script_changed(None)
        return False, restarts

    async def _crash(
        self, fate: PodFate, pod: Pod, report: Report, restarts: int
    ) -> tuple[bool, int]:
        exit_code = _EXIT_KILLED if fate.state == "OOMKilled" else _EXIT_FAILED
        reason = "OOMKilled" if fate.state == "OOMKilled" else "Error"
        while True:
            over = ended(pod, self._now(), exit_code=exit_code, reason=reason)
            if pod.spec.restart_policy == "Never":
                await report(over)
                return True, restarts
            await report(backing_off(over, restarts))
            pause = min(_BACKOFF_SECONDS * 2**restarts, _BACKOFF_CAP_SECONDS)
            restarts += 1
            if await self._script_changed(pause):
                return False, restarts

    async def _script_changed(self, seconds: float | None) -> bool:
        """Wait until the script is another, or for ``seconds``; says which.

        Looked up and not awaited: a handful of scripted pods, and only they, pay for it.
        """
        waited = 0.0
        while self._script() is self._counted:
            if seconds is not None and waited >= seconds:
                return False
            await self._clock.sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS
        return True

    def _now(self) -> str:
        return rfc3339(self._clock.now())


def _images(pod: Pod) -> str:
    return ", ".join(f'"{container.image}"' for container in pod.spec.containers)


def waiting(pod: Pod, reason: str, message: str = "") -> PodReport:
    """No container has started, and why."""
    state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
    first = {"waiting": {"reason": "PodInitializing"}} if pod.spec.init_containers else state
    return PodReport(
        "Pending",
        tuple(ContainerReport(c, first) for c in pod.spec.containers),
        tuple(ContainerReport(c, state) for c in pod.spec.init_containers),
    )


def running(pod: Pod, now: str, *, restarts: int = 0, is_ready: bool = True) -> PodReport:
    """Init containers are done (sidecars run on), the others run."""
    state = {"running": {"startedAt": now}}
    return PodReport(
        "Running",
        tuple(ContainerReport(c, state, None, is_ready, restarts) for c in pod.spec.containers),
        tuple(
            ContainerReport(c, state, None, True)
            if c.restart_policy == "Always"
            else ContainerReport(c, _terminated(now, 0, "Completed"), None, True)
            for c in pod.spec.init_containers
        ),
    )


def ended(pod: Pod, now: str, *, exit_code: int, reason: str = "") -> PodReport:
    """All containers ended with this code; init containers had done their work before."""
    word = reason or ("Completed" if exit_code == 0 else "Error")
    state = _terminated(now, exit_code, word)
    done = running(pod, now)
    return PodReport(
        "Succeeded" if exit_code == 0 else "Failed",
        tuple(ContainerReport(c, state) for c in pod.spec.containers),
        tuple(
            replace(r, state=_terminated(now, 0, "Completed"), is_ready=True)
            for r in done.init_containers
        ),
    )


def terminated_by_signal(pod: Pod, now: str) -> PodReport:
    """It was asked to stop and did, as a model server does on SIGTERM."""
    return ended(pod, now, exit_code=_EXIT_TERMINATED)


def backing_off(over: PodReport, restarts: int) -> PodReport:
    """Its containers ended as in ``over`` and wait for their next start."""
    return PodReport(
        "Running",
        tuple(
            ContainerReport(
                c.container,
                {
                    "waiting": {
                        "reason": "CrashLoopBackOff",
                        "message": f"back-off restarting failed container {c.container.name}",
                    }
                },
                last_state=c.state,
                restarts=restarts,
            )
            for c in over.containers
        ),
        over.init_containers,
    )


def _terminated(now: str, exit_code: int, reason: str) -> dict[str, Any]:
    return {
        "terminated": {"exitCode": exit_code, "reason": reason, "startedAt": now, "finishedAt": now}
    }


def wire_status(
    report: PodReport, pod: Pod, *, pod_ip: str, host_ip: str, now: str
) -> dict[str, Any]:
    """The ``status`` a kubelet would write for this report."""
    is_over = report.phase in ("Succeeded", "Failed")
    initialized = all(c.is_ready for c in report.init_containers)
    ready = not is_over and initialized and all(c.is_ready for c in report.containers)
    why = {True: "PodCompleted", False: "ContainersNotReady"}[report.phase == "Succeeded"]
    told = {
        "PodReadyToStartContainers": (not is_over and pod_ip != "", ""),
        "Initialized": (initialized, "" if initialized else "ContainersNotInitialized"),
        "Ready": (ready, "" if ready else why),
        "ContainersReady": (ready, "" if ready else why),
    }
    status: dict[str, Any] = {
        "phase": report.phase,
        "message": report.message or None,
        "hostIP": host_ip or None,
        "hostIPs": [{"ip": host_ip}] if host_ip else None,
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "startTime": _start_time(pod) or now,
        "conditions": _conditions(pod, told, now),
        "containerStatuses": [_container_status(c, pod) for c in report.containers],
        "initContainerStatuses": [_container_status(c, pod) for c in report.init_containers],
    }
    return status


def _start_time(pod: Pod) -> str | None:
    scheduled = (c for c in pod.status.conditions if c.get("type") == "PodScheduled")
    return next((c.get("lastTransitionTime") for c in scheduled), None)


def _conditions(pod: Pod, told: Mapping[str, tuple[bool, str]], now: str) -> list[dict[str, Any]]:
    """Ours, and those of others as they are; a time moves only with its status."""
    before = {c["type"]: c for c in pod.status.conditions}
    ours: list[dict[str, Any]] = []
    for kind, (holds, reason) in told.items():
        status = str(holds)
        old = before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == status else now
        condition = {"type": kind, "status": status, "lastTransitionTime": since}
        ours.append(condition | ({"reason": reason} if reason else {}))
    return ours + [c for kind, c in before.items() if kind not in told]


def _container_status(report: ContainerReport, pod: Pod) -> dict[str, Any]:
    container = report.container
    has_started = "waiting" not in report.state or report.last_state is not None
    status: dict[str, Any] = {
        "name": container.name,
        "image": container.image,
        "imageID": container.image if has_started else "",
        "ready": report.is_ready,
        "started": "running" in report.state,
        "restartCount": report.restarts,
        "state": report.state,
        "lastState": report.last_state or {},
    }
    if has_started:
        status["containerID"] = f"sandbox://{pod.metadata.uid}/{container.name}/{report.restarts}"
    return status
