# SPDX-License-Identifier: Apache-2.0
"""Every metric, its unit, and the attributes that its points differ in.

A name's points end when its VIP or backend leaves the generation. docs/metrics.md says how many
points there are. Those of health are in `health_metrics`.
"""

from typing import Final

from tidegate.telemetry.names import health_metrics
from tidegate.telemetry.names import metric_attributes as by
from tidegate.telemetry.registry import Instrument

# Packets.

VIP_PACKETS: Final = Instrument(
    name="tidegate.vip.packets",
    kind="counter",
    unit="{packet}",
    description="Packets that were forwarded to a backend.",
    attributes=(by.VIP,),
)
VIP_IO: Final = Instrument(
    name="tidegate.vip.io",
    kind="counter",
    unit="By",
    description="Bytes of the IP packets that were forwarded, before encapsulation.",
    attributes=(by.VIP,),
)
VIP_NEW_FLOWS: Final = Instrument(
    name="tidegate.vip.flows.new",
    kind="counter",
    unit="{flow}",
    description="SYNs, and datagrams without an entry in the connection table; a repeated SYN "
    "counts again.",
    attributes=(by.VIP,),
)
VIP_DECISIONS: Final = Instrument(
    name="tidegate.vip.decisions",
    kind="counter",
    unit="{packet}",
    description="Forwarded packets by what named the backend: `tracked` are hits of the "
    "connection table, `fallback` is the owner before the window.",
    attributes=(by.VIP, by.DECISION),
)
VIP_REHASHES: Final = Instrument(
    name="tidegate.vip.rehashes",
    kind="counter",
    unit="{packet}",
    description="Packets that went to another backend than the slot's owner, which could not be "
    "used.",
    attributes=(by.VIP, by.REHASH_CAUSE),
)
VIP_INSERTS: Final = Instrument(
    name="tidegate.vip.inserts",
    kind="counter",
    unit="{entry}",
    description="Entries that were to be written to the connection table.",
    attributes=(by.VIP, by.INSERT_OUTCOME),
)
VIP_ANSWERS: Final = Instrument(
    name="tidegate.vip.answers",
    kind="counter",
    unit="{packet}",
    description="Packets of the VIP's flows that the load balancer answered itself: those too big "
    "for the path.",
    attributes=(by.VIP,),
)
ADDRESS_ANSWERS: Final = Instrument(
    name="tidegate.address.answers",
    kind="counter",
    unit="{packet}",
    description="Pings of a VIP's address that were answered, and rejections of what no VIP takes.",
    attributes=(by.ADDRESS,),
)
ADDRESS_DROPS: Final = Instrument(
    name="tidegate.address.drops",
    kind="counter",
    unit="{packet}",
    description="Packets for a VIP's address, and for none of its VIPs' flows, that were dropped: "
    "other ports and protocols (`unserved`), pings and ICMP errors, fragments without a first one.",
    attributes=(by.ADDRESS, by.DROP_REASON),
)
VIP_DROPS: Final = Instrument(
    name="tidegate.vip.drops",
    kind="counter",
    unit="{packet}",
    description="Packets for the VIP that were dropped.",
    attributes=(by.VIP, by.DROP_REASON),
)
VIP_LIVE_FLOWS: Final = Instrument(
    name="tidegate.vip.flows.live",
    kind="gauge",
    unit="{flow}",
    description="Live flows: entries of the connection table whose client has not ended them, that "
    "spoke within the VIP's idle timeout and whose backend is reached, as of the last count.",
    attributes=(by.VIP,),
)
BACKEND_PACKETS: Final = Instrument(
    name="tidegate.backend.packets",
    kind="counter",
    unit="{packet}",
    description="Packets that were sent to the backend.",
    attributes=(by.POOL, by.BACKEND),
)
BACKEND_IO: Final = Instrument(
    name="tidegate.backend.io",
    kind="counter",
    unit="By",
    description="Bytes of the IP packets that were sent to the backend, before encapsulation.",
    attributes=(by.POOL, by.BACKEND),
)
BACKEND_LIVE_FLOWS: Final = Instrument(
    name="tidegate.backend.flows.live",
    kind="gauge",
    unit="{flow}",
    description="Live flows, as in tidegate.vip.flows.live, by the backend that they go to.",
    attributes=(by.POOL, by.BACKEND),
)

# The data plane.

