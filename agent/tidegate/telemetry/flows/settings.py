# SPDX-License-Identifier: Apache-2.0
"""What an operator may say about flow traces: the table `[telemetry.flows]` of the agent's file."""

from typing import Annotated

from msgspec import Meta, Struct

from tidegate.telemetry.flows.gate import Limits


class FlowSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which flows are sampled is said by each VIP's `flow_sampling`; this bounds what they cost.

    Attributes:
        flows_per_second: flows that may be taken up; what is above is counted. 0 traces none, and
            leaves the ring buffer to `tidegate events`.
        open_flows: flows that are followed at one time, at about 1.5 KiB of memory each.
        idle_timeout: seconds without an event after which a flow is taken to be over.
    """

    flows_per_second: Annotated[int, Meta(ge=0, le=20_000)] = 1000
    open_flows: Annotated[int, Meta(ge=100, le=1 << 20)] = 16_384
    idle_timeout: Annotated[float, Meta(ge=1, le=86_400)] = 300.0

    def limits(self) -> Limits:
        """Return the limits of what follows flows."""
        return Limits(self.flows_per_second, self.open_flows, self.idle_timeout)
