"""VM sizes as the simulated region offers them: the catalogue's GPU sizes, and guesses for others.

A size that the catalogue lacks (CPU sizes are not its business) is read off its name, so that any
well-formed Azure size can be had.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from kaito.catalog import skus

_NAME: Final = re.compile(
    r"Standard_([A-Z]{1,4})(\d+)(?:-\d+)?([a-z]*)((?:_[A-Za-z0-9]+)*)", re.IGNORECASE
)
_GIB_PER_VCPU: Final = 4


@dataclass(frozen=True, slots=True)
class VmSize:
    """One size. ``gpu_count``: NVIDIA GPUs. ``family``: what its vCPUs count against in quota."""

    name: str
    vcpus: int
    memory_gib: int
    gpu_count: int
    family: str

    @property
    def default_disk_gb(self) -> int:
        """The OS disk that AKS gives when none is asked for (P4.6)."""
        for least_vcpus, disk_gb in ((64, 1024), (16, 512), (8, 256)):
            if self.vcpus >= least_vcpus:
                return disk_gb
        return 128


def vm_size(name: str) -> VmSize | None:
    """The size of that name in any case, None if no size is called like that."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    series, digits, features, rest = match.groups()
    vcpus = int(digits)
    family = f"standard{series.upper()}{features.upper()}{rest.replace('_', '')}Family"
    sku = skus.find(name, "azure")
    if sku is None:
        return VmSize(name, vcpus, vcpus * _GIB_PER_VCPU, 0, family)
    vcpus = sku.vcpus or vcpus
    memory_gib = int(sku.ram_gib or vcpus * _GIB_PER_VCPU)
    gpu_count = sku.gpu_count if sku.has_nvidia_gpu else 0
    return VmSize(sku.name, vcpus, memory_gib, gpu_count, sku.quota_family or family)
