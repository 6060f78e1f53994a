"""The read half of a cache: what reconcilers see of a kind. Never awaits, never copies."""

from __future__ import annotations

from typing import Protocol, TypeVar

from kaito.api.meta import ApiObject

T_co = TypeVar("T_co", bound=ApiObject, covariant=True)


class Lister(Protocol[T_co]):
    """Objects of one kind as the watch last showed them.

    What a call returns is a snapshot: later events change nothing that was already handed out.
    """

    @property
    def resource_version(self) -> str:
        """Of the last list, event or bookmark applied; empty before the first."""
        ...

    @property
    def has_synced(self) -> bool:
        """The first complete list is in and its handlers have run. Never turns false again."""
        ...

    def get(self, namespace: str, name: str) -> T_co | None:
        """One object; ``namespace`` is empty for cluster-scoped kinds."""
        ...

    def list(self, namespace: str | None = None, *, selector: str = "") -> tuple[T_co, ...]:
        """All objects, or those of one namespace (found without a scan).

        ``selector``: only those with such labels, in kubectl's words (``app=web,!canary``); scans.

        Raises:
            ValueError: not a selector.
        """
        ...

    def by_index(self, index: str, value: str) -> tuple[T_co, ...]:
        """Objects the index function filed under ``value``.

        Raises:
            KeyError: no such index was registered.
        """
        ...
