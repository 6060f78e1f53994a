"""Whether a model fits the machines asked for (facts §4.2, C3 to C6). Pure.

The catalogues are passed in (this room lies below theirs): the Protocols name what is read of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol


class ServingNeeds(Protocol):
    """What a model needs to be served."""

    @property
    def gpu_count(self) -> int:
        """GPUs in all."""
        ...

    @property
    def total_gpu_memory_gib(self) -> int:
        """GiB over all GPUs."""
        ...

    @property
    def per_gpu_memory_gib(self) -> int:
        """GiB that each GPU must have; 0: no such need."""
        ...

    @property
    def world_size(self) -> int | None:
        """Processes over all nodes; None: a single one."""
        ...


class PresetFacts(Protocol):
    """A preset, as far as validation reads it."""

    @property
    def is_private(self) -> bool:
        """There is no public image."""
        ...

    @property
    def supports_distributed_inference(self) -> bool:
        """One model is spread over all nodes."""
        ...

    @property
    def supports_tuning(self) -> bool:
        """It can be tuned."""
        ...

    @property
    def inference(self) -> ServingNeeds:
        """What serving needs."""
        ...


class SkuFacts(Protocol):
    """An instance type, as far as validation reads it."""

    @property
    def name(self) -> str:
        """As the cloud spells it."""
        ...

    @property
    def gpu_count(self) -> int:
        """GPUs of one machine."""
        ...

    @property
    def memory_gib(self) -> int:
        """GiB of all its GPUs."""
        ...

    @property
    def memory_gib_per_gpu(self) -> int:
        """GiB of one GPU, rounded down."""
        ...

    @property
    def has_nvidia_gpu(self) -> bool:
        """It can run a preset."""
        ...

    @property
    def is_current(self) -> bool:
        """It is worth suggesting."""
        ...


Presets = Mapping[str, PresetFacts]
Skus = Mapping[str, SkuFacts]

_SUGGESTIONS: Final = 3
_GPU_PREFIX: Final = "standard_n"
_AZURE_PREFIXES: Final = (_GPU_PREFIX, "standard_d")


def is_newer_azure_size(name: str, skus: Skus) -> bool:
    """A size that the table does not know, of a cloud whose sizes are named so (C6)."""
    is_azure = any(known.lower().startswith(_GPU_PREFIX) for known in skus)
    return is_azure and name.lower().startswith(_AZURE_PREFIXES)


def has_nvidia_gpu(name: str, sku: SkuFacts | None) -> bool:
    """By the table; a size that it does not know, by its family (``Standard_N``)."""
    return sku.has_nvidia_gpu if sku is not None else name.lower().startswith(_GPU_PREFIX)


def find_sku(name: str, skus: Skus) -> SkuFacts | None:
    """The instance type of that name, in any case; None when the table does not have it."""
    folded = name.lower()
    return skus.get(name) or next((s for n, s in skus.items() if n.lower() == folded), None)


def current_names(skus: Skus) -> list[str]:
    """Names of the instance types that are worth suggesting, sorted."""
    return sorted(name for name, sku in skus.items() if sku.is_current)


def shortfall(preset: PresetFacts, sku: SkuFacts, count: int) -> tuple[str, str] | None:
    """(reason, sentence) of the first thing that the machines have too little of."""
    needs = preset.inference
    nodes = count if preset.supports_distributed_inference else 1
    where = sku.name if nodes == 1 else f"{nodes} x {sku.name}"
    gpus = nodes * sku.gpu_count
    if gpus < needs.gpu_count:
        return (
            "InsufficientGpus",
            f"{where} has {gpus} GPU{'s' if gpus > 1 else ''}, it needs {needs.gpu_count}.",
        )
    if sku.memory_gib_per_gpu < needs.per_gpu_memory_gib:
        return (
            "InsufficientGpuMemory",
            f"{sku.name} has {sku.memory_gib_per_gpu} GiB a GPU, it needs"
            f" {needs.per_gpu_memory_gib} GiB.",
        )
    if nodes * sku.memory_gib < needs.total_gpu_memory_gib:
        return (
            "InsufficientGpuMemory",
            f"{where} has {nodes * sku.memory_gib} GiB of GPU memory, it needs"
            f" {needs.total_gpu_memory_gib} GiB.",
        )
    return None


def smallest_fitting(preset: PresetFacts, count: int, skus: Skus) -> list[str]:
    """Names of the smallest instance types that the preset fits on, smallest first."""
    fitting = [s for s in skus.values() if s.is_current and shortfall(preset, s, count) is None]
    fitting.sort(key=lambda sku: (sku.memory_gib, sku.gpu_count, sku.name))
    return [sku.name for sku in fitting[:_SUGGESTIONS]]
