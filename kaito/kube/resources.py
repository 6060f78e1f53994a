"""``Kind[T]``: where a kind is served and how one object of it is decoded.

The framework is generic over it. Which kinds there are is the application's business
(``reconcilers/kinds.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kaito.api.meta import ApiObject, ObjectRef

T_co = TypeVar("T_co", bound=ApiObject, covariant=True)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A served resource.

    ``decode``: the bytes of one object, without or with ``kind``/``apiVersion``, to the immutable
    form it has in memory. Raises msgspec.DecodeError (or its subclass ValidationError) on what it
    cannot read; the informer counts and skips such an object.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    decode: Callable[[bytes], T_co]

    @property
    def api_version(self) -> str:
        """``group/version``, or ``version`` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """``plural.group`` as kubectl and RBAC spell it: ``machines.karpenter.sh``, ``pods``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def ref(self, obj: ApiObject) -> ObjectRef:
        """The reference to one object of this kind."""
        meta = obj.metadata
        return ObjectRef(self.api_version, self.kind, meta.namespace, meta.name, meta.uid)

    def __str__(self) -> str:
        return self.resource
