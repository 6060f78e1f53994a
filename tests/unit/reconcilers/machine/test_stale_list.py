"""What a list that lags behind the cloud may cost: calls and time, never a machine."""

import asyncio
import contextlib

import pytest

from kaito.errors import KaitoError
from kaito.provisioner.interface import Fault
from kaito.reconcilers.kinds import MACHINES
from tests.fakes.backend import refusal
from tests.unit.reconcilers.machine.builders import NAME, manifest
from tests.unit.reconcilers.machine.stage import KEY, Fuse, Process, Stage


def stale_stage(seconds: float, **given) -> Stage:
    stage = Stage(**given)
    stage.backend.stale_seconds = seconds
    return stage


@pytest.mark.parametrize("stale", [15.0, 30.0, 120.0])
async def test_a_claim_deleted_before_the_list_shows_its_machine_leaves_none(stale: float):
    """G8: one LIST without the pool proves nothing; once its finalizer went and the VM stayed."""
    stage = stale_stage(stale)
    stage.ask()
    await stage.until(lambda: stage.backend.live == 1)
    await stage.ask_no_more()
    await stage.until(lambda: stage.claim is None, ticks=120)
    assert stage.backend.live == 0
    assert stage.backend.calls["delete"] >= 1


async def test_a_claim_deleted_soon_after_ready_leaves_no_machine():
    """G8: the list shows it, but as it was: neither its end nor its beginning is news."""
    stage = stale_stage(30.0)
    stage.ask()
    await stage.until(stage.is_ready)
    await stage.ask_no_more()
    await stage.until(stage.is_gone, ticks=120)
    assert 1 <= stage.backend.calls["delete"] <= 2


async def test_a_put_of_a_process_that_crashed_is_taken_back_too():
    """G8: our finalizer is all that tells of it, in a list that is behind."""
    stage = stale_stage(60.0)
    stage.ask(**manifest(finalizers=["karpenter.sh/termination"]))
    assert stage.claim is not None
    stage.backend.add_leftover(NAME, stage.claim["metadata"]["uid"])
    await stage.ask_no_more()
    stage.restart()
    await stage.until(lambda: stage.claim is None)
    assert stage.backend.live == 0


async def test_a_strangers_new_pool_is_not_deleted_unseen():
    """G6, P2.4: what the list does not show is looked at before it is deleted."""
    stage = stale_stage(60.0)
    stage.ask(**manifest(finalizers=["karpenter.sh/termination"]))
    stage.backend.add_foreign(NAME)
    await stage.ask_no_more()
    await stage.until(lambda: stage.claim is None)
    assert stage.backend.calls["delete"] == 0
    assert len(stage.backend.instances) == 1


async def test_an_ordinary_life_costs_one_put_one_delete_and_one_look():
    """P4.12, G8: the proof is one GET, when the list shows the end."""
    stage = Stage(join_seconds=40)
    stage.ask()
    await stage.until(stage.is_ready)
    await stage.ask_no_more()
    await stage.until(stage.is_gone)
    calls = stage.backend.calls
    assert (calls["put"], calls["delete"], calls["get"], calls["abort"]) == (1, 1, 1, 0)


async def test_neither_put_nor_delete_is_repeated_with_every_list():
    """P4.12: while the list was 30 s behind, both went out once a second."""
    stage = stale_stage(30.0, join_seconds=3600)
    stage.backend.create_seconds = stage.backend.delete_seconds = 300.0
    stage.ask()
    for _ in range(60):
        await stage.tick(1)
    assert stage.backend.calls["put"] <= 3
    await stage.ask_no_more()
    for _ in range(60):
        await stage.tick(1)
    assert stage.backend.calls["delete"] <= 3
    assert stage.backend.calls["get"] + stage.backend.calls["abort"] <= 6


async def test_what_was_told_at_the_order_stays_told_until_the_list_shows_it():
    """P1.11: no flapping between two conditions, no write for a list that is behind."""
    stage = stale_stage(60.0, join_seconds=3600)
    stage.backend.create_seconds = 300.0
    stage.ask()
    await stage.until(lambda: stage.backend.live == 1)
    told, writes = stage.condition("MachineLaunched"), len(stage.kube.writes())
    assert told["reason"] == "Creating"
    for _ in range(8):
        await stage.tick()
    assert stage.condition("MachineLaunched") == told
    assert len(stage.kube.writes()) == writes


