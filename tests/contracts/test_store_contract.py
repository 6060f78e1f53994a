"""However a cache learned of it, by events or by one list, it answers the same."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from kaito.informers.store import Store
from tests.unit.informers.fake import Thing, thing
from tests.unit.informers.relist import relist


@dataclass(frozen=True)
class Step:
    name: str
    namespace: str
    uid: str
    colours: tuple[str, ...]
    is_delete: bool


STEPS = st.lists(
    st.builds(
        Step,
        name=st.sampled_from("abc"),
        namespace=st.sampled_from(["x", "y"]),
        uid=st.sampled_from("12"),
        colours=st.lists(st.sampled_from(["red", "blue", "green"]), max_size=3).map(tuple),
        is_delete=st.booleans(),
    ),
    max_size=40,
)


def colours(obj: Thing) -> list[str]:
    return obj.colour.split() if obj.colour else []


def new_store() -> Store[Thing]:
    return Store({"colour": colours})


def made(step: Step, version: int) -> Thing:
    uid = f"{step.namespace}-{step.name}-{step.uid}"
    return thing(
        step.name, version, namespace=step.namespace, uid=uid, colour=" ".join(step.colours)
    )


def run(steps: list[Step]) -> tuple[Store[Thing], dict[tuple[str, str], Thing]]:
    """A store after the events, and what the server would list then."""
    store, truth = new_store(), {}
    for version, step in enumerate(steps, start=1):
        obj = made(step, version)
        if step.is_delete:
            store.remove(obj.metadata.key, obj)
            truth.pop(obj.metadata.key, None)
        else:
            store.apply(obj)
            truth[obj.metadata.key] = obj
        store.advance(str(version))
    return store, truth


def answers(store: Store[Thing]) -> dict[str, object]:
    def shown(objects: tuple[Thing, ...]) -> list[tuple[str, str, str]]:
        metas = [obj.metadata for obj in objects]
        return sorted((m.namespace, m.name, m.resource_version) for m in metas)

    return {
        "all": shown(store.list()),
        "by namespace": [shown(store.list(each)) for each in ("x", "y", "z")],
        "by colour": [shown(store.by_index("colour", c)) for c in ("red", "blue", "green", "-")],
        "length": len(store),
        "version": store.resource_version,
        "values": sorted(store._indexes["colour"]._values),
    }


@given(STEPS)
def test_events_and_a_list_of_their_outcome_leave_the_same_cache(steps: list[Step]) -> None:
    """S4, S10, S11."""
    by_events, truth = run(steps)
    by_list = new_store()
    relist(by_list, truth, by_events.resource_version)
    assert answers(by_events) == answers(by_list)


@given(STEPS, STEPS)
def test_a_relist_tells_exactly_what_leads_from_one_state_to_the_other(
    before: list[Step], after: list[Step]
) -> None:
    """S4: a reader that follows the changes ends with the list's objects."""
    store, _ = run(before)
    _, truth = run(after)
    told = {obj.metadata.key: obj for obj in store.list()}
    for change in relist(store, truth, "99"):
        key = change.obj.metadata.key
        if change.old is not None:
            assert told.pop(key) is change.old
        if change.new is not None:
            assert key not in told
            told[key] = change.new
    assert {k: (v.metadata.uid, v.metadata.resource_version) for k, v in told.items()} == {
        k: (v.metadata.uid, v.metadata.resource_version) for k, v in truth.items()
    }