PROGRAM_PACKETS: Final = Instrument(
    name="tidegate.program.packets",
    kind="counter",
    unit="{packet}",
    description="Packets that a CPU ran the program for, for VIPs or not: how the NIC's "
    "receive queues are spread over CPUs.",
    attributes=(by.CPU, by.VERDICT),
)
PROGRAM_TIME: Final = Instrument(
    name="tidegate.program.time",
    kind="counter",
    unit="s",
    description="Time spent in the program, of all CPUs; only while telemetry.program_stats is on.",
)
PROGRAM_RUNS: Final = Instrument(
    name="tidegate.program.runs",
    kind="counter",
    unit="{run}",
    description="Runs that tidegate.program.time is of: time by runs is the cost of one packet.",
)
RX_QUEUES: Final = Instrument(
    name="tidegate.interface.rx_queues",
    kind="gauge",
    unit="{queue}",
    description="Receive queues of the interface: as many CPUs can have packets.",
    attributes=(by.INTERFACE,),
)
ATTACHED: Final = Instrument(
    name="tidegate.interface.attached",
    kind="gauge",
    unit="{program}",
    description="1 if the program is on the interface, else 0.",
    attributes=(by.INTERFACE,),
)
MAP_ENTRIES: Final = Instrument(
    name="tidegate.map.entries",
    kind="gauge",
    unit="{entry}",
    description="Entries of a kernel map; those that packets write, as of the last count.",
    attributes=(by.MAP,),
)
MAP_LIMIT: Final = Instrument(
    name="tidegate.map.limit",
    kind="gauge",
    unit="{entry}",
    description="Entries that a kernel map is made for.",
    attributes=(by.MAP,),
)
IDS: Final = Instrument(
    name="tidegate.ids.used",
    kind="gauge",
    unit="{id}",
    description="Ids that the generation in force uses.",
    attributes=(by.KIND,),
)
RESTING_IDS: Final = Instrument(
    name="tidegate.ids.resting",
    kind="gauge",
    unit="{id}",
    description="Ids that were freed within the last hour, and are used again last.",
    attributes=(by.KIND,),
)
ID_LIMIT: Final = Instrument(
    name="tidegate.ids.limit",
    kind="gauge",
    unit="{id}",
    description="Ids that there are.",
    attributes=(by.KIND,),
)
EVENTS: Final = Instrument(
    name="tidegate.events",
    kind="counter",
    unit="{event}",
    description="Events of sampled flows, by what became of them in the kernel.",
    attributes=(by.EVENT_OUTCOME,),
)
REPAIRS: Final = Instrument(
    name="tidegate.audit.repairs",
    kind="counter",
    unit="{difference}",
    description="Differences between the kernel and what it has to hold that were put right.",
)

# The agent.

GENERATION: Final = Instrument(
    name="tidegate.generation",
    kind="gauge",
    unit="{generation}",
    description="Number of the generation in force.",
)
GENERATION_INFO: Final = Instrument(
    name="tidegate.generation.info",
    kind="gauge",
    unit="{info}",
    description="1, with what the generation in force is made of.",
    attributes=(by.DIGEST, by.RELEASE, by.TRACK, by.VERSION),
)
REVISION: Final = Instrument(
    name="tidegate.revision",
    kind="gauge",
    unit="{revision}",
    description="etcd's revision that the generation in force was made of.",
)
STATE: Final = Instrument(
    name="tidegate.state",
    kind="gauge",
    unit="{state}",
    description="1 for the state that the host is in, 0 for the others.",
    attributes=(by.HOST_STATE,),
)
STATE_TIME: Final = Instrument(
    name="tidegate.state.time",
    kind="counter",
    unit="s",
    description="Time that the host has spent in each state since its agent started.",
    attributes=(by.HOST_STATE,),
)
READY: Final = Instrument(
    name="tidegate.ready",
    kind="gauge",
    unit="{host}",
    description="1 if the host is ready for traffic, else 0.",
)
ETCD_AGE: Final = Instrument(
    name="tidegate.etcd.contact.age",
    kind="gauge",
    unit="s",
    description="Time since etcd was last heard of.",
)
REFUSALS: Final = Instrument(
    name="tidegate.refusals",
    kind="gauge",
    unit="{refusal}",
    description="Documents and generations that are refused now.",
    attributes=(by.REFUSAL_STAGE,),
)
STAGE_DURATION: Final = Instrument(
    name="tidegate.change.duration",
    kind="histogram",
    unit="s",
    description="Time that a stage of a change took, from etcd's event to the kernel.",
    attributes=(by.STAGE,),
)
TELEMETRY_DROPS: Final = Instrument(
    name="tidegate.telemetry.dropped",
    kind="counter",
    unit="{item}",
    description="Spans, points and log records that did not arrive.",
    attributes=(by.SIGNAL, by.LOSS),
)
METRICS_TIME: Final = Instrument(
    name="tidegate.metrics.time",
    kind="counter",
    unit="s",
    description="CPU time that reading and writing metrics took.",
)

# Traces of flows.

FLOW_SPANS: Final = Instrument(
    name="tidegate.flow.spans",
    kind="counter",
    unit="{span}",
    description="Spans that were made of sampled flows.",
)
FLOW_EVENTS: Final = Instrument(
    name="tidegate.flow.events",
    kind="counter",
    unit="{event}",
    description="Events of flows that the agent has read.",
)
FLOW_DROPS: Final = Instrument(
    name="tidegate.flow.events.dropped",
    kind="counter",
    unit="{event}",
    description="Events that the agent has read and that are in no span.",
    attributes=(by.FLOW_LOSS,),
)
FLOW_REFUSED: Final = Instrument(
    name="tidegate.flow.refused",
    kind="counter",
    unit="{flow}",
    description="Flows without a span, as there were too many.",
)
FLOW_OPEN: Final = Instrument(
    name="tidegate.flow.open",
    kind="gauge",
    unit="{flow}",
    description="Flows that are followed now.",
)

INSTRUMENTS: Final = (
    *(each for each in list(globals().values()) if isinstance(each, Instrument)),
    *health_metrics.INSTRUMENTS,
)
"""All of them, in the order of this file, and then those of health."""