@pytest.mark.parametrize("stale", [0.0, 20.0])
async def test_a_creation_is_aborted_on_a_live_look_only(stale: float):
    """W14, P5.12: the list says Creating; a pool that has become Ready since is just deleted."""
    stage = stale_stage(stale, join_seconds=3600)
    stage.ask()
    await stage.tick()
    await stage.until(lambda: stage.condition("MachineLaunched")["reason"] == "Creating")
    await stage.tick(stale or 5)
    await stage.clock.advance(15 if stale else 0)
    await stage.ask_no_more()
    await stage.until(stage.is_gone, ticks=120)
    assert stage.backend.calls["abort"] == (0 if stale else 1)


async def test_a_failed_pool_is_not_deleted_again_and_again():
    """P5.12, W13: the list shows it as Failed for as long as it is behind."""
    stage = stale_stage(20.0, join_seconds=60)
    fault = Fault("CapacityUnavailable", "none", "Wait", "AllocationFailed", waits=(60.0, 120.0))
    stage.backend.faults[NAME] = fault
    stage.ask()
    await stage.until(stage.is_ready, ticks=120)
    assert (stage.backend.created, stage.backend.peak) == (2, 1)
    assert stage.backend.calls["delete"] <= 2


async def test_two_reconcilers_with_stale_lists_make_one_machine_and_leave_none():
    """W26, G6, G8."""
    stage = stale_stage(20.0)
    stage.ask()
    processes = [Process(stage), Process(stage)]

    async def run(ticks: int) -> None:
        for _ in range(ticks):
            await stage.clock.advance(5)
            await stage._as_the_world(stage._vms())
            for process in processes:
                await process.inventory._list()
            async with asyncio.TaskGroup() as group:
                for process in processes:
                    group.create_task(_tolerant(process))

    await run(4)
    assert stage.backend.live == 1
    await stage.ask_no_more()
    await run(60)
    assert stage.is_gone()
    assert (stage.backend.created, stage.backend.peak) == (1, 1)


async def _tolerant(process: Process) -> None:
    with contextlib.suppress(KaitoError):
        await process.reconciler.reconcile(KEY)


async def _short_life(stage: Stage) -> None:
    stage.ask()
    await stage.until(lambda: stage.backend.live == 1)
    await stage.ask_no_more()
    await stage.until(lambda: stage.claim is None, ticks=200)


async def _whole_life(stage: Stage) -> None:
    stage.ask()
    await stage.until(stage.is_ready, ticks=200)
    await stage.ask_no_more()
    await stage.until(stage.is_gone, ticks=200)


@pytest.mark.parametrize(
    ("stale", "life"),
    [(15.0, _short_life), (15.0, _whole_life), (60.0, _short_life)],
    ids=["15 s, short", "15 s, whole", "60 s, short"],
)
async def test_a_crash_at_any_call_under_a_stale_list_leaves_no_machine(stale: float, life):
    """G8, W3: each call of a life, cut before it was sent and after it was run."""
    clean = stale_stage(stale)
    await life(clean)
    calls = clean.fuse.seen
    assert {"cloud launch", "cloud get", "cloud terminate"} <= set(calls)
    for at in range(1, len(calls) + 1):
        for after in (False, True):
            stage = stale_stage(stale, fuse=Fuse(at, after))
            where = f"crash {'after' if after else 'before'} {at}: {calls[at - 1]}"
            try:
                await life(stage)
            except AssertionError as err:
                raise AssertionError(where) from err
            assert (stage.backend.live, stage.backend.peak) == (0, 1), where
            assert stage.backend.created == 1, where
            assert stage.kube.bodies(MACHINES) == []


async def test_an_order_that_lands_after_its_sender_was_killed_is_taken_back():
    """G8: "there is none", said too soon, once freed the claim of a VM that was about to be."""
    stage = Stage()
    stage.ask(**manifest(finalizers=["karpenter.sh/termination"]))
    assert stage.claim is not None
    uid = stage.claim["metadata"]["uid"]
    await stage.clock.advance(60)
    stage.restart()  # the process that was killed had put its order on the wire
    await stage.ask_no_more()
    for _ in range(4):
        await stage.tick()
    assert stage.claim is not None
    stage.backend.add_leftover(NAME, uid)  # now it lands
    await stage.until(stage.is_gone)
    assert stage.backend.live == 0
    assert stage.backend.calls["delete"] == 1


async def test_a_claim_no_older_than_the_process_waits_for_no_order():
    """Nobody before us can have ordered for it: a refused one goes at once."""
    stage = Stage()
    await stage.tick()
    stage.backend.refuse = lambda _: refusal("QuotaExceeded")
    stage.ask()
    await stage.tick()
    await stage.ask_no_more()
    await stage.until(lambda: stage.claim is None, ticks=4)
