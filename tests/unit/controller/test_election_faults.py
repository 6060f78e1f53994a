"""E22: a thousand Leases under random faults, each with three replicas, in simulated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

import pytest
import structlog

from kaito.controller.candidacy import DEFAULT_TIMING, Candidacy
from kaito.errors import KaitoError, ServerUnavailable, TooManyRequests, TransportError
from kaito.kube.client import KubeClient
from tests.unit.controller.fakes import FakeApiServer, FakeClient
from tests.unit.controller.virtual import NodeClock, VirtualLoop

LEASES: Final = 1_000
GROUPS: Final = 10
REPLICAS: Final = 3
FAULTY_SECONDS: Final = 45.0
CALM_SECONDS: Final = 45.0
RESTART_SECONDS: Final = 2.0
FAULTS: Final = (
    *("reset", "answer reset", "html", "html after", "hang", "answer hangs", "slow"),
    *("slow answer", "throttled", "arrives late"),
)


class Faulty(FakeClient):
    """A tenth of its calls meet a fault; ``cut``: what of it does not pass at all."""

    def __init__(self, server: FakeApiServer, dice: random.Random, clock: NodeClock) -> None:
        super().__init__(server)
        self.dice = dice
        self.clock = clock
        self.rate = 0.1
        self.cut = ""

    async def _around(self, verb: str, effect: Callable[[], bytes | None]) -> bytes | None:
        try:
            return await self._meet(effect)
        finally:
            await self.clock.thaw()

    async def _meet(self, effect: Callable[[], bytes | None]) -> bytes | None:
        fault = self.dice.choice(FAULTS) if self.dice.random() < self.rate else ""
        if self.cut == "requests":
            fault = "hang"
        elif self.cut == "answers":
            fault = "answer hangs"
        match fault:
            case "reset":
                raise TransportError("reset")
            case "html":
                raise ServerUnavailable("<html>", status=503)
            case "hang":
                await asyncio.sleep(1000)
            case "slow":
                await asyncio.sleep(4.9)
            case "throttled":  # the transport waits as it is told, and gives up in the end
                await asyncio.sleep(5)
                if self.dice.random() < 0.5:
                    raise TooManyRequests("slow down", status=429, retry_after=5)
            case "arrives late":
                asyncio.get_running_loop().call_later(self.dice.uniform(0, 25), _late, effect)
                await asyncio.sleep(1000)
        raw = effect()
        match fault:
            case "answer reset":
                raise TransportError("reset")
            case "html after":
                raise ServerUnavailable("<html>", status=503)
            case "answer hangs":
                await asyncio.sleep(1000)
            case "slow answer":
                await asyncio.sleep(4.9)
        return raw


def _late(effect: Callable[[], Any]) -> None:
    with suppress(KaitoError):  # nobody hears the answer
        effect()


class Election:
    """One Lease, its replicas, and who could write at each moment."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.dice = random.Random(seed)
        self.loop = loop
        self.server = FakeApiServer()
        self.clocks = [
            NodeClock(
                loop,
                booted=self.dice.uniform(0, 1e6),
                rate=self.dice.uniform(0.99, 1.01),
                wall=self.dice.choice((-3600, 0, 3600)),
            )
            for _ in range(REPLICAS)
        ]
        self.clients = [Faulty(self.server, self.dice, clock) for clock in self.clocks]
        self.current: list[Candidacy | None] = [None] * REPLICAS
        self.takeovers = 0
        self.stops = 0
        self.led_last = 0.0

    @property
    def writers(self) -> list[str]:
        return [
            candidate.identity
            for candidate in self.current
            if candidate is not None and candidate.seconds_left() > 0
        ]

    def look(self) -> None:
        writers = self.writers
        assert len(writers) <= 1, f"{writers} can write at {self.loop.time():.3f}"
        if writers:
            self.led_last = self.loop.time()

    def won(self) -> None:
        self.takeovers += 1

    async def replica(self, number: int) -> None:
        """A process that is started again whenever it ended: lost, stopped or killed."""
        lives = 0
        while True:
            lives += 1
            candidate = self.current[number] = Candidacy(
                namespace="kaito",
                name="leader",
                identity=f"{number}_{lives}",
                clock=self.clocks[number],
                timing=DEFAULT_TIMING,
                on_won=self.won,
                on_lost=lambda *_: None,
                on_new_leader=lambda _: None,
                uniform=self.dice.random,
            )
            await candidate.run(cast(KubeClient, self.clients[number]))
            await asyncio.sleep(RESTART_SECONDS)

    async def misfortunes(self) -> None:
        """A partition of one side, a clean stop, a SIGSTOP; then all is well."""
        client = self.dice.choice(self.clients)
        await asyncio.sleep(self.dice.uniform(5, 15))
        client.cut = self.dice.choice(("requests", "answers"))
        await asyncio.sleep(self.dice.uniform(5, 20))
        client.cut = ""
        for number, candidate in enumerate(self.current):
            if candidate is not None and candidate.is_leader:
                if self.dice.random() < 0.5:
                    candidate.stop()
                    self.stops += 1
                else:
                    self.clocks[number].frozen_until = self.loop.time() + self.dice.uniform(5, 30)
        await asyncio.sleep(FAULTY_SECONDS - self.loop.time())
        for client in self.clients:
            client.rate = 0.0

    async def run(self) -> None:
        self.loop.watch(self.look)
        async with asyncio.TaskGroup() as group:
            replicas = [group.create_task(self.replica(number)) for number in range(REPLICAS)]
            await self.misfortunes()
            await asyncio.sleep(CALM_SECONDS)
            for task in replicas:
                task.cancel()


def _election(seed: int) -> Election:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = cast(VirtualLoop, runner.get_loop())
        election = Election(seed, loop)
        runner.run(election.run())
    return election


@pytest.mark.parametrize("group", range(GROUPS))
def test_under_random_faults_never_two_can_write_and_in_the_end_one_does(group: int) -> None:
    """E4, E5, E16, E22, P11: each fence by its own clock; some tick 1 % off, some an hour off."""
    with structlog.testing.capture_logs():
        elections = [_election(seed) for seed in range(group, LEASES, GROUPS)]
    for election in elections:
        assert election.led_last > FAULTY_SECONDS + CALM_SECONDS - 2, "nobody leads in the end"
    assert sum(election.takeovers for election in elections) > 1.5 * len(elections)
    assert sum(election.stops for election in elections) > len(elections) / 5
