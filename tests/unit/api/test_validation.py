from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kaito.api.meta import ObjectMeta
from kaito.api.reasons import REASONS
from kaito.api.validation import Fault, faults
from kaito.api.workspace import Workspace
from kaito.catalog import skus
from kaito.catalog.presets import load_presets

EXAMPLES = Path(__file__).parents[3] / "examples"


@dataclass(frozen=True)
class Needs:
    gpu_count: int = 1
    total_gpu_memory_gib: int = 9
    per_gpu_memory_gib: int = 0
    world_size: int | None = None


@dataclass(frozen=True)
class Facts:
    inference: Needs = field(default_factory=Needs)
    is_private: bool = False
    supports_distributed_inference: bool = False
    supports_tuning: bool = True


PRESETS: Mapping[str, Facts] = {
    "phi-3-mini-4k-instruct": Facts(),
    "phi-3-mini-128k-instruct": Facts(),
    "falcon-7b-instruct": Facts(supports_tuning=False),
    "falcon-40b": Facts(Needs(gpu_count=2, total_gpu_memory_gib=90)),
    "llama-2-7b": Facts(Needs(per_gpu_memory_gib=14), is_private=True, supports_tuning=False),
    "llama-2-70b": Facts(
        Needs(8, 152, 19, 8), is_private=True, supports_distributed_inference=True
    ),
    "colossus": Facts(Needs(total_gpu_memory_gib=100_000)),
}
IMAGE = {"image": "registry.example.com:5000/team/model:1.0"}
PRIVATE = {"accessMode": "private", "presetOptions": IMAGE}
SELECTOR = {"matchLabels": {"apps": "phi"}}
TUNING = {
    "preset": {"name": "phi-3-mini-4k-instruct"},
    "method": "qlora",
    "input": {"urls": ["https://example.com/data"]},
    "output": {"image": "example.com/tuned:0.0.1", "imagePushSecret": "push"},
}


def workspace(*, name: str = "w", **sections: Any) -> Workspace:
    return Workspace.model_validate({"metadata": ObjectMeta(name=name)} | sections)


def serving(
    preset: str = "phi-3-mini-4k-instruct",
    *,
    name: str = "w",
    resource: Mapping[str, Any] = {},
    options: Mapping[str, Any] = {},
    **inference: Any,
) -> Workspace:
    base = {"instanceType": "Standard_NC6s_v3", "labelSelector": SELECTOR}
    return workspace(
        name=name,
        resource=base | resource,
        inference={"preset": {"name": preset} | options} | inference,
    )


def tuning(resource: Mapping[str, Any] = {}, **changes: Any) -> Workspace:
    base = {"instanceType": "Standard_NC6s_v3", "labelSelector": SELECTOR}
    return workspace(resource=base | resource, tuning=TUNING | changes)


def found(ws: Workspace, table: Mapping[str, skus.Sku] = skus.AZURE) -> tuple[Fault, ...]:
    return faults(ws, presets=PRESETS, skus=table)


def seen(ws: Workspace, table: Mapping[str, skus.Sku] = skus.AZURE) -> set[tuple[str, str]]:
    return {(fault.field, fault.reason) for fault in found(ws, table)}


TYPE = "resource.instanceType"
SELECT = "resource.labelSelector"
IMAGE_FIELD = "inference.preset.presetOptions.image"


@pytest.mark.parametrize(
    "ws",
    [
        serving(),
        serving(resource={"count": 3}),
        serving(resource={"instanceType": "standard_nc6S_v3"}),
        serving(resource={"instanceType": "Standard_NC999_of_tomorrow"}),
        serving(
            resource={
                "labelSelector": {
                    "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]
                }
            }
        ),
        serving(resource={"labelSelector": {"matchLabels": {"example.com/a": ""}}}),
        serving("llama-2-7b", options=PRIVATE),
        serving(options=PRIVATE),
        serving(name="a" * 63),
        serving("falcon-40b", resource={"instanceType": "Standard_NC48ads_A100_v4"}),
        serving("llama-2-70b", options=PRIVATE, resource={"instanceType": "Standard_ND96asr_v4"}),
    ],
)
def test_a_good_workspace_has_no_fault(ws: Workspace) -> None:
    assert found(ws) == ()


