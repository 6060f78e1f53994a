"""What a Machine's conditions are called, and in which order they build on each other."""

from typing import Final

LAUNCHED: Final = "MachineLaunched"
REGISTERED: Final = "MachineRegistered"
INITIALIZED: Final = "MachineInitialized"
DEPENDENTS: Final = (LAUNCHED, REGISTERED, INITIALIZED)
READY: Final = "Ready"
DIAGNOSIS: Final = "LaunchDiagnosis"
"""True while a launch does not succeed: the cause as its reason, cause, remedy and next try as its
message. ``MachineLaunched`` carries a text that callers compare whole (facts P1.12)."""
TERMINATION_DIAGNOSIS: Final = "TerminationDiagnosis"
"""True while the cloud refuses to take the machine back: in the same form."""

LABEL_AZURE_ZONE: Final = "karpenter.k8s.azure/zone"
"""What the Machine's printer column ``Zone`` shows (facts P1.3)."""
