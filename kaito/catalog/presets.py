"""Models that come with their settings: read from ``presets/*.yaml``, checked, frozen.

One file a preset, named for it. Units are in the key names; GiB are 2**30 bytes. A key that is
missing, misspelt or of the wrong type is an error that names file and field, never a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec

from kaito.errors import InvalidPreset

Count = Annotated[int, msgspec.Meta(ge=1)]
Amount = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Flags = Mapping[str, str]
"""Flags in the order they are written; an empty value is a bare ``--flag``."""

Method = Literal["lora", "qlora"]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, dict):
                msgspec.structs.force_setattr(self, name, MappingProxyType(value))


class Image(_Strict, frozen=True):
    """The model's image. Private presets have neither name nor tag: the user's image is used.

    ``catalog_tag``: version of the image recipe. ``contract``: ``upstream`` is what the original's
    public images accept, ``kaito`` is what ours offer beyond it.
    """

    name: Text | None
    tag: Text | None
    catalog_tag: Text
    contract: Literal["upstream", "kaito"] = "upstream"


class HuggingFace(_Strict, frozen=True):
    """Where the weights come from, pinned."""

    repo: Text
    revision: Text


class Inference(_Strict, frozen=True):
    """What serving needs. ``per_gpu_memory_gib`` 0: layers are spread, no check per GPU.

    ``world_size``: torchrun processes over all nodes; None where one process drives all GPUs.
    """

    disk_gib: Count
    gpu_count: Count
    total_gpu_memory_gib: Count
    per_gpu_memory_gib: Amount
    world_size: Count | None
    readiness_timeout_seconds: Count
    base_command: Text
    script: Text
    launch_params: Flags
    rdzv_params: Flags | None
    run_params: Flags


class Tuning(_Strict, frozen=True):
    """What tuning needs. Its memory figures are for full precision: a warning, never a refusal.

    ``launch_params``: None when only ``--num_processes`` is passed.
    """

    disk_gib: Count
    gpu_count: Count
    total_gpu_memory_gib: Count
    per_gpu_memory_gib: Amount
    readiness_timeout_seconds: Count
    base_command: Text
    script: Text
    launch_params: Flags | None
    methods: tuple[Method, ...]
    per_gpu_memory_gib_by_method: Mapping[Method, Count]
    env: Mapping[str, str]


class KnownToRunOn(_Strict, frozen=True):
    """A machine that upstream ran the image on; for documentation."""

    instance_type: Text
    nodes: Count
    os_disk_gb: Count


class Preset(_Strict, frozen=True):
    """A model and everything that is needed to serve or tune it."""

    name: Text
    family: Text
    model_type: Text
    runtime: Literal["tfs", "llama-2"]
    access_mode: Literal["public", "private"]
    image: Image
    hugging_face: HuggingFace | None
    supports_distributed_inference: bool
    supports_adapters: bool
    inference: Inference
    tuning: Tuning | None
    known_to_run_on: KnownToRunOn | None

    @property
    def supports_tuning(self) -> bool:
        """It has a tuning section."""
        return self.tuning is not None

    @property
    def is_private(self) -> bool:
        """No public image exists: the user must name one."""
        return self.access_mode == "private"


def load_presets(folder: Path | None = None) -> Mapping[str, Preset]:
    """Every preset by name; from ``folder``, else those that came with the program.

    Raises:
        InvalidPreset: a file is wrong; the message names file and field.
    """
    folder = folder or _own_folder()
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise InvalidPreset(f"no preset files (*.yaml) in {folder}")
    return MappingProxyType({path.stem: _load(path) for path in files})


_PACKED: Final = Path(__file__).parents[1] / "_presets"
_IN_REPOSITORY: Final = Path(__file__).parents[2] / "presets"


def _own_folder() -> Path:
    return _PACKED if _PACKED.is_dir() else _IN_REPOSITORY


def _load(path: Path) -> Preset:
    import yaml  # lazy: kaito/api and kaito/catalog are imported by programs that load no preset

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data: Any = yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 (both are safe loaders)
        preset = msgspec.convert(data, Preset)
    except yaml.YAMLError as err:
        raise InvalidPreset(f"{path.name}: not YAML: {err}") from err
    except msgspec.ValidationError as err:
        raise InvalidPreset(
            f"{path.name}: {err}".replace("`$.", "`").replace("`$`", "top")
        ) from err
    for field, fault in _contradictions(preset, path.stem):
        raise InvalidPreset(f"{path.name}: {fault} - at `{field}`")
    return preset


def _contradictions(preset: Preset, stem: str) -> list[tuple[str, str]]:
    """Fields that do not agree with each other: (field, what is wrong)."""
    serving = preset.inference
    checks = {
        ("name", f"must be {stem!r}, the name of the file"): preset.name == stem,
        ("image.name", "a public preset has name and tag, a private one neither"): (
            (preset.image.name is None) == preset.is_private
            and (preset.image.tag is None) == preset.is_private
        ),
        ("inference.world_size", "a preset that spreads over nodes needs it"): (
            not preset.supports_distributed_inference or serving.world_size is not None
        ),
        ("inference.total_gpu_memory_gib", "is less than the GPUs' own minimum together"): (
            serving.total_gpu_memory_gib >= serving.per_gpu_memory_gib * serving.gpu_count
        ),
    }
    return [fault for fault, holds in checks.items() if not holds]
