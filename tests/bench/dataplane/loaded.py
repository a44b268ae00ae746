# SPDX-License-Identifier: Apache-2.0
"""Everything but the balancer that is loaded once: wrappers, parts, and a veth that is up."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from bench.dataplane.namespace import Namespace
from bench.dataplane.prices import FLOOR, PRICES, PriceCase
from bench.dataplane.programs import Kind, Part, Wrapper, load_part, load_wrapper
from bench.dataplane.wire import Wire

_ALWAYS: Final = (Part.EMPTY, Part.EMPTY_TX, Part.PUSH)


class Loaded:
    """What a bench works with.

    Args:
        namespace: where programs are attached.
        names: of the prices that are wanted.
    """

    def __init__(self, namespace: Namespace, names: Collection[str]) -> None:
        self._prices = {name: price for name, price in PRICES.items() if name in names}
        every = {(part, 1) for part in _ALWAYS}
        for price in self._prices.values():
            every.add((price.part, price.lines))
            if price.without is not None:
                every.add((price.without, 1))
        with ThreadPoolExecutor() as pool:  # the compiler is a process of its own
            wrappers = pool.map(load_wrapper, Kind)
            parts = pool.map(lambda each: load_part(*each), every)
            self.wrappers: dict[Kind, Wrapper] = dict(zip(Kind, wrappers, strict=True))
            self._parts = dict(zip(every, parts, strict=True))
        for wrapper in self.wrappers.values():
            namespace.hold(wrapper.fd)
        namespace.hold(self.part(Part.EMPTY))
        self.wire = Wire.lay(namespace, self.wrappers[Kind.LIVE], self.part(Part.EMPTY))

    def part(self, part: Part) -> int:
        """Return the descriptor of a part that draws no lines."""
        return self._parts[part, 1]

    def prices(self) -> list[PriceCase]:
        """Return the prices that are wanted, in the list's order."""
        return [
            PriceCase(
                name,
                self.wrappers[Kind.BARE],
                self._parts[price.part, price.lines],
                None if price.without is None else self.part(price.without),
            )
            for name, price in self._prices.items()
        ]

    def floor(self) -> PriceCase:
        """Return the case of what no program that encapsulates can do without."""
        wrapper, without = self.wrappers[Kind.ONE], self.part(Part.EMPTY_TX)
        return PriceCase(FLOOR, wrapper, self.part(Part.PUSH), without)
