"""The catalogue: every reason a condition or an Event of ours may carry, and what to do about it.

One row a reason that the code gives; a remedy promises nothing that the code does not do. Names of
facts §3, P1.6, P6.2 and P9.3 are kept as users and scripts know them, their odd capitals included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Answer = Literal["stay", "next", "replace"]
"""What fits a claim that failed for this reason (rule G4): leave it to the node side, ask for the
next instance type, or replace the claim once."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One row.

    ``remedy``: what the user should do, a sentence; empty where nothing is wrong.
    ``retried``: it is tried again without an edit.
    """

    name: str
    remedy: str
    retried: bool = True
    answer: Answer = "stay"


_WAIT: Final = "Nothing to do: this goes on by itself."

_ROWS: Final = (
    # Workspace: progress and good ends (facts §3).
    Reason("CreateMachinePending", _WAIT),
    Reason("installNodePluginsSuccess", ""),
    Reason("workspaceResourceStatusSuccess", ""),
    Reason("WorkspaceInferenceStatusSuccess", ""),
    Reason("workspaceSucceeded", ""),
    Reason("workspacePending", _WAIT),
    Reason(
        "workspaceDeleted",
        "Nothing to do, unless WorkspaceDeleting says why the cloud does not take a machine back.",
    ),
    Reason("WorkspaceInferencePending", _WAIT),
    Reason("WorkspaceReady", ""),
    # Workspace: failures.
    Reason("machineFailedCreation", "See ResourceReady: it has the cause and what to do."),
    Reason(
        "checkMachineStatusFailed",
        "Run kubectl describe on the Machine named: its conditions and Events have the cause.",
    ),
    Reason(
        "WorkspaceInferenceStatusFailed",
        "Run kubectl describe on the Deployment named and on its pods.",
    ),
    Reason("workspaceFailed", "See ResourceReady and InferenceReady: one of them has the cause."),
    # Workspace: faults in what the user wrote. Only an edit helps.
    Reason(
        "UnknownPreset",
        "Use a preset name from the list (kaito presets), spelled exactly.",
        retried=False,
    ),
    Reason(
        "TooManyNodes",
        "Set resource.count to 100 or less: each node takes a node pool of the cluster.",
        retried=False,
    ),
    Reason(
        "UnsupportedInstanceType",
        "Use a GPU instance type of the configured cloud; SpecValid lists them.",
        retried=False,
    ),
    Reason(
        "InsufficientGpus",
        "Use an instance type with more GPUs; the message names the smallest that fit, if any do.",
        retried=False,
    ),
    Reason(
        "InsufficientGpuMemory",
        "Use an instance type with more GPU memory; the message names the smallest that fit,"
        " if any do.",
        retried=False,
    ),
    Reason(
        "InvalidSelector",
        "Give resource.labelSelector a label of your own, by matchLabels or In with one value.",
        retried=False,
    ),
    Reason("InvalidName", "Use a name that keeps to the rule in the message.", retried=False),
    Reason(
        "InvalidRequirement",
        "Give node.kubernetes.io/instance-type one value with operator In.",
        retried=False,
    ),
    Reason("InvalidDiskSize", "Ask for at most 2048Gi of storage.", retried=False),
    Reason("InvalidSpec", "Correct the field that the message names.", retried=False),
    Reason(
        "PrivateImageRequired",
        "Set accessMode to private and presetOptions.image to an image of the model.",
        retried=False,
    ),
    Reason("TuningNotSupported", "Choose a preset that can be tuned.", retried=False),
    Reason("NotSupportedYet", "Take the field out: this release cannot do it.", retried=False),
    Reason(
        "Undecodable",
        "Correct the field that the message names; the stored object does not fit its schema.",
        retried=False,
    ),
    Reason(
        "NodeNotReady",
        "Run kubectl describe on the Node named. This release does not replace it: to have a new"
        " one, delete its Machine.",
    ),
    Reason("NodeLost", "This release does not replace it: to have a new one, delete its Machine."),
    Reason("WaitingForNodes", _WAIT),
    Reason("WaitingForGpu", "Check that a GPU device plugin runs on the Node named."),
    # Claims: steps on the way (facts P1.6, P1.11, P1.16).
    Reason("Creating", _WAIT),
    Reason("AwaitingReconciliation", _WAIT),
    Reason("MachineNotLaunched", _WAIT),
    Reason("NodeNotFound", _WAIT),
    Reason("MultipleNodesFound", "Delete the Node that does not belong to the machine.", False),
    Reason("StartupTaintsExist", "Whoever set the startup taint has to take it off."),
    Reason("KnownEphemeralTaintsExist", _WAIT),
    Reason("ResourceNotRegistered", "Check that the device plugin runs on the Node."),
    Reason("LaunchFailed", "See the condition LaunchDiagnosis and the Events of the claim."),
    Reason("NodeClaimNotLaunched", _WAIT),
    Reason("NotLaunched", _WAIT),
    Reason(
        "BringYourOwnNodes",
        "Run the node side with --provisioner agentpool; this release uses no existing Nodes.",
    ),
    # Cloud errors, one for each row of facts P6.2.
    Reason(
        "QuotaExceeded",
        "Raise the quota of the VM family in the region, or use another size.",
        answer="next",
    ),
    Reason("SpotQuotaExceeded", "Raise the spot quota or use regular priority.", answer="next"),
    Reason(
        "InstanceTypeUnavailable",
        "The size is not offered to this subscription in the region: use another, or ask for it.",
        answer="next",
    ),
    Reason("ZoneUnavailable", "Remove the zone that the message names.", answer="next"),
    Reason(
        "CapacityUnavailable",
        "The region has no such machine now: wait, or try another size or region.",
        answer="next",
    ),
    Reason("ZonalCapacityUnavailable", "Allow more zones.", answer="next"),
    Reason(
        "AllocationOverconstrained",
        "Drop the ephemeral disk, the zone or the proximity group.",
        answer="next",
    ),
    Reason("SpotRefused", "Raise the maximum price or use regular priority.", answer="next"),
    Reason("SubnetFull", "Free addresses in the subnet or use another one."),
    Reason("NetworkMisconfigured", "Repair the subnet that the message names."),
    Reason("PolicyDenied", "Ask for an exemption, or set the tags that the policy wants."),
    Reason("PermissionDenied", "Grant the provisioner's identity its role on the cluster."),
    Reason(
        "CredentialInvalid", "Check federated credential, tenant and client id of the provisioner."
    ),
    Reason(
        "CredentialMissing", "Set the provisioner's AZURE_ variables or give it a managed identity."
    ),
    Reason("OperationInProgress", "Nothing to do: it waits for what runs on the cluster."),
    Reason("OperationPreempted", _WAIT),
    Reason("ClusterStopped", "Start the cluster."),
    Reason("ClusterBusy", "Nothing to do: it waits for the cluster's own operation."),
    Reason("Throttled", "Nothing to do: it waits as long as the cloud asks."),
    Reason("ClusterNotFound", "Check subscription, resource group and cluster name."),
    Reason("ProviderNotRegistered", "Register Microsoft.ContainerService in the subscription."),
    Reason("SubscriptionDisabled", "Enable the subscription again."),
    Reason("InvalidRequest", "Correct what the message names.", retried=False),
    Reason("ReservedName", "Use another name.", retried=False),
    Reason(
        "NameTaken", "Delete or rename what has the name that the message gives; it is not ours."
    ),
    Reason("PoolLimitReached", "Delete agent pools that are not needed, or use another cluster."),
    Reason(
        "NodeBootstrapFailed",
        "Check egress, DNS and firewall of the node subnet.",
        answer="replace",
    ),
    Reason("CloudUnavailable", "See the cloud's status page; it is tried again."),
    Reason("CloudError", "See the message; it has the cloud's own words."),
    # What a claim tells of its life, by Events (facts P9.3).
    Reason("Launching", _WAIT),
    Reason("Launched", ""),
    Reason("Registered", ""),
    Reason("Initialized", ""),
    Reason("Aborting", _WAIT),
    Reason("Draining", _WAIT),
    Reason("FailedDraining", "See which pod does not leave: a disruption budget may hold it."),
    Reason("Terminating", _WAIT),
    Reason("Terminated", ""),
    # Answers of the API server (errors.py).
    Reason("ApiError", "See the message; it is tried again."),
    Reason("TransportError", "Check the way to the API server; it is tried again."),
    Reason("PatchTestFailed", _WAIT),
    Reason("Unauthorized", "Check the operator's service account."),
    Reason("Forbidden", "Grant the right that the message names (deploy/rbac)."),
    Reason("NamespaceTerminating", "Nothing to do: the namespace is going away.", retried=False),
    Reason("NamespaceMissing", "Create the namespace that the message names."),
    Reason("NotFound", "Nothing to do: it was deleted meanwhile.", retried=False),
    Reason("KindNotServed", "Install the CRD that the message names (deploy/crds)."),
    Reason("AlreadyExists", _WAIT),
    Reason("Conflict", _WAIT),
    Reason("ApplyConflict", "See the message: another manager owns the field."),
    Reason("Expired", _WAIT),
    Reason("ResourceVersionTooLarge", _WAIT),
    Reason("TooManyRequests", "Nothing to do: it waits as long as the API server asks."),
    Reason("ServerUnavailable", "See the API server's health; it is tried again."),
    Reason("LineTooLong", "Make the object smaller: the API server sent more than can be read."),
    Reason("NotLeader", "Nothing to do: the leader goes on."),
    Reason("InternalError", "Report it with the operator's log lines of this object."),
)

REASONS: Final[Mapping[str, Reason]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every reason by its name."""

_UNLISTED: Final = "See the message."


def find(name: str) -> Reason:
    """The row of a reason. One that is not listed (another controller's) stays and is retried."""
    return REASONS.get(name) or Reason(name, _UNLISTED)


def remedy(name: str) -> str:
    """What the user should do about a reason; empty where nothing is wrong."""
    return find(name).remedy
