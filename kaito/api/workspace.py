"""The Workspace of ``kaito.sh/v1alpha1``: what a user writes (facts §2) and what we tell of it.

There is no ``spec``: resource, inference, tuning and status stand at the top. Descriptions are what
``kubectl explain`` shows. Rules that only the API server checks ride along as CEL; what a schema
must not refuse (an unknown preset, an instance type nobody has) is ``validation.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, WithJsonSchema

from kaito.api.meta import ConditionView, Undecodable
from kaito.api.schema import (
    READS_CONDITIONS,
    RECREATE,
    Metadata,
    Model,
    decoder,
    envelope_of,
    immutable,
    rule,
    rules,
    shows_conditions,
)
from kaito.constants import DEFAULT_INSTANCE_TYPE

MAX_ADAPTERS: Final = 10
MAX_NODES: Final = 100
"""Slots that a Workspace can have: an AKS cluster takes 100 node pools, and each node is one."""
MAX_COUNT: Final = 1000
"""What the schema lets in. Above MAX_NODES the Workspace says itself why nothing is bought."""

Opaque = Annotated[
    Mapping[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""A core type kept as written, fields of any Kubernetes version included."""

_CONDITION: Final[Mapping[str, Any]] = {
    "type": {
        "type": "string",
        "description": "Which aspect of the Workspace this is about.",
        "maxLength": 316,
        "pattern": (
            r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
            r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
        ),
    },
    "status": {
        "type": "string",
        "description": "True, False or Unknown.",
        "enum": ["True", "False", "Unknown"],
    },
    "observedGeneration": {
        "type": "integer",
        "format": "int64",
        "minimum": 0,
        "description": "The metadata.generation that this was found for.",
    },
    "lastTransitionTime": {
        "type": "string",
        "format": "date-time",
        "description": "When the status last changed from one value to another.",
    },
    "reason": {
        "type": "string",
        "description": "The cause in one word; the message says what to do about it.",
        "minLength": 1,
        "maxLength": 1024,
        "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
    },
    "message": {
        "type": "string",
        "description": "What happened and what to do about it.",
        "maxLength": 32768,
    },
}


