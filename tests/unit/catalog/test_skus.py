from __future__ import annotations

import pytest

from kaito.catalog import skus
from kaito.catalog.skus import Sku


def test_every_instance_type_of_the_facts_is_there() -> None:
    """Facts §5: 47 of Azure, 8 of Azure Arc, 59 of AWS."""
    assert (len(skus.AZURE), len(skus.AWS), len(skus.SKUS)) == (55, 59, 114)


@pytest.mark.parametrize("sku", skus.SKUS.values(), ids=lambda s: s.name)
def test_figures_are_plausible(sku: Sku) -> None:
    assert 1 <= sku.gpu_count <= 16
    assert sku.memory_gib >= 4 * sku.gpu_count
    assert bool(sku.vcpus) == bool(sku.ram_gib) == bool(sku.quota_family)


def test_names_are_found_in_any_case() -> None:
    assert skus.find("standard_nc6S_V3", "azure") == Sku(
        "Standard_NC6s_v3", 1, 16, "V100", 6, 112, "standardNCSv3Family"
    )
    assert skus.find("P5.48XLARGE", "aws") is skus.AWS["p5.48xlarge"]


def test_a_cloud_does_not_have_anothers_instance_types() -> None:
    assert skus.find("p5.48xlarge", "azure") is None
    assert skus.of("azure") is skus.AZURE
    assert skus.of("aws") is skus.AWS


@pytest.mark.parametrize(
    ("name", "gpu_count", "memory_gib"),
    [
        ("Standard_ND96amsr_A100_v4", 8, 640),
        ("Standard_ND96asr_A100_v4", 8, 320),
        ("Standard_ND96asr_v4", 8, 320),
    ],
)
def test_the_originals_errors_are_not_copied(name: str, gpu_count: int, memory_gib: int) -> None:
    """Facts §14: 80 for 640; one box under two names."""
    sku = skus.AZURE[name]
    assert (sku.gpu_count, sku.memory_gib) == (gpu_count, memory_gib)


def test_only_nvidia_of_a_living_generation_is_worth_suggesting() -> None:
    assert skus.AZURE["Standard_NC6s_v3"].is_current
    assert not skus.AZURE["Standard_NC6"].is_current
    assert not skus.AZURE["Standard_NV32as_v4"].has_nvidia_gpu
    assert not skus.AWS["trn1.2xlarge"].is_current


def test_memory_of_one_gpu_is_rounded_down() -> None:
    assert skus.AZURE["Standard_NC80adis_H100_v5"].memory_gib_per_gpu == 94
