"""Instance types with GPUs: one table for validation, GPU counts and quota (facts §5, P7.9).

Memory is GPU memory in GiB per machine. Where the original's two tables disagree, the right figure
stands here: 640 GiB for ND96amsr_A100_v4, and both spellings of the 40 GB A100 box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Provider = Literal["azure", "aws"]

_OUTDATED: Final = frozenset({"K80", "M60", "P40", "P100"})


@dataclass(frozen=True, slots=True)
class Sku:
    """One instance type. ``vcpus`` and ``ram_gib`` are 0 and ``quota_family`` empty where unknown.

    ``quota_family``: the name under which the cloud counts vCPUs against a quota.
    """

    name: str
    gpu_count: int
    memory_gib: int
    gpu_model: str
    vcpus: int = 0
    ram_gib: int = 0
    quota_family: str = ""

    @property
    def memory_gib_per_gpu(self) -> int:
        """GiB of one GPU, rounded down."""
        return self.memory_gib // self.gpu_count

    @property
    def has_nvidia_gpu(self) -> bool:
        """Pods ask for ``nvidia.com/gpu``: a machine without one never runs them."""
        return not self.gpu_model.startswith(("AMD", "AWS"))

    @property
    def is_current(self) -> bool:
        """Worth suggesting: NVIDIA, and of a generation that clouds still offer."""
        return self.has_nvidia_gpu and self.gpu_model not in _OUTDATED


# model: name GPUs GiB, …
_AZURE: Final = """
K80: NC6 1 12, NC12 2 24, NC24 4 48, NC24r 4 48
M60: NV6 1 8, NV12 2 16, NV24 4 32, NV12s_v3 1 8, NV24s_v3 2 16, NV48s_v3 4 32
P40: ND6s 1 24, ND12s 2 48, ND24s 4 96, ND24rs 4 96
P100: NC6s_v2 1 16, NC12s_v2 2 32, NC24s_v2 4 64, NC24rs_v2 4 64
V100: NC6s_v3 1 16, NC12s_v3 2 32, NC24s_v3 4 64, NC24rs_v3 4 64, ND40rs_v2 8 256
T4: NC4as_T4_v3 1 16, NC8as_T4_v3 1 16, NC16as_T4_v3 1 16, NC64as_T4_v3 4 64
A10: NV6ads_A10_v5 1 4, NV12ads_A10_v5 1 8, NV18ads_A10_v5 1 12, NV36ads_A10_v5 1 24
A10: NV36adms_A10_v5 1 24, NV72ads_A10_v5 2 48
A100: NC24ads_A100_v4 1 80, NC48ads_A100_v4 2 160, NC96ads_A100_v4 4 320
A100: ND96asr_v4 8 320, ND96asr_A100_v4 8 320, ND96amsr_A100_v4 8 640
H100: NC40ads_H100_v5 1 94, NC80adis_H100_v5 2 188, NCC40ads_H100_v5 1 94, ND96isr_H100_v5 8 640
H200: ND96isr_H200_v5 8 1128
A2: NC4_A2 1 16, NC8_A2 1 16, NC16_A2 2 32, NC32_A2 2 32
A16: NC4_A16 1 16, NC8_A16 1 16, NC16_A16 2 32, NC32_A16 2 32
AMD Radeon PRO V620: NG32ads_V620_v1 1 32, NG32adms_V620_v1 1 32
AMD Radeon Instinct MI25: NV32as_v4 1 16
"""

# quota family: name vCPUs RAM GiB, …
_AZURE_QUOTA: Final = """
standardNCSv3Family: NC6s_v3 6 112, NC12s_v3 12 224, NC24s_v3 24 448, NC24rs_v3 24 448
Standard NCASv3_T4 Family: NC4as_T4_v3 4 28, NC8as_T4_v3 8 56, NC16as_T4_v3 16 110
Standard NCASv3_T4 Family: NC64as_T4_v3 64 440
StandardNCADSA100v4Family: NC24ads_A100_v4 24 220, NC48ads_A100_v4 48 440, NC96ads_A100_v4 96 880
Standard NDASv4_A100 Family: ND96asr_v4 96 900, ND96asr_A100_v4 96 900
Standard NDAMSv4_A100Family: ND96amsr_A100_v4 96 1900
standardNDSH100v5Family: ND96isr_H100_v5 96 1900
StandardNCadsH100v5Family: NC40ads_H100_v5 40 320, NC80adis_H100_v5 80 640
StandardNVADSA10v5Family: NV6ads_A10_v5 6 55, NV12ads_A10_v5 12 110, NV18ads_A10_v5 18 220
StandardNVADSA10v5Family: NV36ads_A10_v5 36 440, NV72ads_A10_v5 72 880
standardNDSv2Family: ND40rs_v2 40 672
"""

_AWS: Final = """
K80: p2.xlarge 1 12, p2.8xlarge 8 96, p2.16xlarge 16 192
M60: g3s.xlarge 1 8, g3s.4xlarge 1 8, g3s.8xlarge 2 16, g3s.16xlarge 4 32
V100: p3.2xlarge 1 16, p3.8xlarge 4 64, p3.16xlarge 8 128, p3dn.24xlarge 8 256
A100: p4d.24xlarge 8 320, p4de.24xlarge 8 640
H100: p5.48xlarge 8 640
H200: p5e.48xlarge 8 1128, p5en.48xlarge 8 1128
L4: g6.xlarge 1 24, g6.2xlarge 1 24, g6.4xlarge 1 24, g6.8xlarge 1 24, g6.16xlarge 1 24
L4: gr6.4xlarge 1 24, gr6.8xlarge 1 24, g6.12xlarge 4 96, g6.24xlarge 4 96, g6.48xlarge 8 192
T4: g5g.xlarge 1 16, g5g.2xlarge 1 16, g5g.4xlarge 1 16, g5g.8xlarge 1 16, g5g.16xlarge 2 32
T4: g5g.metal 2 32, g4dn.xlarge 1 16, g4dn.2xlarge 1 16, g4dn.4xlarge 1 16, g4dn.8xlarge 1 16
T4: g4dn.16xlarge 1 16, g4dn.12xlarge 4 64, g4dn.metal 8 128
A10G: g5.xlarge 1 24, g5.2xlarge 1 24, g5.4xlarge 1 24, g5.8xlarge 1 24, g5.12xlarge 4 96
A10G: g5.16xlarge 1 24, g5.24xlarge 4 96, g5.48xlarge 8 192
AMD Radeon Pro V520: g4ad.xlarge 1 8, g4ad.2xlarge 1 8, g4ad.4xlarge 1 8, g4ad.8xlarge 2 16
AMD Radeon Pro V520: g4ad.16xlarge 4 32
AWS Trainium: trn1.2xlarge 1 32, trn1.32xlarge 16 512, trn1n.32xlarge 16 512
AWS Inferentia2: inf2.xlarge 1 32, inf2.8xlarge 1 32, inf2.24xlarge 6 192, inf2.48xlarge 12 384
"""


def _rows(table: str, prefix: str) -> dict[str, tuple[str, int, int]]:
    """Name to (heading of its line, first figure, second figure)."""
    out = {}
    for line in table.strip().splitlines():
        heading, _, entries = line.partition(": ")
        for entry in entries.split(", "):
            name, first, second = entry.split()
            out[prefix + name] = (heading, int(first), int(second))
    return out


def _table(gpus: str, quota: str, prefix: str) -> Mapping[str, Sku]:
    machines = _rows(quota, prefix)
    out = {}
    for name, (model, gpu_count, memory_gib) in _rows(gpus, prefix).items():
        family, vcpus, ram_gib = machines.get(name, ("", 0, 0))
        out[name] = Sku(name, gpu_count, memory_gib, model, vcpus, ram_gib, family)
    return MappingProxyType(out)


AZURE: Final = _table(_AZURE, _AZURE_QUOTA, "Standard_")
AWS: Final = _table(_AWS, "", "")
SKUS: Final[Mapping[str, Sku]] = MappingProxyType({**AZURE, **AWS})
"""Every instance type of every cloud; their names never collide."""

_BY_FOLDED: Final[Mapping[str, Mapping[str, Sku]]] = {
    "azure": {name.lower(): sku for name, sku in AZURE.items()},
    "aws": {name.lower(): sku for name, sku in AWS.items()},
}


def of(provider: Provider) -> Mapping[str, Sku]:
    """The instance types of one cloud, by name."""
    return AZURE if provider == "azure" else AWS


def find(name: str, provider: Provider) -> Sku | None:
    """The instance type of that name, in any case; None for one that the table does not have."""
    return _BY_FOLDED[provider].get(name.lower())
