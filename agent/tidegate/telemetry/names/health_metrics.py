# SPDX-License-Identifier: Apache-2.0
"""The metrics of health: what checks find, what is not acted upon, and whose verdicts are in doubt.

Part of `metrics`, which has all others and says what holds for all.
"""

from typing import Final

from tidegate.telemetry.names import metric_attributes as by
from tidegate.telemetry.registry import Instrument

POOL_BACKENDS: Final = Instrument(
    name="tidegate.pool.backends",
    kind="gauge",
    unit="{backend}",
    description="Backends by what this host's checks find.",
    attributes=(by.POOL, by.HEALTH_STATE),
)
BACKEND_STATE_AGE: Final = Instrument(
    name="tidegate.backend.state.age",
    kind="gauge",
    unit="s",
    description="Time since this host's checks changed their mind of the backend; of checked ones "
    "only.",
    attributes=(by.POOL, by.BACKEND),
)
BACKEND_HEALTHY: Final = Instrument(
    name="tidegate.backend.healthy",
    kind="gauge",
    unit="{backend}",
    description="1 if this host's checks find the backend healthy, else 0; of checked ones only.",
    attributes=(by.POOL, by.BACKEND),
)
BLIND: Final = Instrument(
    name="tidegate.health.blind",
    kind="gauge",
    unit="{host}",
    description="1 if the host finds many backends dead that the others reach, so that its "
    "verdicts do not count; else 0.",
)
BROKEN_CHECKER: Final = Instrument(
    name="tidegate.health.checker.broken",
    kind="gauge",
    unit="{host}",
    description="1 if everything failed at once, so that nothing is taken out; else 0.",
)
WAITING: Final = Instrument(
    name="tidegate.health.waiting",
    kind="gauge",
    unit="{backend}",
    description="Unhealthy backends that the limit per minute still keeps in.",
)
LATE: Final = Instrument(
    name="tidegate.health.late",
    kind="gauge",
    unit="{backend}",
    description="Backends none of whose checks has ended for three intervals and a timeout, so "
    "that this host has no finding on them.",
)
UNCONFIRMED: Final = Instrument(
    name="tidegate.health.unconfirmed",
    kind="gauge",
    unit="{host}",
    description="Hosts whose verdicts are there, and that have not confirmed them for too long.",
)
UNREADABLE: Final = Instrument(
    name="tidegate.health.unreadable",
    kind="gauge",
    unit="{verdict}",
    description="Verdicts of all hosts that cannot be read; the status names them.",
)
OVERWRITTEN: Final = Instrument(
    name="tidegate.health.overwritten",
    kind="counter",
    unit="{verdict}",
    description="Verdicts of this host that somebody else wrote or deleted, and that were written "
    "anew.",
)
PANIC: Final = Instrument(
    name="tidegate.pool.panic",
    kind="gauge",
    unit="{pool}",
    description="1 if too few backends are healthy, so that the pool keeps all; else 0. Of pools "
    "with health.",
    attributes=(by.POOL,),
)
ON_SORRY_POOL: Final = Instrument(
    name="tidegate.vip.on_sorry_pool",
    kind="gauge",
    unit="{vip}",
    description="1 if the VIP is served by its sorry pool, else 0. Of VIPs that have one.",
    attributes=(by.VIP,),
)
PROBES: Final = Instrument(
    name="tidegate.health.probes",
    kind="counter",
    unit="{probe}",
    description="Health checks by how they ended.",
    attributes=(by.POOL, by.PROBE_OUTCOME),
)
PROBES_LEFT_OUT: Final = Instrument(
    name="tidegate.health.probes.left_out",
    kind="counter",
    unit="{probe}",
    description="Health checks that were due and not made: the agent was more than half an "
    "interval late, or the one before had not ended.",
)
PROBE_DURATION: Final = Instrument(
    name="tidegate.health.probe.duration",
    kind="histogram",
    unit="s",
    description="Time that a health check took.",
    attributes=(by.POOL,),
)

INSTRUMENTS: Final = tuple(
    each for each in list(globals().values()) if isinstance(each, Instrument)
)
"""All of them, in the order of this file."""