@pytest.mark.parametrize(
    ("ws", "expected"),
    [
        # C1, C2, C8, C9: one of each pair.
        (
            workspace(resource={"instanceType": "Standard_NC6s_v3", "labelSelector": SELECTOR}),
            {("inference", "InvalidSpec")},
        ),
        (
            workspace(
                resource={"instanceType": "Standard_NC6s_v3", "labelSelector": SELECTOR},
                inference={"preset": {"name": "phi-3-mini-4k-instruct"}},
                tuning=TUNING,
            ),
            {("tuning", "InvalidSpec"), ("tuning", "NotSupportedYet")},
        ),
        (
            workspace(
                resource={"instanceType": "Standard_NC6s_v3", "labelSelector": SELECTOR},
                inference={},
            ),
            {("inference", "InvalidSpec")},
        ),
        (
            serving(template={"spec": {}}),
            {("inference.template", "InvalidSpec"), ("inference.template", "NotSupportedYet")},
        ),
        # C3 to C5: each replica of a preset that does not spread needs it all on one node.
        (serving("falcon-40b"), {(TYPE, "InsufficientGpus")}),
        (serving("falcon-40b", resource={"count": 2}), {(TYPE, "InsufficientGpus")}),
        (
            serving("falcon-40b", resource={"instanceType": "Standard_NC12s_v3", "count": 9}),
            {(TYPE, "InsufficientGpuMemory")},
        ),
        (
            serving("llama-2-7b", options=PRIVATE, resource={"instanceType": "Standard_NV48s_v3"}),
            {(TYPE, "InsufficientGpuMemory")},
        ),
        (serving("colossus"), {(TYPE, "InsufficientGpuMemory")}),
        (
            serving(
                "llama-2-70b",
                options=PRIVATE,
                resource={"instanceType": "Standard_ND96asr_v4", "count": 3},
            ),
            {("resource.count", "NotSupportedYet"), ("resource.count", "InvalidSpec")},
        ),
        # C6: the configured cloud's table, whatever the case.
        (serving(resource={"instanceType": "Huge"}), {(TYPE, "UnsupportedInstanceType")}),
        (serving(resource={"instanceType": "p3.2xlarge"}), {(TYPE, "UnsupportedInstanceType")}),
        (
            serving(resource={"instanceType": "Standard_D4s_v5"}),
            {(TYPE, "UnsupportedInstanceType")},
        ),
        (
            serving(resource={"instanceType": "Standard_NV32as_v4"}),
            {(TYPE, "UnsupportedInstanceType")},
        ),
        # C7: the selector says which labels a new node gets.
        (serving(resource={"labelSelector": {}}), {(SELECT, "InvalidSelector")}),
        (
            serving(
                resource={
                    "labelSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}
                }
            ),
            {(f"{SELECT}.matchExpressions[0]", "InvalidSelector")},
        ),
        (
            serving(
                resource={
                    "labelSelector": {
                        "matchLabels": {"a": "1"},
                        "matchExpressions": [{"key": "a", "operator": "In", "values": ["2"]}],
                    }
                }
            ),
            {(f"{SELECT}.matchExpressions[0]", "InvalidSelector")},
        ),
        (
            serving(resource={"labelSelector": {"matchLabels": {"a b": "c"}}}),
            {(SELECT, "InvalidSelector")},
        ),
        (
            serving(resource={"labelSelector": {"matchLabels": {"Bad_/a": "c"}}}),
            {(SELECT, "InvalidSelector")},
        ),
        (
            serving(resource={"labelSelector": {"matchLabels": {"a": "x" * 64}}}),
            {(SELECT, "InvalidSelector")},
        ),
        # C10 to C12: presets and their images.
        (serving("no-such-model"), {("inference.preset.name", "UnknownPreset")}),
        (serving("llama-2-7b"), {("inference.preset.accessMode", "PrivateImageRequired")}),
        (serving(options={"accessMode": "private"}), {(IMAGE_FIELD, "PrivateImageRequired")}),
        (
            serving(options={"accessMode": "private", "presetOptions": {"image": "a; rm -rf"}}),
            {(IMAGE_FIELD, "InvalidSpec")},
        ),
        (
            serving(options={"accessMode": "secret"}),
            {("inference.preset.accessMode", "InvalidSpec")},
        ),
        # C13, and what comes later.
        (
            serving(adapters=[{"source": {"name": f"a{n}", "image": "r/a:1"}} for n in range(11)]),
            {("inference.adapters", "InvalidSpec"), ("inference.adapters", "NotSupportedYet")},
        ),
        # C15, C16, C18 to C21: tuning.
        (tuning(), {("tuning", "NotSupportedYet")}),
        (tuning(method="LoRA"), {("tuning", "NotSupportedYet")}),
        (tuning(method="full"), {("tuning", "NotSupportedYet"), ("tuning.method", "InvalidSpec")}),
        (tuning({"count": 2}), {("tuning", "NotSupportedYet"), ("resource.count", "InvalidSpec")}),
        (tuning(input={}), {("tuning", "NotSupportedYet"), ("tuning.input", "InvalidSpec")}),
        (
            tuning(input={"urls": ["https://a"], "image": "Not An Image"}),
            {
                ("tuning", "NotSupportedYet"),
                ("tuning.input", "InvalidSpec"),
                ("tuning.input.image", "InvalidSpec"),
            },
        ),
        (
            tuning(input={"volumeSource": {}}),
            {("tuning", "NotSupportedYet"), ("tuning.input.volumeSource", "InvalidSpec")},
        ),
        (
            tuning(output={}),
            {("tuning", "NotSupportedYet"), ("tuning.output.image", "InvalidSpec")},
        ),
        (
            tuning(output={"volumeSource": {}}),
            {("tuning", "NotSupportedYet"), ("tuning.output.volumeSource", "InvalidSpec")},
        ),
        (
            tuning(output={"image": "example.com/$(id):1"}),
            {
                ("tuning", "NotSupportedYet"),
                ("tuning.output.imagePushSecret", "InvalidSpec"),
                ("tuning.output.image", "InvalidSpec"),
            },
        ),
        (tuning(preset=None), {("tuning", "NotSupportedYet"), ("tuning.preset", "InvalidSpec")}),
        (
            tuning(preset={"name": "x"}),
            {("tuning", "NotSupportedYet"), ("tuning.preset.name", "UnknownPreset")},
        ),
        (
            tuning(preset={"name": "falcon-7b-instruct"}),
            {("tuning", "NotSupportedYet"), ("tuning.preset.name", "TuningNotSupported")},
        ),
        # Names become a Service, a label and a container.
        (serving(name="a" * 64), {("metadata.name", "InvalidName")}),
        (serving(name="has.dot"), {("metadata.name", "InvalidName")}),
        (serving(name="1st"), {("metadata.name", "InvalidName")}),
        (
            serving(
                "llama-2-70b",
                name="a" * 53,
                options=PRIVATE,
                resource={"instanceType": "Standard_ND96asr_v4"},
            ),
            {("metadata.name", "InvalidName")},
        ),
        (serving(resource={"count": 0}), {("resource.count", "InvalidSpec")}),
        # D5: a limit, enforced before spending.
        (serving(resource={"count": 100}), set()),
        (serving(resource={"count": 101}), {("resource.count", "TooManyNodes")}),
        (serving(resource={"count": 1_000_000}), {("resource.count", "TooManyNodes")}),
        (
            workspace(inference={"preset": {"name": "phi-3-mini-4k-instruct"}}),
            {("resource", "InvalidSpec")},
        ),
    ],
)
def test_each_rule_names_field_and_reason(ws: Workspace, expected: set[tuple[str, str]]) -> None:
    """Facts §4.2, §4.4: C1 to C21."""
    assert seen(ws) == expected
    for fault in found(ws):
        assert fault.message.endswith(".")
        assert fault.remedy.endswith(".")
        assert fault.reason in REASONS
        assert not REASONS[fault.reason].retried


