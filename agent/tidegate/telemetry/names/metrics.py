# SPDX-License-Identifier: Apache-2.0
"""Every metric, its unit, and what its points are told apart by.

Attributes have few values: names of VIPs, pools and backends of the generation in force, and words
of closed lists. A name's points end when its VIP or backend leaves the generation. No address, port
or text that somebody else wrote is ever an attribute. docs/metrics.md says how many points that
makes.
"""

from typing import Final

from tidegate.telemetry.registry import Attribute, Instrument

# What points are told apart by.

VIP: Final = Attribute("tidegate.vip", "string", "Name of the VIP.", "web")
POOL: Final = Attribute("tidegate.pool", "string", "Name of the pool.", "web")
BACKEND: Final = Attribute("tidegate.backend", "string", "Name of the backend in its pool.", "b1")
DECISION: Final = Attribute(
    *("tidegate.decision", "string"),
    *("What named the backend: a word of the data plane's list of decisions.", "tracked"),
)
DROP_REASON: Final = Attribute(
    *("tidegate.drop.reason", "string"),
    *("Why packets were dropped: a word of the data plane's list of reasons.", "syn_limit"),
)
REHASH_CAUSE: Final = Attribute(
    *("tidegate.rehash.cause", "string"),
    *("Why the slot's owner could not be used: `quarantined` or `gone`.", "gone"),
)
INSERT_OUTCOME: Final = Attribute(
    *("tidegate.insert.outcome", "string"),
    *("Whether the entry was `written`, or `refused` by the VIP's limit.", "written"),
)
MAP: Final = Attribute("tidegate.map", "string", "Name of the kernel's map.", "flows")
KIND: Final = Attribute("tidegate.id.kind", "string", "`vips`, `pools` or `backends`.", "vips")
EVENT_OUTCOME: Final = Attribute(
    *("tidegate.event.outcome", "string"),
    *("`sent`, or `lost` to a full ring buffer or the limit of events.", "sent"),
)
VERDICT: Final = Attribute(
    *("tidegate.verdict", "string"),
    *("What the program returned: `drop`, `pass` or `tx`.", "tx"),
)
CPU: Final = Attribute(
    *("cpu.logical_number", "int", "Number of the CPU.", "0"),
    is_standard=True,
)
INTERFACE: Final = Attribute(
    *("network.interface.name", "string", "Name of the interface.", "eth0"),
    is_standard=True,
)
HOST_STATE: Final = Attribute(
    *("tidegate.host.state", "string"),
    *("`starting`, `synced`, `degraded`, `frozen` or `stale`.", "synced"),
)
STAGE: Final = Attribute(
    *("tidegate.stage", "string", "Stage of a change, or `total` for all of it.", "swap"),
)
REFUSAL_STAGE: Final = Attribute(
    *("tidegate.refusal.stage", "string"),
    *(
        "What refuses: `decode`, `schema`, `reference`, `guard`, `build`, `publish` or `verify`.",
        "guard",
    ),
)
HEALTH_STATE: Final = Attribute(
    *("tidegate.health.state", "string"),
    *(
        "What this host finds: `initial`, `healthy`, `unhealthy`, `draining` or `unused`.",
        "healthy",
    ),
)
PROBE_OUTCOME: Final = Attribute(
    *("tidegate.probe.outcome", "string"),
    *("`passed`, or how the probe failed, such as `timeout` or `refused`.", "passed"),
)
DIGEST: Final = Attribute(
    *("tidegate.digest", "string"),
    *("Of the generation in force, equal on every host with the same input.", "5b6cd0…"),
)
RELEASE: Final = Attribute(
    *("tidegate.release", "string", "Release that the generation is of.", "live"),
)
TRACK: Final = Attribute("tidegate.track", "string", "Track that the host follows.", "stable")
VERSION: Final = Attribute(
    *("service.version", "string", "Version of the agent.", "0.1.0"),
    is_standard=True,
)
SIGNAL: Final = Attribute(
    *("tidegate.telemetry.signal", "string", "`traces`, `metrics` or `logs`.", "traces"),
)
LOSS: Final = Attribute(
    *("tidegate.telemetry.reason", "string"),
    *("Why it was not sent: `queue_full`, `not_exported` or `shutdown`.", "queue_full"),
)
FLOW_LOSS: Final = Attribute(
    *("tidegate.flow.reason", "string"),
    "`rate` or `table` (limits of the agent), `late` (after the flow's end), `collision`, `stop`, "
    "or `flood` (of a VIP and no flow).",
    "rate",
)

# Packets.

