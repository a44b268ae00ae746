# SPDX-License-Identifier: Apache-2.0
"""One host's data plane: pins, program, interfaces and publisher, opened together.

Everything that must go on without the agent is pinned under one folder of the BPF file system: the
maps, the tables in force, the program. Whoever opens the folder holds a lock on it, so that two
agents never write to one data plane.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from tidegate.dataplane import links
from tidegate.dataplane.attachments import Attachments, foreign_program
from tidegate.dataplane.inspect.counter_reader import CounterReader
from tidegate.dataplane.kernel import owner, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.pins import (
    NEXT_PROGRAM,
    PROGRAM,
    make_plane_folder,
    pin_anew,
)
from tidegate.dataplane.links import Gateways, Link
from tidegate.dataplane.network.merge_watch import MergeWatch
from tidegate.dataplane.network.merging import Stack
from tidegate.dataplane.network.next_hops import NO_BACKENDS, backends_of
from tidegate.dataplane.network.own_addresses import OwnAddresses
from tidegate.dataplane.proof import prove
from tidegate.dataplane.publish.audit import Difference, Finding, missing_pins, repaired
from tidegate.dataplane.publish.fence import Fence
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Reached, Step, unwatched
from tidegate.dataplane.repin import recovery
from tidegate.dataplane.settings import Settings
from tidegate.dataplane.sweep import Sweeper
from tidegate.dataplane.takeover.attached import places
from tidegate.dataplane.takeover.takeover import Takeover
from tidegate.dataplane.tunnel.probe_tunnel import ProbeTunnel
from tidegate.dataplane.tunnel.probes import Probes, has_checks
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.event_log import EventLog
from tidegate.model.features import Feature, features
from tidegate.model.generation import Generation

log = EventLog(__name__)


class DataPlane:
    """The pinned data plane, from `open` to `close`. Closing leaves it forwarding."""

    def __init__(self, settings: Settings, reached: Reached = unwatched) -> None:
        """Open or create the pins, adopt what is in them, and attach the program.

        Args:
            settings: its settings.
            reached: called after each step of publishing and of replacing the program.

        Raises:
            CapabilityError: not root, no BPF file system, no bcc.
            DataplaneError: the pins cannot be taken over, another agent has them, an interface has
                a foreign program, or the kernel refused.
        """
        self._gateways, self._macs = settings.gateways, settings.macs
        self._interfaces = tuple(settings.interfaces)
        self._merging = MergeWatch(turns_off=settings.merging_off)
        self._links: dict[str, Link] = {}
        self._backends = NO_BACKENDS
        self.links_outdated = False
        """Whether backends have come or gone since the links were read, of no new family."""
        self.probe_tunnel = ProbeTunnel(settings.pins, self._load_probes)
        self.attachments = Attachments(self._interfaces, self.probe_tunnel.is_whole)
        self.modes: dict[str, programs.XdpMode] = {}
        self._pins, self._aside, self._mode = settings.pins, settings.aside, settings.mode
        self.default_build = settings.build
        self._build: programs.Build | None = None
        self._program = -1
        self._put_back_pins: list[Finding] = []
        self._ours: set[int] = set()
        self._opened = ExitStack()
        try:
            self._open(settings, reached)
            generation = self.publisher.adopt()
            self._takeover.prepare(self.publisher, self._build_for(generation).hash_keys())
            self.serve(generation)
        except BaseException:
            self.close()  # so that it can be opened again, also by this process
            raise

    def _open(self, settings: Settings, reached: Reached) -> None:
        """Take the lock and open the maps; `close` closes what was opened, last one first."""
        make_plane_folder(self._pins)
        self._fence = self._opened.enter_context(closing(Fence(self._pins, self._is_attached)))
        replaced = recovery(settings, self._fence.folder).run()
        takeover = Takeover(
            self._fence.folder, self._pins, settings.build.capacity, self._interfaces, reached
        )
        self._takeover = self._opened.enter_context(closing(takeover))
        self.adopted = takeover.adopted
        self._maps = self._opened.enter_context(closing(takeover.maps))
        owner.write(self._maps["owner"], settings.own)
        self.own_addresses = OwnAddresses(self._maps["own_addresses"])
        publisher = Publisher(
            self._maps,
            self._fence.folder,
            settings.grace,
            reached=reached,
            fence=self._check_fence,
            aside=self._aside,
        )
        self.publisher = self._opened.enter_context(closing(publisher))
        capacity, counts = settings.build.capacity, takeover.folder_of("vip_counts")
        reader = CounterReader(self._maps, self.publisher, capacity, counts)
        self.counter_reader = self._opened.enter_context(closing(reader))
        sweeper = Sweeper(self._maps["flows"], capacity.pairs["flows"], self.publisher)
        self.sweeper = self._opened.enter_context(closing(sweeper))
        self._ours = replaced
        if settings.probe_tunnel:
            self.probe_tunnel.load()

    def _load_probes(self) -> Probes:
        return self._opened.enter_context(Probes(self.default_build, self._maps))

    def serve(self, *generations: Generation) -> None:
        """Make the program one that can do what these generations need, and nothing more.

        A new one is built and proven beside the one that runs, and then takes its place on each
        interface in one exchange; the maps are the same, or were taken over, so no flow notices.

        Args:
            generations: the last one has the hash seed.

        Raises:
            CompileError: it does not compile, or the verifier refuses it.
            DataplaneError: it disagrees with the specification, or an interface refuses it. In each
                case the one before stays.
        """
        self._note_backends(*generations)
        if not self.probe_tunnel.is_loaded and any(map(has_checks, generations)):
            self.probe_tunnel.load()
            for interface in self.modes:
                self.probe_tunnel.keep(interface)
        build = self._build_for(*generations)
        if build == self._build:
            return
        self.publisher.check()
        reached, folder = self.publisher.reached, self._fence.folder
        fresh = self._aside.run(lambda: self._proven(build))
        reached(Step.PROGRAM_LOADED)
        before, self._program = self._program, fresh
        self._ours.add(bpf.object_id(fresh))
        # Pinned under a second name until it is attached: what is attached is always pinned.
        try:
            with suppress(FileNotFoundError):  # as in `tables.pin`
                pin_anew(fresh, folder / NEXT_PROGRAM)
            reached(Step.PROGRAM_PINNED)
            self._takeover.copy()
            self.follow()
            reached(Step.PROGRAM_ATTACHED)
            self._takeover.finish()
            with suppress(FileNotFoundError):
                (folder / NEXT_PROGRAM).rename(folder / PROGRAM)
        except (OSError, DataplaneError, CapabilityError) as error:
            self._put_back(before, fresh)
            raise DataplaneError(f"cannot replace the program: {error}") from error
        self._build = build
        self._ours = {bpf.object_id(fresh)}
        reached(Step.PROGRAM_KEPT)
        if before >= 0:
            self.counter_reader.record_run_time(before)
            os.close(before)
        log.info(
            "program", id=bpf.object_id(fresh), features=sorted(f.name for f in build.features)
        )

    def _build_for(self, *generations: Generation) -> programs.Build:
        """Return the settings of the program that these generations need."""
        seed = generations[-1].hash_seed
        return replace(
            self.default_build,
            hash_seed=seed.encode() if seed else self.default_build.hash_seed,
            features=frozenset[Feature]().union(*map(features, generations)),
        )

    def _note_backends(self, *generations: Generation) -> None:
        """Know where packets go before they do; a family that is new is asked about at once."""
        before, self._backends = self._backends, self._aside.run(lambda: backends_of(*generations))
        self.links_outdated |= self._backends.names.keys() != before.names.keys()
        if self._backends.needed - before.needed and self.modes:
            try:
                self.follow()
            except DataplaneError:  # the next look at the links reports it; no change waits for it
                self.links_outdated = True

    def _proven(self, build: programs.Build) -> int:
        """Compile, prove and load a program over our maps; return its descriptor."""
        try:
            program = programs.compile_balancer(build)
            prove(program, build, self._fence.folder)
            return programs.load_balancer(program, self._maps)
        except OSError as error:
            raise DataplaneError(f"cannot load a new program: {error.strerror}") from error

    def _put_back(self, before: int, fresh: int) -> None:
        """Attach the program that ran before to every interface again."""
        self._program = before
        if before >= 0:
            with suppress(DataplaneError):  # else the next look at the links does it
                self.follow()
                there = [programs.attached(interface) for interface in self.modes]
                if bpf.object_id(fresh) not in {each.program_id for each in there if each}:
                    (self._fence.folder / NEXT_PROGRAM).unlink(missing_ok=True)
        os.close(fresh)

    @property
    def links(self) -> dict[str, Link]:
        """The interfaces as they were last read."""
        return dict(self._links)

    @property
    def needed_families(self) -> frozenset[int]:
        """The families of outer packets that backends in force need."""
        return self._backends.needed

    @property
    def problems(self) -> tuple[str, ...]:
        """What somebody should know of next hops, merged frames, other programs and lost pins."""
        hops = (each for link in self._links.values() for each in link.warnings)
        lost = filter(None, [self._fence.lost])
        others = (*self.attachments.foreign.values(), *self.probe_tunnel.problems, *lost)
        return (*hops, *self._merging.problems, *others)

    def packet_outcomes(self) -> npt.NDArray[np.uint64]:
        """Read the outcomes of each VIP id's packets, as `counters.packet_outcomes` has them.

        Raises:
            DataplaneError: the counters cannot be read.
        """
        self.counter_reader.record_run_time(self._program)  # if that is measured
        return self.counter_reader.outcomes()

    def reload(self, gateways: Gateways, grace: float) -> None:
        """Apply settings that may change while it runs."""
        self._gateways = gateways
        self.publisher.grace = grace
        self.follow()

    def follow(self) -> None:
        """Bring attachments and link facts up to date; what is away is tried again next time.

        Raises:
            DataplaneError: an interface that is there refuses the program.
            FenceError: another agent has taken over the data plane.
        """
        self._check_fence()
        self.links_outdated = False
        self.own_addresses.follow()  # before the program is attached, which leaves them out
        for interface in self._interfaces:
            try:
                read = partial(links.read, interface, self._gateways, self._backends, self._macs)
                link, stack = self._aside.run(read)  # it asks for a route for each backend
            except DataplaneError as error:
                if interface in self.modes:
                    log.warning("link_lost", interface=interface, reason=error)
                    del self.modes[interface]
                    self._links.pop(interface, None)
                    self._merging.forget(interface)
                    self.probe_tunnel.forget(interface)
                    continue
                if not self.modes and len(self._interfaces) == 1:
                    raise
                continue
            if interface not in self.modes or self.probe_tunnel.is_loaded:
                self.probe_tunnel.keep(interface)
            if self._links.get(interface) != link:  # first, as the program drops what has no way
                links.write(self._maps["links"], link)
                self._links[interface] = link
                log.info("link", **link.log_fields())
            if self._build is not None and self._is_foreign(link.program):
                self.modes.pop(interface, None)
                self.attachments.note_foreign(interface, link.program)
                continue
            self._attach(link, stack)
            self.attachments.foreign.pop(interface, None)
            self._merging.look(stack, self.modes[interface])

    def audit(self, *, deep: bool) -> list[Finding]:
        """Compare maps, pins and attachments with what has to be there, and repair them.

        Args:
            deep: read tables and unused entries too.

        Raises:
            FenceError: another agent has taken over the data plane.
            DataplaneError: the kernel cannot be read.
        """
        found = [*self.publisher.audit(deep=deep), *repaired(self._differences())]
        put_back, self._put_back_pins = self._put_back_pins, []
        if self._fence.lost:  # that is one problem, and no packet meets it
            found = [finding for finding in found if finding.map != "pins"]
        return [*put_back, *found]

    def _check_fence(self) -> None:
        """Make sure that the pins are ours; put all back if they went without an agent's doing."""
        if self._fence.check():
            found = repaired((*self._lost_pins(), *missing_pins(self.publisher.mirror)))
            log.error("pins_put_back", folder=self._pins, pins=len(found))
            self._put_back_pins += found

    def _is_attached(self) -> bool:
        """Return whether a program of ours is on an interface."""
        return not self._ours.isdisjoint(places(self._interfaces))

    def _differences(self) -> Iterator[Difference]:
        """Find pins and attachments that are not as we left them."""
        yield from self._lost_pins()
        for interface in list(self.modes):
            with suppress(DataplaneError):  # `follow` reports an interface that is away
                on = programs.attached(interface)
                fault = "changed" if on else "missing"
                if on is None or on.program_id != bpf.object_id(self._program):
                    yield Difference(Finding("program", interface, fault), self.follow)

    def _lost_pins(self) -> Iterator[Difference]:
        for name, fd in {**self._maps, PROGRAM: self._program}.items():
            path = self._fence.folder / name
            if not path.exists():
                repair = partial(bpf.pin, fd, str(path))
                yield Difference(Finding("pins", name, "missing"), repair)
        yield from self.probe_tunnel.lost_pins()

    def _is_foreign(self, there: programs.Attachment | None) -> TypeGuard[programs.Attachment]:
        return there is not None and there.program_id not in self._ours

    def _attach(self, link: Link, stack: Stack) -> None:
        """Attach our program unless it is there. Never replace a foreign one."""
        interface, there = link.interface, link.program
        if there is not None and there.program_id == bpf.object_id(self._program):
            self.modes[interface] = there.mode
            return
        if self._is_foreign(there):
            raise DataplaneError(foreign_program(interface, there))
        if link.refusal:
            raise DataplaneError(link.refusal)
        mode: programs.XdpMode = "generic" if self._mode == "generic" else "native"
        if self._mode == "auto" and there is not None:
            mode = there.mode  # to change it would take the program off for a moment
        if mode == "generic" and there is None:
            self._merging.refuse_generic(stack)
        try:
            programs.attach(self._program, interface, mode)
        except DataplaneError as error:
            if self._mode != "auto" or mode == "generic":
                raise
            mode = "generic"
            log.warning("xdp_generic", interface=interface, reason=error)
            self._merging.refuse_generic(stack)
            programs.attach(self._program, interface, mode)
        self.modes[interface] = mode
        log.info("attached", interface=interface, mode=mode)

    def close(self) -> None:
        """Close descriptors; pins and attachments stay, so packets go on."""
        if self._program >= 0:
            os.close(self._program)
        self._opened.close()
