# SPDX-License-Identifier: Apache-2.0
"""Random changes of a large keyspace, valid and invalid, and what each key holds meanwhile. No I/O.

Deletions and drains go round the pools, so that what arrives together never takes away so much of
one pool that a guard has to step in. A key that holds something wrong is left alone until whoever
drives this says that its refusal was seen.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

VIPS, POOLS, BACKENDS = 200, 100, 2000
_PER_POOL = BACKENDS // POOLS
MOST_WRONG = 100
"""Wrong keys at a time; a status lists 200."""
_SHARE_WRONG = 0.12

Document = dict[str, Any]


class Change(NamedTuple):
    """One write: a key relative to the release, its new value (None deletes it), its intent."""

    key: str
    value: bytes | None
    wrong: bool


@dataclass
class Keyspace:
    """Valid documents by key, and what is wrong now.

    Attributes:
        documents: what shall be in force in the end.
        wrong: keys that hold something else, which has to be refused.
        seen: those of them whose refusal was seen, in that order.
    """

    seed: int
    documents: dict[str, Document] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - reproducible, not secret
        self._addresses = 0
        self._turn = 0
        self._vips = [f"vips/v{n}" for n in range(VIPS)]
        self._backends: list[list[str]] = [[] for _ in range(POOLS)]
        self._named = 0
        for pool in range(POOLS):
            times = {"deregistration_delay": 2, "transition_window": 5}
            self.documents[f"pools/p{pool}"] = times
            for _ in range(_PER_POOL):
                self._add_backend(pool)
        for n, key in enumerate(self._vips):
            self.documents[key] = {
                "address": f"10.99.{n // 200}.{n % 200 + 1}",
                "port": 443,
                "protocol": "tcp",
                "pool": f"p{n % POOLS}",
            }

    def next(self) -> Change:
        """Draw a change that was not made yet."""
        choose = self._random
        if choose.random() < _SHARE_WRONG:
            if self.seen and (len(self.wrong) >= MOST_WRONG or choose.random() < 0.5):
                return self.repair(self.seen.pop(0))
            if len(self.wrong) < MOST_WRONG:
                return self._spoil()
        while True:
            change = self._valid()
            if change is not None:
                return change

    def repair(self, key: str) -> Change:
        """Replace what was wrong by what is right."""
        self.wrong.discard(key)
        document = self.documents.get(key)
        return Change(key, None if document is None else _json(document), wrong=False)

    def _add_backend(self, pool: int) -> str:
        self._named += 1
        key = f"pools/p{pool}/backends/b{self._named}"
        self.documents[key] = {"address": self._address(), "weight": self._random.randrange(1, 200)}
        self._backends[pool].append(key)
        return key

    def _address(self) -> str:
        self._addresses += 1
        number = self._addresses
        return f"10.{100 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"

    def _valid(self) -> Change | None:
        """Draw a valid change; None if the key that was drawn is wrong now."""
        choose = self._random
        draw = choose.random()
        pool = choose.randrange(POOLS)
        if draw < 0.10:
            return self._put(self._add_backend(pool))
        if draw < 0.20:
            return self._delete()
        key = choose.choice(self._backends[pool])
        if draw < 0.30:
            key = f"pools/p{pool}"
        elif draw < 0.40:
            key = choose.choice(self._vips)
        if key in self.wrong:
            return None
        document = self.documents[key]
        if draw < 0.30:
            document["transition_window"] = choose.randrange(2, 10)
        elif draw < 0.40:
            document |= {"mss_clamp": choose.randrange(1000, 1400), "pool": f"p{pool}"}
        elif draw < 0.50:
            document["address"] = self._address()
        else:
            document["weight"] = choose.randrange(1, 200)
        return self._put(key)

    def _delete(self) -> Change | None:
        """Delete a backend of the pool whose turn it is."""
        self._turn = (self._turn + 1) % POOLS
        here = self._backends[self._turn]
        if len(here) <= _PER_POOL * 3 // 4:  # guards look back over minutes
            return None
        key = here[self._random.randrange(len(here))]
        if key in self.wrong:
            return None
        here.remove(key)
        del self.documents[key]
        return Change(key, None, wrong=False)

    def _put(self, key: str) -> Change:
        return Change(key, _json(self.documents[key]), wrong=False)

    def _spoil(self) -> Change:
        """Draw an invalid document, at a key that was valid or absent."""
        choose = self._random
        while True:
            pool = choose.randrange(POOLS)
            backend = choose.choice(self._backends[pool])
            vip = choose.choice(self._vips)
            free = f"{choose.randrange(1 << 30):x}"
            service = {"port": 443, "protocol": "tcp"}
            taken = self.documents[self._vips[0]]["address"]
            key, document = choose.choice(
                [
                    (backend, b'{"address": '),
                    (backend, self.documents[backend] | {"weight": -1}),
                    (backend, self.documents[backend] | {"colour": "red"}),
                    (backend, self.documents[backend] | {"address": "10.1.1.256"}),
                    (vip, self.documents[vip] | {"port": 70000}),
                    (vip, self.documents[vip] | {"protocol": "sctp"}),
                    (f"vips/x{free}", {"address": "10.98.0.1", **service, "pool": "nowhere"}),
                    (f"vips/x{free}", {"address": taken, **service, "pool": "p0"}),
                    (f"pools/q{free}/backends/b", {"address": "10.1.1.1"}),
                    (f"pools/p{pool}", {"transition_window": -1}),
                    (f"nothing/{free}", {}),
                    (f"vips/no name {free}", {}),
                ]
            )
            if key not in self.wrong and key != self._vips[0]:
                self.wrong.add(key)
                value = document if isinstance(document, bytes) else _json(document)
                return Change(key, value, wrong=True)


def _json(document: Document) -> bytes:
    return json.dumps(document).encode()
