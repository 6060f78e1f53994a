from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kaito.catalog.presets import load_presets
from kaito.errors import InvalidPreset

FOLDER = Path(__file__).parents[3] / "presets"
NAME = "phi-3-mini-4k-instruct"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(FOLDER / f"{NAME}.yaml", tmp_path)
    return tmp_path


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / f"{NAME}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_phi_3_presets_of_0_3_1_are_there() -> None:
    """presets.yaml: every number as that release has it."""
    found = load_presets()
    needs = {
        name: (p.inference.total_gpu_memory_gib, p.inference.gpu_count, p.inference.disk_gib)
        for name, p in found.items()
        if name.startswith("phi-3")
    }
    assert needs == {
        "phi-3-mini-4k-instruct": (9, 1, 50),
        "phi-3-mini-128k-instruct": (9, 1, 50),
        "phi-3-medium-4k-instruct": (28, 1, 50),
        "phi-3-medium-128k-instruct": (28, 1, 50),
    }


def test_a_preset_is_read_whole() -> None:
    preset = load_presets()[NAME]
    assert preset.image.name == f"kaito-{NAME}"
    assert (preset.image.tag, preset.image.contract) == ("0.0.2", "upstream")
    assert list(preset.inference.launch_params) == [
        "num_processes",
        "num_machines",
        "machine_rank",
        "gpu_ids",
    ]
    assert preset.inference.run_params["trust_remote_code"] == ""
    assert preset.tuning is not None
    assert preset.tuning.methods == ("lora", "qlora")
    assert preset.supports_tuning
    assert not preset.is_private


def test_a_preset_cannot_be_written_to() -> None:
    """Facts §14: upstream's parameter maps leaked from one Workspace into another."""
    preset = load_presets()[NAME]
    with pytest.raises(TypeError):
        preset.inference.launch_params["num_processes"] = "2"  # type: ignore[index]
    with pytest.raises(AttributeError):
        preset.name = "x"  # type: ignore[misc]


def test_the_contract_of_an_image_is_the_originals_unless_said(folder: Path) -> None:
    edit(folder, "  contract: upstream\n", "")
    assert load_presets(folder)[NAME].image.contract == "upstream"


def test_a_private_preset_needs_no_image(folder: Path) -> None:
    edit(folder, "access_mode: public", "access_mode: private")
    edit(folder, f"  name: kaito-{NAME}", "  name: null")
    edit(folder, '  tag: "0.0.2"', "  tag: null")
    assert load_presets(folder)[NAME].is_private


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  disk_gib: 50", "  disk_gib: 50Gi", ("Expected `int`", "inference.disk_gib")),
        ("  disk_gib: 50", "  disk_gib: 0", (">= 1", "inference.disk_gib")),
        ("  gpu_count: 1", "  gpu_counts: 1", ("gpu_counts", "inference")),
        ("family: Phi3\n", "", ("family",)),
        ("family: Phi3", 'family: ""', ("family",)),
        ("runtime: tfs", "runtime: onnx", ("onnx", "runtime")),
        ('"0.0.2"', "0.2", ("Expected `str | null`", "image.tag")),
        ("methods: [lora, qlora]", "methods: [full]", ("full", "tuning.methods")),
        ('gpu_ids: "all"', "gpu_ids: 1", ("Expected `str`", "launch_params")),
        (f"name: {NAME}", "name: other", ("name of the file", "`name`")),
        ("access_mode: public", "access_mode: private", ("private one neither", "image.name")),
        (
            "distributed_inference: false",
            "distributed_inference: true",
            ("spreads over nodes", "inference.world_size"),
        ),
        (
            "  per_gpu_memory_gib: 0",
            "  per_gpu_memory_gib: 99",
            ("minimum", "inference.total_gpu_memory_gib"),
        ),
        ("image:\n", "image: [\n", ("not YAML",)),
    ],
)
def test_a_wrong_file_is_named_with_its_field(
    folder: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    edit(folder, old, new)
    with pytest.raises(InvalidPreset) as wrong:
        load_presets(folder)
    for word in (f"{NAME}.yaml", *words):
        assert word in str(wrong.value)


def test_a_file_that_is_no_map_is_named(folder: Path) -> None:
    (folder / "x.yaml").write_text("- 1\n")
    with pytest.raises(InvalidPreset, match=r"x\.yaml"):
        load_presets(folder)


def test_a_folder_without_presets_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidPreset, match="no preset files"):
        load_presets(tmp_path)
