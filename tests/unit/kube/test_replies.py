from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from kaito.errors import TransportError
from kaito.kube.replies import page
from tests.unit.kube.server import compact


def thing(number: int, size: int) -> dict[str, Any]:
    """An object with lists of what starts like an object, and text that looks like the end."""
    return {
        "apiVersion": "v1",
        "metadata": {"name": str(number)},
        "owners": [{"apiVersion": "v1", "n": n} for n in range(number % 5)],
        "text": '},{"apiVersion":"' * (number % 3) + "ü" * size,
    }


def listed(items: list[Any], *, first: str = "kind") -> dict[str, Any]:
    """``first``: custom resources have ``items`` before ``metadata``, built-in kinds after."""
    body = {"kind": "ThingList", "items": items, "metadata": {"resourceVersion": "9"}}
    return body if first == "kind" else dict(reversed(body.items()))


@pytest.mark.parametrize("first", ["kind", "metadata"])
@pytest.mark.parametrize("text", [compact, json.dumps], ids=["compact", "spaced"])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
async def test_a_long_page_is_cut_into_the_objects_it_holds(
    first: str, text: Any, count: int
) -> None:
    """W17, R34: whatever is in them."""
    chance = random.Random(count)
    things = [thing(number, chance.randrange(300_000)) for number in range(count)]
    found = await page(text(listed(things, first=first)).encode(), "GET /things")
    assert [json.loads(item) for item in found.items] == things
    assert (found.resource_version, found.continue_token) == ("9", "")


async def test_the_loop_has_a_turn_each_megabyte() -> None:
    """W17, R34"""
    body = compact(listed([thing(number, 1_000) for number in range(1_000)])).encode()
    turns = 0
    async with asyncio.TaskGroup() as group:
        cutting = group.create_task(page(body, "GET /things"))
        while not cutting.done():
            turns += 1
            await asyncio.sleep(0)
    assert turns >= len(body) // 1_100_000 > 4


async def test_many_lookalikes_inside_an_object_cost_a_parse_in_one() -> None:
    """W17: no square of them."""
    owners = [{"apiVersion": "v1", "n": n} for n in range(50_000)]
    things = [thing(1, 10), {"apiVersion": "v1", "owners": owners}, thing(2, 10)]
    found = await page(compact(listed(things)).encode(), "GET /things")
    assert [json.loads(item) for item in found.items] == things


@pytest.mark.parametrize("cut", [1, 500_000, 2_900_000])
async def test_a_long_page_that_is_cut_is_a_transport_error(cut: int) -> None:
    """W8"""
    body = compact(listed([thing(number, 50_000) for number in range(30)])).encode()
    with pytest.raises(TransportError, match="GET /things"):
        await page(body[:-cut], "GET /things")
