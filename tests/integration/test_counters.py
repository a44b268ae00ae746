# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters, read in batches and summed over CPUs, and whose they are."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.documents.roster import backend, desired, generations, vip
from tidegate.dataplane import removal
from tidegate.dataplane.kernel import counters, layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.model.constants import ID_COOLDOWN_SECONDS
from tidegate.model.generation import NOTHING, Generation
from tidegate.planner import plan

pytestmark = pytest.mark.root
IDS = 700
SHAPES = maps.few(maps.shapes(maps.Capacity(flows=1024, syns=1024, fragments=1024)), IDS)


@pytest.fixture
def kernel() -> Iterator[maps.Maps]:
    """Give all maps, unpinned."""
    found = maps.create(SHAPES)
    yield found
    found.close()


def write(kernel: maps.Maps, name: str, dtype: np.dtype[np.void], seed: int) -> np.ndarray:
    """Random counters for every id and CPU; as words of shape (ids, CPUs, counters)."""
    shape = (IDS, maps.cpu_count(), dtype.itemsize // 8)
    words = np.random.default_rng(seed).integers(0, 1 << 63, shape, np.uint64) * np.uint64(2)
    keys = np.arange(IDS, dtype="<u4").tobytes()
    bpf.map_update_batch(kernel[name], keys, words.tobytes(), IDS)
    return words


def test_sums_are_of_every_cpu(kernel: maps.Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a batch, each counter is its sum over CPUs, modulo 2^64."""
    many = [backend(f"b{n}", f"10.{n // 200}.0.{n % 200 + 1}") for n in range(IDS - 1)]
    [generation] = generations(desired([vip("a", "192.0.2.1"), vip("b", "192.0.2.2")], many))
    of_vips = write(kernel, "vip_counts", layout.VIP_COUNTERS, 1)
    of_backends = write(kernel, "backend_counts", layout.BACKEND_COUNTERS, 2)
    for size in (counters.BATCH_BYTES, 1, 16 * maps.cpu_count() * 7):
        monkeypatch.setattr(counters, "BATCH_BYTES", size)
        found = counters.read(kernel, generation)
        assert (len(found.vips), len(found.backends)) == (3, IDS)
        words = found.backends.view("<u8").reshape(IDS, -1)
        assert (words == of_backends.sum(axis=1, dtype=np.uint64)).all()
        words = found.vips.view("<u8").reshape(3, -1)
        assert (words == of_vips[:3].sum(axis=1, dtype=np.uint64)).all()


def test_a_range_that_the_map_lacks_is_an_error(kernel: maps.Maps) -> None:
    """Nothing is shown that was not read."""
    room = np.empty((4, maps.cpu_count(), 2), "<u8")
    with pytest.raises(OSError, match=f"has {IDS} elements"):
        bpf.array_values(kernel["backend_counts"], IDS - 2, room, 4)


def stepped(*steps: tuple[int, list[str]]) -> Iterator[Generation]:
    """Generations of one VIP and backend by names, each at its second."""
    last = NOTHING
    for now, names in steps:
        wanted = desired(
            [vip(f"v-{name}", f"192.0.2.{ord(name)}") for name in names],
            [backend("b1", "10.0.0.1", pool="web")]
            + [backend(f"b-{n}", "10.0.0.2") for n in names],
            delay=0,
        )
        last = plan(wanted, last, now)
        yield last


def test_a_reused_id_begins_with_zero(kernel: maps.Maps) -> None:
    """What a gone VIP or backend counted is not shown of the next owner of its id."""
    pins = Path(f"/sys/fs/bpf/tgtest-{os.getpid()}")
    make_plane_folder(pins)
    try:
        publisher = Publisher(kernel, pins, 0.0)
        late = 1000 + 2 * ID_COOLDOWN_SECONDS
        first, *rest = stepped((1000, ["a", "z"]), (2000, ["z"]), (2001, ["z"]), (late, ["z", "c"]))
        publisher.publish(first, 0.0)
        for name in ("vip_counts", "backend_counts"):
            dtype = getattr(layout, {"v": "VIP", "b": "BACKEND"}[name[0]] + "_COUNTERS")
            write(kernel, name, dtype, 3)
        before = counters.read(kernel, first)
        for generation in rest:
            publisher.publish(generation, 0.0)
        reused = generation.vips["v-c"].identity
        assert reused == (first.vips["v-a"].identity.id, 2)
        after = counters.read(kernel, generation)
        assert not after.vips[reused.id]["packets"]
        assert not after.vips[reused.id]["drops"].any()
        kept = generation.vips["v-z"].identity.id
        assert after.vips[kept] == before.vips[kept]
        of = {key.name: placed.identity for key, placed in generation.backends.items()}
        assert of["b-c"].incarnation == 2
        assert after.backends[of["b-c"].id].tolist() == (0, 0)
        assert after.backends[of["b1"].id] == before.backends[of["b1"].id]
    finally:
        publisher.close()
        removal.remove(pins, ())
