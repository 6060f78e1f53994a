"""Pods that are pretended: what they report, when, and what a script makes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.sandbox.pods import PodReport, PretendedPods, read_pod, wire_status
from kaito.sandbox.script import Script, parse_script
from tests.fakes.clock import FakeClock

IMAGE = "mcr.microsoft.com/aks/kaito/kaito-phi-3:0.0.1"


def pod(
    *,
    restart_policy: str = "Always",
    owner: str = "ReplicaSet",
    phase: str = "Pending",
    init: tuple[dict[str, Any], ...] = (),
    conditions: tuple[dict[str, Any], ...] = (),
) -> Owned:
    return decode_owned(
        msgspec.json.encode(
            {
                "metadata": {
                    "name": "phi",
                    "namespace": "default",
                    "uid": "u1",
                    "ownerReferences": [{"kind": owner, "name": "o", "uid": "o1"}],
                },
                "spec": {
                    "nodeName": "n",
                    "restartPolicy": restart_policy,
                    "containers": [{"name": "main", "image": IMAGE}],
                    "initContainers": list(init),
                },
                "status": {"phase": phase, "conditions": list(conditions)},
            }
        )
    )


class Stage:
    """One pod that runs, and what it has reported."""

    def __init__(self, subject: Owned, script: dict[str, Any] | None = None) -> None:
        self.clock = FakeClock()
        self.script = parse_script({"latency": {"pod": 5}, **(script or {})})
        self.runner = PretendedPods(clock=self.clock, script=lambda: self.script)
        self.subject = subject
        self.reports: list[PodReport] = []

    async def report(self, told: PodReport) -> None:
        self.reports.append(told)

    async def for_seconds(self, *steps: float) -> list[PodReport]:
        """Start the pod, turn the clock, and end it when that has not."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.runner.run(self.subject, self.report))
            for seconds in steps:
                await self.clock.advance(seconds)
            self.has_returned = task.done()
            task.cancel()
        return self.reports

    @property
    def state(self) -> str:
        """The main container's state, as kubectl shows it."""
        report = self.reports[-1]
        (name, detail), *_ = report.containers[0].state.items()
        return detail.get("reason", name)


async def test_a_pod_is_created_then_runs_after_the_scripted_seconds() -> None:
    stage = Stage(pod())
    await stage.for_seconds(4.9)
    assert stage.state == "ContainerCreating"
    stage = Stage(pod())
    await stage.for_seconds(5)
    assert stage.state == "running"
    assert stage.reports[-1].containers[0].is_ready
    assert stage.has_returned


async def test_a_pod_of_a_job_succeeds_by_itself() -> None:
    stage = Stage(pod(restart_policy="Never", owner="Job"))
    reports = await stage.for_seconds(5, 5)
    assert [r.phase for r in reports] == ["Pending", "Running", "Succeeded"]
    assert stage.state == "Completed"


async def test_a_pod_found_running_is_not_started_again() -> None:
    """The agent was restarted; its pods were not."""
    assert await Stage(pod(phase="Running")).for_seconds(60) == []
    stage = Stage(pod(phase="Running", owner="Job", restart_policy="OnFailure"))
    assert [r.phase for r in await stage.for_seconds(5)] == ["Succeeded"]


async def test_init_containers_complete_and_sidecars_run_on() -> None:
    init = (
        {"name": "fetch", "image": "a"},
        {"name": "push", "image": "b", "restartPolicy": "Always"},
    )
    stage = Stage(pod(init=init))
    reports = await stage.for_seconds(5)
    assert [c.state["waiting"]["reason"] for c in reports[0].containers] == ["PodInitializing"]
    fetch, push = reports[-1].init_containers
    assert fetch.state["terminated"]["reason"] == "Completed"
    assert "running" in push.state


@pytest.mark.parametrize(
    ("state", "shown", "phase"),
    [
        ("Pending", "ContainerCreating", "Pending"),
        ("ErrImagePull", "ErrImagePull", "Pending"),
        ("CrashLoopBackOff", "CrashLoopBackOff", "Running"),
        ("OOMKilled", "CrashLoopBackOff", "Running"),
        ("Failed", "Error", "Failed"),
        ("Unready", "running", "Running"),
    ],
)
async def test_a_script_decides_what_becomes_of_a_pod(state: str, shown: str, phase: str) -> None:
    stage = Stage(pod(), {"pods": [{"image": "*phi-3*", "state": state}]})
    reports = await stage.for_seconds(5)
    assert (stage.state, reports[-1].phase) == (shown, phase)
    assert not reports[-1].containers[0].is_ready