VIP_PACKETS: Final = Instrument(
    *("tidegate.vip.packets", "counter", "{packet}"),
    *("Packets that were forwarded to a backend.", (VIP,)),
)
VIP_IO: Final = Instrument(
    *("tidegate.vip.io", "counter", "By"),
    *("Bytes of the IP packets that were forwarded, before encapsulation.", (VIP,)),
)
VIP_NEW_FLOWS: Final = Instrument(
    *("tidegate.vip.flows.new", "counter", "{flow}"),
    "SYNs, and datagrams without an entry in the connection table; a repeated SYN counts again.",
    (VIP,),
)
VIP_DECISIONS: Final = Instrument(
    *("tidegate.vip.decisions", "counter", "{packet}"),
    "Forwarded packets by what named the backend: `tracked` are hits of the connection table, "
    "`fallback` is the owner before the window.",
    (VIP, DECISION),
)
VIP_REHASHES: Final = Instrument(
    *("tidegate.vip.rehashes", "counter", "{packet}"),
    "Packets that went to another backend than the slot's owner, which could not be used.",
    (VIP, REHASH_CAUSE),
)
VIP_INSERTS: Final = Instrument(
    *("tidegate.vip.inserts", "counter", "{entry}"),
    "Entries that were to be written to the connection table.",
    (VIP, INSERT_OUTCOME),
)
VIP_ANSWERS: Final = Instrument(
    *("tidegate.vip.answers", "counter", "{packet}"),
    "Packets that the load balancer answered itself: pings, and those too big for the path.",
    (VIP,),
)
VIP_DROPS: Final = Instrument(
    *("tidegate.vip.drops", "counter", "{packet}"),
    "Packets for the VIP that were dropped.",
    (VIP, DROP_REASON),
)
VIP_LIVE_FLOWS: Final = Instrument(
    *("tidegate.vip.flows.live", "gauge", "{flow}"),
    "Entries of the connection table that packets would follow, as of the last count.",
    (VIP,),
)
BACKEND_PACKETS: Final = Instrument(
    *("tidegate.backend.packets", "counter", "{packet}"),
    *("Packets that were sent to the backend.", (POOL, BACKEND)),
)
BACKEND_IO: Final = Instrument(
    *("tidegate.backend.io", "counter", "By"),
    "Bytes of the IP packets that were sent to the backend, before encapsulation.",
    (POOL, BACKEND),
)

# The data plane.

PROGRAM_PACKETS: Final = Instrument(
    *("tidegate.program.packets", "counter", "{packet}"),
    "Packets that a CPU ran the program for, whoever they were for: how the NIC's receive queues "
    "are spread over CPUs.",
    (CPU, VERDICT),
)
PROGRAM_TIME: Final = Instrument(
    *("tidegate.program.time", "counter", "s"),
    "Time spent in the program, of all CPUs; only while telemetry.program_stats is on.",
)
PROGRAM_RUNS: Final = Instrument(
    *("tidegate.program.runs", "counter", "{run}"),
    "Runs that tidegate.program.time is of: time by runs is the cost of one packet.",
)
RX_QUEUES: Final = Instrument(
    *("tidegate.interface.rx_queues", "gauge", "{queue}"),
    "Receive queues of the interface: as many CPUs can have packets.",
    (INTERFACE,),
)
ATTACHED: Final = Instrument(
    *("tidegate.interface.attached", "gauge", "{program}"),
    *("1 if the program is on the interface, else 0.", (INTERFACE,)),
)
MAP_ENTRIES: Final = Instrument(
    *("tidegate.map.entries", "gauge", "{entry}"),
    "Entries of a kernel map; those that packets write, as of the last count.",
    (MAP,),
)
MAP_LIMIT: Final = Instrument(
    *("tidegate.map.limit", "gauge", "{entry}"),
    *("Entries that a kernel map has room for.", (MAP,)),
)
IDS: Final = Instrument(
    *("tidegate.ids.used", "gauge", "{id}", "Ids that the generation in force uses.", (KIND,)),
)
ID_LIMIT: Final = Instrument(
    *("tidegate.ids.limit", "gauge", "{id}", "Ids that there are.", (KIND,)),
)
EVENTS: Final = Instrument(
    *("tidegate.events", "counter", "{event}"),
    *("Events of sampled flows, by what became of them in the kernel.", (EVENT_OUTCOME,)),
)
REPAIRS: Final = Instrument(
    *("tidegate.audit.repairs", "counter", "{difference}"),
    "Differences between the kernel and what it has to hold that were put right.",
)

# The agent.