class LabelSelectorRequirement(Model):
    """A condition on one label."""

    key: str = Field(description="Label that the condition is about.")
    operator: str = Field(
        description="Only In with one value says which label a new node gets; others are refused."
    )
    values: tuple[str, ...] = Field(
        (),
        description="Values that the operator compares with.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class LabelSelector(Model):
    """Labels that name a set of nodes."""

    match_labels: Mapping[str, str] = Field({}, description="Labels with exactly these values.")
    match_expressions: tuple[LabelSelectorRequirement, ...] = Field(
        (),
        description="Further conditions; all of them must hold.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )

    def labels(self) -> dict[str, str]:
        """The selector as plain labels: matchLabels, and ``In`` with one value.

        Any other expression says nothing that a new node could be given; validation refuses it.
        """
        single = {
            e.key: e.values[0]
            for e in self.match_expressions
            if e.operator == "In" and len(e.values) == 1
        }
        return single | dict(self.match_labels)


class ResourceSpec(Model):
    """The nodes that the Workspace runs on."""

    count: int = Field(
        1,
        description=(
            "Number of nodes, 100 at most. A model that cannot be spread over nodes gets one"
            " replica per node."
        ),
        json_schema_extra={"minimum": 1, "maximum": MAX_COUNT} | immutable("resource.count"),
    )
    instance_type: str = Field(
        DEFAULT_INSTANCE_TYPE,
        description="VM size of the nodes, for example Standard_NC6s_v3.",
        json_schema_extra=immutable("resource.instanceType"),
    )
    # Required by the schema; an absent one in an old object reads as empty and is a fault.
    label_selector: LabelSelector = Field(
        LabelSelector(),
        description=(
            "Labels of the nodes: new ones get them. Keys of Kubernetes and AKS are refused, keys"
            " under kaito.sh/ and karpenter.sh/ are not used."
        ),
        json_schema_extra={"x-kubernetes-map-type": "atomic"} | immutable("resource.labelSelector"),
    )
    preferred_nodes: tuple[str, ...] = Field(
        (), description="Names of existing nodes to use first. Kept; this release does not use it."
    )

    model_config = ConfigDict(json_schema_extra={"required": ["labelSelector"]})


class PresetOptions(Model):
    """Details of a preset."""

    image: str = Field(
        "",
        description="Image of the model; needed when accessMode is private.",
        json_schema_extra=immutable("presetOptions.image"),
    )
    image_pull_secrets: tuple[str, ...] = Field(
        (),
        description=(
            "Names of Secrets, in the Workspace's namespace, to pull a private image with."
        ),
        json_schema_extra=immutable("presetOptions.imagePullSecrets"),
    )


def _kept(section: str, field: str) -> dict[str, Any]:
    """A field of a section is there after an edit if and only if it was before.

    An absent section and an empty one are the same: the original writes the latter.
    """
    here, before = (
        f"(has({it}.{section}) && has({it}.{section}.{field}))" for it in ("self", "oldSelf")
    )
    return rule(f"{here} == {before}", f"{section}.{field} is immutable: {RECREATE}")


class PresetSpec(Model):
    """A model that comes with its settings."""

    name: str = Field(
        description="Name of the preset, for example phi-3-mini-128k-instruct.",
        json_schema_extra=immutable("preset.name"),
    )
    access_mode: str = Field(
        "public",
        description=(
            "public: the image is the published one. private: presetOptions.image names it."
        ),
        json_schema_extra={"enum": ["public", "private"]} | immutable("preset.accessMode"),
    )
    preset_options: PresetOptions = Field(PresetOptions(), description="Details of the preset.")

    model_config = ConfigDict(
        json_schema_extra=rules(
            _kept("presetOptions", "image"), _kept("presetOptions", "imagePullSecrets")
        )
    )


_ONE_SOURCE: Final = rule(
    "(has(self.urls) && size(self.urls) > 0 ? 1 : 0)"
    " + (has(self.image) && self.image != '' ? 1 : 0)"
    " + (has(self.volumeSource) ? 1 : 0) == 1",
    "give exactly one of urls, image and volumeSource",
)
_NO_VOLUME: Final = rule(
    "!has(self.volumeSource)", "volumeSource is not supported: use urls or image"
)


class DataSource(Model):
    """Where data comes from: exactly one of urls and image."""

    name: str = Field("", description="Name of the source; of an adapter, the adapter's name.")
    urls: tuple[str, ...] = Field((), description="Addresses to download the data from.")
    volume_source: Opaque | None = Field(None, description="Not supported; refused.")
    image: str = Field("", description="Image that holds the data under /data.")
    image_pull_secrets: tuple[str, ...] = Field(
        (), description="Names of Secrets, in the Workspace's namespace, to pull the image with."
    )

    model_config = ConfigDict(json_schema_extra=rules(_ONE_SOURCE, _NO_VOLUME))


class DataDestination(Model):
    """Where results go."""

    volume_source: Opaque | None = Field(None, description="Not supported; refused.")
    image: str = Field("", description="Image to push the result as, with its tag.")
    image_push_secret: str = Field(
        "",
        description=(
            "Name of a Secret of type kubernetes.io/dockerconfigjson, in the Workspace's"
            " namespace, to push with."
        ),
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            _NO_VOLUME,
            rule(
                "has(self.volumeSource) || (has(self.image) && self.image != '')",
                "give the image to push the result as",
            ),
            rule(
                "!has(self.image) || self.image == ''"
                " || (has(self.imagePushSecret) && self.imagePushSecret != '')",
                "image needs imagePushSecret, the Secret to push it with",
            ),
        )
    )


class AdapterSpec(Model):
    """A LoRA adapter to load with the model."""

    source: DataSource | None = Field(None, description="Name and image of the adapter.")
    strength: str = Field(
        "", description="Weight of the adapter, a number from 0 to 1 in quotes; absent is 1.0."
    )


class InferenceSpec(Model):
    """A model to serve: a preset, or a pod template of your own."""

    preset: PresetSpec | None = Field(None, description="A model that comes with its settings.")
    template: Opaque | None = Field(
        None, description="Pod template (core/v1 PodTemplateSpec) to run instead of a preset."
    )
    adapters: tuple[AdapterSpec, ...] = Field(
        (),
        description="LoRA adapters to load with the preset's model.",
        json_schema_extra={"maxItems": MAX_ADAPTERS},
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.preset) || has(self.template)", "give a preset or a template"),
            rule(
                "!(has(self.preset) && has(self.template))",
                "preset and template cannot be given together",
            ),
            rule(
                "has(self.template) == has(oldSelf.template)",
                f"preset and template cannot be exchanged: {RECREATE}",
            ),
        )
    )


