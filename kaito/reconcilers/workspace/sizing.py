"""Preset and instance type to GPUs. Pure."""

from __future__ import annotations

from typing import Final

from kaito.catalog import skus
from kaito.catalog.presets import Preset
from kaito.catalog.skus import Provider

GPU_NAME_MARK: Final = "Standard_N"


def needs_gpu(instance_type: str, provider: Provider) -> bool:
    """Do nodes of this size have GPUs to wait for? A size we do not know tells by its name."""
    sku = skus.find(instance_type, provider)
    return sku.gpu_count > 0 if sku is not None else GPU_NAME_MARK in instance_type


def gpus_per_pod(preset: Preset, instance_type: str, provider: Provider) -> int:
    """All GPUs of a node of known size, as each replica has a node to itself; else the preset's."""
    sku = skus.find(instance_type, provider)
    return sku.gpu_count if sku is not None and sku.gpu_count else preset.inference.gpu_count