def test_all_faults_are_returned_at_once() -> None:
    bad = serving(
        "no-such-model",
        name="A",
        resource={"count": 0, "instanceType": "Huge", "labelSelector": {}},
        options={"accessMode": "private"},
    )
    assert [fault.field for fault in found(bad)] == [
        "metadata.name",
        "resource.count",
        TYPE,
        SELECT,
        "inference.preset.name",
        IMAGE_FIELD,
    ]


def test_a_misspelt_preset_is_told_the_near_ones() -> None:
    """C10."""
    (fault,) = found(serving("Phi-3-mini-4k"))
    assert "phi-3-mini-4k-instruct" in fault.remedy
    assert "falcon-40b" not in fault.remedy
    assert str(fault).startswith("inference.preset.name: There is no preset 'Phi-3-mini-4k'.")


def test_a_preset_unlike_any_other_is_told_all_of_them() -> None:
    (fault,) = found(serving("zzz"))
    assert all(name in fault.remedy for name in PRESETS)


def test_a_misspelt_instance_type_is_told_the_near_ones() -> None:
    (fault,) = found(serving(resource={"instanceType": "NC6s_v3"}))
    assert "Standard_NC6s_v3" in fault.remedy


def test_a_model_that_does_not_fit_is_told_the_smallest_that_do() -> None:
    """No retired GPU is suggested, and none that no pod of ours could use."""
    (fault,) = found(serving("falcon-40b"))
    assert fault.message == "falcon-40b does not fit: Standard_NC6s_v3 has 1 GPU, it needs 2."
    assert fault.remedy == (
        "The smallest that fit: Standard_NC48ads_A100_v4, Standard_NC80adis_H100_v5,"
        " Standard_ND40rs_v2."
    )