class TuningSpec(Model):
    """A model to fine-tune."""

    preset: PresetSpec | None = Field(None, description="The model to tune.")
    method: str = Field(
        "",
        description="lora or qlora.",
        json_schema_extra={"maxLength": 16}
        | rules(
            rule("self.lowerAscii() in ['lora', 'qlora']", "tuning.method must be lora or qlora"),
            rule(
                "self.lowerAscii() == oldSelf.lowerAscii()",
                f"tuning.method is immutable: {RECREATE}",
            ),
        ),
    )
    config: str = Field(
        "",
        description=(
            "Name of a ConfigMap, in the Workspace's namespace, with training_config.yaml; absent:"
            " the method's defaults."
        ),
    )
    input: DataSource = Field(
        description="Training data.",
        json_schema_extra=rules(
            rule(
                "has(self.name) == has(oldSelf.name)"
                " && (!has(self.name) || self.name == oldSelf.name)",
                f"tuning.input.name is immutable: {RECREATE}",
                field_path=".name",
            )
        ),
    )
    output: DataDestination = Field(description="Where the tuned weights go.")

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.preset)", "tuning.preset is required: name the model to tune"),
            rule(
                "has(self.preset) == has(oldSelf.preset)", f"tuning.preset is immutable: {RECREATE}"
            ),
            rule("has(self.method)", "tuning.method is required: lora or qlora"),
        )
    )


class NodeSlot(Model):
    """One of the nodes asked for, and who holds its place."""

    slot: int = Field(description="Place of the node, from 0.")
    name: str = Field("", description="Name of the Node, once there is one.")
    claim: str = Field("", description="Name of the Machine or NodeClaim that asked for it.")
    instance_type: str = Field("", description="VM size asked for.")
    zone: str = Field("", description="Zone of the Node.")
    phase: str = Field("", description="How far it is.")
    reason: str = Field("", description="Why it is no further, in one word.")
    asks: int = Field(0, description="How often it was asked for since it last was well.")
    last_asked: str = Field(
        "", description="When it was last asked for.", json_schema_extra={"format": "date-time"}
    )


class WorkspaceStatus(Model):
    """What was observed."""

    observed_generation: int = Field(
        0,
        description="The metadata.generation that this status is about.",
        json_schema_extra={"format": "int64"},
    )
    endpoint: str = Field("", description="Address inside the cluster that answers requests.")
    state: str = Field(
        "",
        description=(
            "Sum of it in one word: Pending, Ready or NotReady; of a tuning Workspace Pending,"
            " Running, Succeeded or Failed."
        ),
    )
    target_node_count: int = Field(0, description="Number of nodes the Workspace is to have.")
    worker_nodes: tuple[str, ...] = Field((), description="Names of the nodes in use, sorted.")
    nodes: tuple[NodeSlot, ...] = Field((), description="Every node asked for, by its place.")
    conditions: Annotated[
        tuple[ConditionView, ...],
        READS_CONDITIONS,
        shows_conditions(
            "One aspect of the Workspace's state.",
            ("type", "status", "lastTransitionTime", "reason", "message"),
            _CONDITION,
        ),
    ] = Field(
        (), description="ResourceReady, InferenceReady, JobStarted, WorkspaceReady and others."
    )


class Workspace(Model):
    """A Workspace runs or tunes one model on GPU nodes that it brings up as needed."""

    metadata: Metadata
    resource: ResourceSpec | None = Field(None, description="The nodes that the Workspace runs on.")
    inference: InferenceSpec | None = Field(
        None, description="A model to serve. Give either inference or tuning."
    )
    tuning: TuningSpec | None = Field(
        None, description="A model to fine-tune. Give either inference or tuning."
    )
    status: WorkspaceStatus = Field(WorkspaceStatus(), description="What was observed.")

    # On create only: an object that an older release let in must stay editable and deletable.
    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "oldSelf.hasValue() || has(self.resource)",
                "resource.labelSelector is required: it says which nodes the Workspace runs on",
                reason="FieldValueRequired",
                field_path=".resource",
                create_too=True,
            ),
            rule(
                "oldSelf.hasValue() || has(self.inference) || has(self.tuning)",
                "give inference or tuning",
                create_too=True,
            ),
            rule(
                "oldSelf.hasValue() || !(has(self.inference) && has(self.tuning))",
                "inference and tuning cannot be given together",
                create_too=True,
            ),
            rule(
                "oldSelf.hasValue() || !has(self.tuning) || !has(self.resource)"
                " || self.resource.count <= 1",
                "tuning runs on one node: set resource.count to 1",
                field_path=".resource.count",
                create_too=True,
            ),
            rule(
                "!has(oldSelf.resource) || has(self.resource)",
                f"resource cannot be taken away: {RECREATE}",
                field_path=".resource",
            ),
            rule(
                "has(self.inference) == has(oldSelf.inference)",
                f"inference cannot be set or taken away later: {RECREATE}",
                field_path=".inference",
            ),
            rule(
                "has(self.tuning) == has(oldSelf.tuning)",
                f"tuning cannot be set or taken away later: {RECREATE}",
                field_path=".tuning",
            ),
        )
    )


decode_workspace: Final[Callable[[bytes], Workspace | Undecodable]] = decoder(
    Workspace, envelope_of("resource", "inference", "tuning", "status")
)
"""One Workspace; Undecodable when a field of it cannot be read. Raises msgspec.DecodeError."""
