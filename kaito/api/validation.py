"""What is wrong with a Workspace, all of it at once (facts §4.2 to §4.4). Pure, never raises.

The same rules run in the ``validate`` step and in the optional webhook. What the CRD refuses by
structure is checked again here: an object may have been stored before the CRD had the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from kaito.api.fitting import (
    PresetFacts,
    Presets,
    Skus,
    current_names,
    find_sku,
    has_nvidia_gpu,
    is_newer_azure_size,
    shortfall,
    smallest_fitting,
)
from kaito.api.workspace import (
    MAX_ADAPTERS,
    DataDestination,
    DataSource,
    InferenceSpec,
    LabelSelector,
    PresetSpec,
    ResourceSpec,
    TuningSpec,
    Workspace,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. ``field``: its path; ``reason``: a row of the reason catalogue."""

    field: str
    message: str
    remedy: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message} {self.remedy}"


# Names become a Service, a label and a container; a StatefulSet's pods carry a revision label too.
_MAX_NAME: Final = 63
_MAX_NAME_DISTRIBUTED: Final = 52
_DNS_1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX: Final = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_IMAGE: Final = re.compile(
    r"([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]+)?/)?"
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_METHODS: Final = ("lora", "qlora")
_SUGGESTIONS: Final = 3


def faults(workspace: Workspace, *, presets: Presets, skus: Skus) -> tuple[Fault, ...]:
    """Every fault, in the order of the fields; empty when there is none.

    ``skus``: the instance types of the configured cloud, by name.
    """
    return tuple(_faults(workspace, presets, skus))


def _faults(workspace: Workspace, presets: Presets, skus: Skus) -> Iterator[Fault]:
    resource = workspace.resource
    served = workspace.inference.preset if workspace.inference else None
    preset = presets.get(served.name) if served else None
    yield from _name(workspace.metadata.name, preset)
    yield from _resource(resource, skus, needs_gpu=served is not None)
    if resource is not None and served is not None and preset is not None:
        yield from _fit(resource, served.name, preset, skus)
    yield from _mode(workspace)
    if workspace.inference is not None:
        yield from _inference(workspace.inference, presets)
    if workspace.tuning is not None:
        yield from _tuning(workspace, workspace.tuning, presets)


def _name(name: str, preset: PresetFacts | None) -> Iterator[Fault]:
    distributed = preset is not None and preset.supports_distributed_inference
    longest = _MAX_NAME_DISTRIBUTED if distributed else _MAX_NAME
    if len(name) > longest or not _DNS_1035.fullmatch(name):
        yield Fault(
            "metadata.name",
            f"The name {name!r} cannot be given to the Service and the pods of the Workspace.",
            f"Use at most {longest} of a-z, 0-9 and -, a letter first.",
            "InvalidName",
        )


def _resource(resource: ResourceSpec | None, skus: Skus, *, needs_gpu: bool) -> Iterator[Fault]:
    if resource is None:
        yield Fault(
            "resource",
            "It is missing: nothing says which nodes to use.",
            "Add resource with instanceType and labelSelector.",
            "InvalidSpec",
        )
        return
    if resource.count < 1:
        yield Fault("resource.count", f"It is {resource.count}.", "Use 1 or more.", "InvalidSpec")
    name = resource.instance_type
    sku = find_sku(name, skus)
    if sku is None and not is_newer_azure_size(name, skus):
        yield Fault(
            "resource.instanceType",
            f"There is no instance type {name!r} with a GPU in the configured cloud.",
            f"Use one of: {', '.join(_near(name, skus) or current_names(skus))}.",
            "UnsupportedInstanceType",
        )
    elif needs_gpu and not has_nvidia_gpu(name, sku):
        yield Fault(
            "resource.instanceType",
            f"{name} has no NVIDIA GPU, which every preset needs.",
            f"Use one of: {', '.join(current_names(skus))}.",
            "UnsupportedInstanceType",
        )
    yield from _selector(resource.label_selector)


def _selector(selector: LabelSelector) -> Iterator[Fault]:
    path = "resource.labelSelector"
    for index, entry in enumerate(selector.match_expressions):
        if entry.operator != "In" or len(entry.values) != 1:
            yield Fault(
                f"{path}.matchExpressions[{index}]",
                f"{entry.operator} with {len(entry.values)} values does not say which label a new"
                " node gets.",
                "Use In with one value, or matchLabels.",
                "InvalidSelector",
            )
        elif selector.match_labels.get(entry.key, entry.values[0]) != entry.values[0]:
            yield Fault(
                f"{path}.matchExpressions[{index}]",
                f"It asks for another value of {entry.key} than matchLabels does.",
                "Keep one of the two.",
                "InvalidSelector",
            )
    if not selector.match_labels and not selector.match_expressions:
        yield Fault(
            path,
            "It is empty: every node of the cluster would match.",
            'Give it a label, for example matchLabels: {"apps": "my-model"}.',
            "InvalidSelector",
        )
    for key, value in selector.labels().items():
        if not _is_label(key, value):
            yield Fault(
                path,
                f"{key}={value} is not a label that a node can have.",
                "Use up to 63 of A-Z, a-z, 0-9, -, _ and . in key and value.",
                "InvalidSelector",
            )


def _fit(resource: ResourceSpec, model: str, preset: PresetFacts, skus: Skus) -> Iterator[Fault]:
    """C3 to C5: the nodes together, or each of them where every node serves a whole model."""
    sku, nodes = find_sku(resource.instance_type, skus), resource.count
    if sku is None or not sku.has_nvidia_gpu or nodes < 1:
        return
    lacking = shortfall(preset, sku, nodes)
    if lacking is not None:
        reason, message = lacking
        fitting = ", ".join(smallest_fitting(preset, nodes, skus))
        yield Fault(
            "resource.instanceType",
            f"{model} does not fit: {message}",
            f"The smallest that fit: {fitting}." if fitting else "No known instance type fits.",
            reason,
        )
    if preset.supports_distributed_inference and nodes > 1:
        yield _not_yet("resource.count", "A model that is spread over nodes")
    world = preset.inference.world_size
    if preset.supports_distributed_inference and world is not None and world % nodes:
        divisors = [str(n) for n in range(1, world + 1) if world % n == 0]
        yield Fault(
            "resource.count",
            f"{model} runs as {world} processes, which {nodes} nodes cannot share evenly.",
            f"Use {' or '.join(divisors)} nodes.",
            "InvalidSpec",
        )


def _mode(workspace: Workspace) -> Iterator[Fault]:
    if workspace.inference is None and workspace.tuning is None:
        yield Fault(
            "inference",
            "The Workspace has neither inference nor tuning.",
            "Add one of them.",
            "InvalidSpec",
        )
    if workspace.inference is not None and workspace.tuning is not None:
        yield Fault(
            "tuning",
            "The Workspace has both inference and tuning.",
            "Keep one of them.",
            "InvalidSpec",
        )


def _inference(inference: InferenceSpec, presets: Presets) -> Iterator[Fault]:
    if inference.preset is None and inference.template is None:
        yield Fault(
            "inference",
            "It has neither a preset nor a template.",
            "Add inference.preset.name.",
            "InvalidSpec",
        )
    if inference.preset is not None and inference.template is not None:
        yield Fault(
            "inference.template",
            "It cannot be given together with a preset.",
            "Keep one of the two.",
            "InvalidSpec",
        )
    if inference.preset is not None:
        yield from _preset("inference.preset", inference.preset, presets)
    if inference.template is not None:
        yield _not_yet("inference.template", "Pod templates")
    if len(inference.adapters) > MAX_ADAPTERS:
        yield Fault(
            "inference.adapters",
            f"There are {len(inference.adapters)} adapters.",
            f"Use at most {MAX_ADAPTERS}.",
            "InvalidSpec",
        )
    if inference.adapters:
        yield _not_yet("inference.adapters", "Adapters")


def _preset(path: str, spec: PresetSpec, presets: Presets) -> Iterator[Fault]:
    preset = presets.get(spec.name)
    if preset is None:
        yield Fault(
            f"{path}.name",
            f"There is no preset {spec.name!r}.",
            f"Use one of: {', '.join(_near(spec.name, presets) or sorted(presets))}.",
            "UnknownPreset",
        )
    if spec.access_mode not in ("public", "private"):
        yield Fault(
            f"{path}.accessMode",
            f"It is {spec.access_mode!r}.",
            "Use public or private.",
            "InvalidSpec",
        )
    private = spec.access_mode == "private"
    if preset is not None and preset.is_private and not private:
        yield Fault(
            f"{path}.accessMode",
            f"{spec.name} has no public image.",
            "Set accessMode to private and presetOptions.image to your image of the model.",
            "PrivateImageRequired",
        )
    image = spec.preset_options.image
    if private and not image:
        yield Fault(
            f"{path}.presetOptions.image",
            "It is missing, and accessMode is private.",
            "Set it to your image of the model.",
            "PrivateImageRequired",
        )
    if private and image and not _IMAGE.fullmatch(image):
        yield _bad_image(f"{path}.presetOptions.image", image)


def _tuning(workspace: Workspace, tuning: TuningSpec, presets: Presets) -> Iterator[Fault]:
    yield _not_yet("tuning", "Tuning")
    if workspace.resource is not None and workspace.resource.count > 1:
        yield Fault("resource.count", "Tuning runs on one node.", "Set it to 1.", "InvalidSpec")
    if tuning.method.lower() not in _METHODS:
        yield Fault(
            "tuning.method", f"It is {tuning.method!r}.", "Use lora or qlora.", "InvalidSpec"
        )
    yield from _source("tuning.input", tuning.input)
    yield from _destination("tuning.output", tuning.output)
    if tuning.preset is None:
        yield Fault("tuning.preset", "It is missing.", "Name the model to tune.", "InvalidSpec")
        return
    yield from _preset("tuning.preset", tuning.preset, presets)
    preset = presets.get(tuning.preset.name)
    if preset is not None and not preset.supports_tuning:
        able = ", ".join(sorted(name for name, p in presets.items() if p.supports_tuning))
        yield Fault(
            "tuning.preset.name",
            f"{tuning.preset.name} cannot be tuned.",
            f"Use one of: {able}.",
            "TuningNotSupported",
        )


def _source(path: str, source: DataSource) -> Iterator[Fault]:
    if source.volume_source is not None:
        yield Fault(
            f"{path}.volumeSource", "It is not supported.", "Use urls or image.", "InvalidSpec"
        )
    given = bool(source.urls) + bool(source.image) + (source.volume_source is not None)
    if given != 1:
        yield Fault(
            path,
            f"It gives {given or 'none'} of urls, image and volumeSource.",
            "Give exactly one of urls and image.",
            "InvalidSpec",
        )
    if source.image and not _IMAGE.fullmatch(source.image):
        yield _bad_image(f"{path}.image", source.image)


def _destination(path: str, destination: DataDestination) -> Iterator[Fault]:
    if destination.volume_source is not None:
        yield Fault(f"{path}.volumeSource", "It is not supported.", "Use image.", "InvalidSpec")
    elif not destination.image:
        yield Fault(
            f"{path}.image",
            "It is missing: the result would be lost.",
            "Name the image to push the result as.",
            "InvalidSpec",
        )
    if destination.image and not destination.image_push_secret:
        yield Fault(
            f"{path}.imagePushSecret",
            "It is missing, and an image is to be pushed.",
            "Name a Secret of type kubernetes.io/dockerconfigjson.",
            "InvalidSpec",
        )
    if destination.image and not _IMAGE.fullmatch(destination.image):
        yield _bad_image(f"{path}.image", destination.image)


def _not_yet(path: str, what: str) -> Fault:
    return Fault(
        path,
        f"{what} cannot be used with this release yet.",
        "Use an inference preset, or wait for a release that has it.",
        "NotSupportedYet",
    )


def _bad_image(path: str, image: str) -> Fault:
    return Fault(
        path,
        f"{image!r} is not the name of an image.",
        "Write registry/repository:tag, the repository in lower case.",
        "InvalidSpec",
    )


def _near(name: str, known: Mapping[str, object]) -> list[str]:
    from difflib import get_close_matches  # lazy: only a typing error needs it

    folded = {each.lower(): each for each in sorted(known)}
    return [folded[match] for match in get_close_matches(name.lower(), folded, n=_SUGGESTIONS)]


def _is_label(key: str, value: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and not (len(prefix) <= 253 and _LABEL_PREFIX.fullmatch(prefix)):
        return False
    return bool(_LABEL_NAME.fullmatch(name)) and (not value or bool(_LABEL_NAME.fullmatch(value)))