def test_a_model_that_fits_nowhere_is_told_so() -> None:
    (fault,) = found(serving("colossus"))
    assert fault.remedy == "No known instance type fits."


def test_each_cloud_has_its_own_instance_types() -> None:
    """Facts §14: upstream refused AWS types, knowing Azure's only."""
    aws = serving(resource={"instanceType": "p3.2xlarge"})
    assert seen(aws, skus.AWS) == set()
    assert seen(serving(), skus.AWS) == {(TYPE, "UnsupportedInstanceType")}


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_examples_have_no_fault(path: Path) -> None:
    manifest = yaml.safe_load(path.read_text())
    ws = Workspace.model_validate(
        manifest | {"metadata": ObjectMeta(name=manifest["metadata"]["name"])}
    )
    assert faults(ws, presets=load_presets(), skus=skus.AZURE) == ()


TEXT = st.text(max_size=70)
ANY_WORKSPACE = st.fixed_dictionaries(
    {},
    optional={
        "resource": st.fixed_dictionaries(
            {},
            optional={
                "count": st.integers(),
                "instanceType": TEXT | st.sampled_from([*skus.SKUS]),
                "labelSelector": st.fixed_dictionaries(
                    {},
                    optional={
                        "matchLabels": st.dictionaries(TEXT, TEXT, max_size=2),
                        "matchExpressions": st.lists(
                            st.fixed_dictionaries(
                                {"key": TEXT, "operator": TEXT, "values": st.lists(TEXT)}
                            ),
                            max_size=2,
                        ),
                    },
                ),
            },
        ),
        "inference": st.fixed_dictionaries(
            {},
            optional={
                "preset": st.fixed_dictionaries(
                    {"name": TEXT | st.sampled_from([*PRESETS])},
                    optional={
                        "accessMode": TEXT,
                        "presetOptions": st.fixed_dictionaries({"image": TEXT}),
                    },
                ),
                "template": st.just({}),
            },
        ),
        "tuning": st.just(TUNING),
    },
)


@given(name=TEXT, sections=ANY_WORKSPACE)
@settings(max_examples=200, deadline=None)
def test_validation_never_raises_whatever_is_written(name: str, sections: Any) -> None:
    """Facts §14: one bad object crashed the whole operator."""
    for fault in found(workspace(name=name, **sections)):
        assert fault.field
        assert fault.remedy
        assert fault.reason in REASONS
