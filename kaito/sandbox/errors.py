"""What can go wrong with the sandbox itself; each message says what to look at."""

from kaito.errors import KaitoError, Never


class SandboxError(KaitoError):
    """The sandbox cannot do what was asked. Base of the others, and fit to show to the user."""

    reason = "SandboxError"
    retry = Never()


class ProgramFailed(SandboxError):
    """A program of the sandbox did not start or ended by itself; the message shows its log."""

    reason = "ProgramFailed"


class BuildFailed(SandboxError):
    """The control plane could not be built; the message has the tool's last words."""

    reason = "BuildFailed"
