"""What is wrong with a Workspace, all of it at once (facts §4.2 to §4.4). Pure, never raises.

The same rules run in the ``validate`` step and in the optional webhook. What the CRD refuses by
structure is checked again here: an object may have been stored before the CRD had the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
    MAX_NODES,
    DataDestination,
    DataSource,
    InferenceSpec,
    LabelSelector,
    PresetSpec,
    ResourceSpec,
    TuningSpec,
    Workspace,
)
from kaito.constants import RESERVED_LABEL_PREFIXES


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    ``field``: its path; ``reason``: a row of the reason catalogue; ``brief``: the remedy where it
    is repeated, without a long list; empty when ``remedy`` is short enough.
    """

    field: str
    message: str
    remedy: str
    reason: str
    brief: str = ""

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
_CLUSTER_DOMAINS: Final = ("kubernetes.io", "k8s.io", "kubernetes.azure.com")
"""Whose labels kubelet and AKS alone put on nodes; a pool that asks for one is refused (P2.2)."""
_SUGGESTIONS: Final = 3
_BRIEF: Final = 5
_MAX_COMPARED: Final = 200
"""Characters of a name that are looked at for what it was meant to be: the time is their square."""


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
    if resource.count > MAX_NODES:
        yield Fault(
            "resource.count",
            f"It is {resource.count}, and each node takes one of the {MAX_NODES} node pools that a"
            " cluster can have.",
            f"Use {MAX_NODES} or less.",
            "TooManyNodes",
        )
    name = resource.instance_type
    sku = find_sku(name, skus)
    if sku is None and not is_newer_azure_size(name, skus):
        remedy, brief = _one_of(name, current_names(skus))
        yield Fault(
            "resource.instanceType",
            f"There is no instance type {name!r} with a GPU in the configured cloud.",
            remedy,
            "UnsupportedInstanceType",
            brief,
        )
    elif needs_gpu and not has_nvidia_gpu(name, sku):
        known = current_names(skus)
        yield Fault(
            "resource.instanceType",
            f"{name} has no NVIDIA GPU, which every preset needs.",
            _use(known),
            "UnsupportedInstanceType",
            _brief(name, known),
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
    labels = selector.labels()
    ignored = reserved_keys(selector)
    if len(labels) == len(ignored) and all(e.key in labels for e in selector.match_expressions):
        yield Fault(
            path,
            f"It has only keys that the operator sets itself: {', '.join(ignored)}."
            if ignored
            else "It is empty: every node of the cluster would match.",
            'Give it a label, for example matchLabels: {"apps": "my-model"}.',
            "InvalidSelector",
        )
    for key, value in labels.items():
        if domain := _cluster_domain(key):
            yield Fault(
                path,
                f"No new node can get the label {key}: labels under {domain} are given by"
                " Kubernetes and AKS only.",
                'Use a key of your own, for example matchLabels: {"apps": "my-model"}.',
                "InvalidSelector",
            )
        elif not _is_label(key, value):
            yield Fault(
                path,
                f"{key}={value} is not a label that a node can have.",
                "Use up to 63 of A-Z, a-z, 0-9, -, _ and . in key and value.",
                "InvalidSelector",
            )


def reserved_keys(selector: LabelSelector) -> list[str]:
    """Keys of the selector that are the operator's to set, sorted: ours win (rule G7)."""
    return sorted(k for k in selector.labels() if k.startswith(RESERVED_LABEL_PREFIXES))


def _cluster_domain(key: str) -> str:
    """The domain that keeps a label from a new node; empty when none does."""
    prefix, _, _ = key.rpartition("/")
    return next((d for d in _CLUSTER_DOMAINS if prefix == d or prefix.endswith(f".{d}")), "")


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
        yield _not_yet("resource.count", "A model that is spread over nodes", "Set it to 1.")
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
        yield _not_yet("inference.template", "A pod template", "Use inference.preset.")
    if len(inference.adapters) > MAX_ADAPTERS:
        yield Fault(
            "inference.adapters",
            f"There are {len(inference.adapters)} adapters.",
            f"Use at most {MAX_ADAPTERS}.",
            "InvalidSpec",
        )
    if inference.adapters:
        yield _not_yet("inference.adapters", "An adapter", "Take them out.")


def _preset(path: str, spec: PresetSpec, presets: Presets) -> Iterator[Fault]:
    preset = presets.get(spec.name)
    if preset is None:
        remedy, brief = _one_of(spec.name, sorted(presets))
        yield Fault(
            f"{path}.name", f"There is no preset {spec.name!r}.", remedy, "UnknownPreset", brief
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
    yield _not_yet("tuning", "Tuning", "Use inference.preset.")
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
        able = sorted(name for name, p in presets.items() if p.supports_tuning)
        yield Fault(
            "tuning.preset.name",
            f"{tuning.preset.name} cannot be tuned.",
            _use(able),
            "TuningNotSupported",
            _brief(tuning.preset.name, able),
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


def _not_yet(path: str, what: str, remedy: str) -> Fault:
    return Fault(path, f"{what} cannot be used with this release yet.", remedy, "NotSupportedYet")


def _bad_image(path: str, image: str) -> Fault:
    return Fault(
        path,
        f"{image!r} is not the name of an image.",
        "Write registry/repository:tag, the repository in lower case.",
        "InvalidSpec",
    )


def _one_of(name: str, known: Sequence[str]) -> tuple[str, str]:
    """Remedy and brief: what the name was likely meant to be, else all there is."""
    near = _near(name, known, _SUGGESTIONS, alike=0.6)
    return (_use(near), "") if near else (_use(known), _brief(name, known))


def _use(names: Sequence[str]) -> str:
    return f"Use one of: {', '.join(names)}."


def _brief(name: str, known: Sequence[str]) -> str:
    if len(known) <= _BRIEF:
        return ""
    return f"{_use(_near(name, known, _BRIEF, alike=0.0))} SpecValid lists all {len(known)}."


def _near(name: str, known: Sequence[str], most: int, *, alike: float) -> list[str]:
    from difflib import get_close_matches  # lazy: only a typing error needs it

    folded = {each.lower(): each for each in known}
    found = get_close_matches(name.lower()[:_MAX_COMPARED], folded, n=most, cutoff=alike)
    return sorted(folded[match] for match in found)


def _is_label(key: str, value: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and not (len(prefix) <= 253 and _LABEL_PREFIX.fullmatch(prefix)):
        return False
    return bool(_LABEL_NAME.fullmatch(name)) and (not value or bool(_LABEL_NAME.fullmatch(value)))
