# SPDX-License-Identifier: Apache-2.0
"""The errors that Tidegate raises, as one tree.

TidegateError
├── ConfigError        the agent's file: which key, what is wrong, what is allowed
├── CapabilityError    something the host lacks: root, a capability, a package, a kernel feature
├── KeyspaceError      etcd said no for good: permission, authentication, an invalid request
├── DataplaneError     the kernel refused a map, a program or an attachment
│   ├── CompileError   the BPF compiler or the verifier refused a program; carries its log
│   └── RingTaken      somebody else reads the events
├── FenceError         the data plane is another agent's now: this one must not write
├── AgentError         the agent's own files: its control socket or its journal; or it said no
├── GenerationRefused  ids or places in the maps have run out; the last generation stays in force
└── LabError           the lab could not be built, found or torn down

Bad documents are not errors, nor is what a guard refuses: they are `Rejection` values, since one of
them must not stop the rest.
"""


class TidegateError(Exception):
    """Base of every error that Tidegate raises on purpose; its text is written for an operator."""


class ConfigError(TidegateError):
    """The agent's configuration file cannot be used."""


class CapabilityError(TidegateError):
    """The host lacks something that Tidegate needs; the text says what to do."""


class KeyspaceError(TidegateError):
    """etcd refused a request in a way that retrying cannot mend."""


class DataplaneError(TidegateError):
    """The kernel refused a map, a program or an attachment."""


class CompileError(DataplaneError):
    """A BPF program did not compile or was refused by the verifier."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


class RingTaken(DataplaneError):  # noqa: N818 - it may be meant to be so
    """The ring buffer of events has a reader; there may be one at a time."""


class FenceError(TidegateError):
    """The data plane is another agent's now, or gone: this agent must not write any more."""


class AgentError(TidegateError):
    """The agent's socket or journal cannot be used, or the agent refused an order."""


class GenerationRefused(TidegateError):  # noqa: N818 - a refusal is an answer, not a fault
    """A generation needs more ids or places in the maps than there are; the last one stays."""


class LabError(TidegateError):
    """The lab could not be built, found or torn down."""