GENERATION: Final = Instrument(
    *("tidegate.generation", "gauge", "{generation}", "Number of the generation in force."),
)
GENERATION_INFO: Final = Instrument(
    *("tidegate.generation.info", "gauge", "{info}"),
    "1, with what the generation in force is made of.",
    (DIGEST, RELEASE, TRACK, VERSION),
)
REVISION: Final = Instrument(
    *("tidegate.revision", "gauge", "{revision}"),
    "etcd's revision that the generation in force was made of.",
)
STATE: Final = Instrument(
    *("tidegate.state", "gauge", "{state}"),
    *("1 for the state that the host is in, 0 for the others.", (HOST_STATE,)),
)
STATE_TIME: Final = Instrument(
    *("tidegate.state.time", "counter", "s"),
    *("Time that the host has spent in each state since its agent started.", (HOST_STATE,)),
)
READY: Final = Instrument(
    *("tidegate.ready", "gauge", "{host}", "1 if the host is ready for traffic, else 0."),
)
ETCD_AGE: Final = Instrument(
    *("tidegate.etcd.contact.age", "gauge", "s", "Time since etcd was last heard of."),
)
REFUSALS: Final = Instrument(
    *("tidegate.refusals", "gauge", "{refusal}"),
    *("Documents and generations that are refused now.", (REFUSAL_STAGE,)),
)
STAGE_DURATION: Final = Instrument(
    *("tidegate.change.duration", "histogram", "s"),
    *("Time that a stage of a change took, from etcd's event to the kernel.", (STAGE,)),
)
TELEMETRY_DROPS: Final = Instrument(
    *("tidegate.telemetry.dropped", "counter", "{item}"),
    *("Spans, points and log records that did not arrive.", (SIGNAL, LOSS)),
)
METRICS_TIME: Final = Instrument(
    *("tidegate.metrics.time", "counter", "s"),
    "CPU time that reading and writing metrics took.",
)

# Traces of flows.

FLOW_SPANS: Final = Instrument(
    *("tidegate.flow.spans", "counter", "{span}", "Spans that were made of sampled flows."),
)
FLOW_EVENTS: Final = Instrument(
    *("tidegate.flow.events", "counter", "{event}", "Events of flows that the agent has read."),
)
FLOW_DROPS: Final = Instrument(
    *("tidegate.flow.events.dropped", "counter", "{event}"),
    *("Events that the agent has read and that no span tells of.", (FLOW_LOSS,)),
)
FLOW_REFUSED: Final = Instrument(
    *("tidegate.flow.refused", "counter", "{flow}"),
    "Flows that no span tells of, as there were too many.",
)
FLOW_OPEN: Final = Instrument(
    *("tidegate.flow.open", "gauge", "{flow}", "Flows that are followed now."),
)

# Health.

POOL_BACKENDS: Final = Instrument(
    *("tidegate.pool.backends", "gauge", "{backend}"),
    *("Backends by what this host's checks find.", (POOL, HEALTH_STATE)),
)
BACKEND_STATE_AGE: Final = Instrument(
    *("tidegate.backend.state.age", "gauge", "s"),
    "Time since this host's checks changed their mind of the backend; of checked ones only.",
    (POOL, BACKEND),
)
BACKEND_HEALTHY: Final = Instrument(
    *("tidegate.backend.healthy", "gauge", "{backend}"),
    "1 if this host's checks find the backend healthy, else 0; of checked ones only.",
    (POOL, BACKEND),
)
BLIND: Final = Instrument(
    *("tidegate.health.blind", "gauge", "{host}"),
    "1 if the host finds many backends dead that the others reach, so that its verdicts do not "
    "count; else 0.",
)
BROKEN_CHECKER: Final = Instrument(
    *("tidegate.health.checker.broken", "gauge", "{host}"),
    "1 if everything failed at once, so that nothing is taken out; else 0.",
)
WAITING: Final = Instrument(
    *("tidegate.health.waiting", "gauge", "{backend}"),
    "Unhealthy backends that the limit per minute still keeps in.",
)
PANIC: Final = Instrument(
    *("tidegate.pool.panic", "gauge", "{pool}"),
    "1 if too few backends are healthy, so that the pool keeps all; else 0. Of pools with health.",
    (POOL,),
)
ON_SORRY_POOL: Final = Instrument(
    *("tidegate.vip.on_sorry_pool", "gauge", "{vip}"),
    "1 if the VIP is served by its sorry pool, else 0. Of VIPs that have one.",
    (VIP,),
)
PROBES: Final = Instrument(
    *("tidegate.health.probes", "counter", "{probe}"),
    *("Health checks by how they ended.", (POOL, PROBE_OUTCOME)),
)
PROBE_DURATION: Final = Instrument(
    *("tidegate.health.probe.duration", "histogram", "s"),
    *("Time that a health check took.", (POOL,)),
)

INSTRUMENTS: Final = tuple(
    each for each in list(globals().values()) if isinstance(each, Instrument)
)
"""All of them, in the order of this file."""