async def test_pods_of_other_images_are_left_alone() -> None:
    stage = Stage(pod(), {"pods": [{"image": "*falcon*", "state": "Failed"}]})
    await stage.for_seconds(5)
    assert stage.state == "running"


async def test_a_pull_that_fails_backs_off() -> None:
    stage = Stage(pod(), {"pods": [{"state": "ErrImagePull"}]})
    await stage.for_seconds(5, 10)
    assert stage.state == "ImagePullBackOff"


async def test_a_crash_is_counted_and_its_cause_is_kept() -> None:
    stage = Stage(pod(), {"pods": [{"state": "OOMKilled"}]})
    reports = await stage.for_seconds(5, 10, 20)
    assert [r.containers[0].restarts for r in reports[1:]] == [0, 1, 2]
    last = reports[-1].containers[0].last_state
    assert last is not None
    assert last["terminated"]["reason"] == "OOMKilled"
    assert last["terminated"]["exitCode"] == 137


async def test_a_crash_without_restarts_ends_the_pod() -> None:
    script = {"pods": [{"state": "OOMKilled"}]}
    stage = Stage(pod(restart_policy="Never", owner="Job"), script)
    reports = await stage.for_seconds(5)
    assert (reports[-1].phase, stage.state) == ("Failed", "OOMKilled")
    assert stage.has_returned


@pytest.mark.parametrize("state", ["Pending", "ErrImagePull", "CrashLoopBackOff", "Unready"])
async def test_a_pod_in_trouble_runs_when_the_script_is_taken_back(state: str) -> None:
    stage = Stage(pod(), {"pods": [{"state": state}]})
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.runner.run(stage.subject, stage.report))
        await stage.clock.advance(7)
        stage.script = Script()
        await stage.clock.advance(1)
    assert stage.state == "running"
    assert stage.reports[-1].containers[0].is_ready


async def test_only_the_first_pods_of_a_rule_are_hit() -> None:
    stage = Stage(pod(), {"pods": [{"state": "Failed", "times": 2}]})
    phases = [(await stage.for_seconds(5))[-1].phase for _ in range(3)]
    assert phases == ["Failed", "Failed", "Running"]


async def report_after(subject: Owned, *steps: float) -> PodReport:
    return (await Stage(subject).for_seconds(*steps))[-1]


def status_of(report: PodReport, subject: Owned, now: str = "T1") -> dict[str, Any]:
    return wire_status(report, read_pod(subject), pod_ip="10.244.0.2", host_ip="10.1.1.1", now=now)


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(c for c in status["conditions"] if c["type"] == kind)


async def test_a_running_pod_has_the_status_that_a_kubelet_writes() -> None:
    status = status_of(await report_after(pod(), 5), pod())
    assert status["phase"] == "Running"
    assert (status["podIP"], status["hostIP"]) == ("10.244.0.2", "10.1.1.1")
    assert condition(status, "Ready")["status"] == "True"
    (main,) = status["containerStatuses"]
    assert main["ready"]
    assert main["started"]
    assert main["containerID"].startswith("sandbox://")


async def test_a_pod_that_is_created_is_not_ready_and_has_no_container() -> None:
    status = status_of(await report_after(pod(), 0), pod())
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert "containerID" not in status["containerStatuses"][0]


async def test_a_finished_pod_says_so_in_its_conditions() -> None:
    subject = pod(restart_policy="Never", owner="Job")
    status = status_of(await report_after(subject, 5, 5), subject)
    assert condition(status, "Ready")["reason"] == "PodCompleted"
    assert condition(status, "Initialized")["status"] == "True"


async def test_times_move_with_their_status_and_conditions_of_others_stay() -> None:
    subject = pod(
        conditions=(
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "T0"},
            {"type": "Initialized", "status": "True", "lastTransitionTime": "T0"},
            {"type": "Ready", "status": "False", "lastTransitionTime": "T0"},
        )
    )
    status = status_of(await report_after(subject, 5), subject, now="T9")
    assert condition(status, "PodScheduled")["lastTransitionTime"] == "T0"
    assert condition(status, "Initialized")["lastTransitionTime"] == "T0"
    assert condition(status, "Ready")["lastTransitionTime"] == "T9"
    assert status["startTime"] == "T0"
