# SPDX-License-Identifier: Apache-2.0
"""Refuse changes that are more likely an accident than intended; the last generation stays.

An emptied prefix must not empty the data plane, and no single change takes more than a share of a
pool or of the VIPs away, however it is written: key deleted, drained, disabled, weight 0. What the
documents want is compared with what is in force, so additions are never refused, nor is what time
alone changes. An override, a key that expires, lifts a guard. docs/guards.md explains them to
operators.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import Generation, PlacedBackend, PlannedPool
from tidegate.model.grouped import changed_items
from tidegate.model.steering import Guard
from tidegate.model.values import (
    FIT,
    Address,
    Backend,
    BackendKey,
    Desired,
    Endpoint,
    Override,
    Pool,
    Rejection,
)
from tidegate.planner import levels
from tidegate.planner.diff import Diff
from tidegate.planner.effective import effect

_STAYS = "the last generation stays in force"
_NAMED = 3
_FEW = 2
"""Backends that may go within a window, one after the other, whatever the share."""
_LONGEST_NAME = 63


class Limits(NamedTuple):
    """How much one change may take away, in percent."""

    backends_removed: int = 50
    """Of a pool's serving backends; the pool's own document may say otherwise."""
    vips_removed: int = 50
    """Of the VIPs."""


def refusals(
    desired: Desired,
    previous: Generation,
    limits: Limits,
    overrides: Sequence[Override],
    now: int,
) -> tuple[Rejection, ...]:
    """Return the reasons why this change must not become a generation; empty if it may.

    Args:
        desired: what the documents want.
        previous: the generation in force.
        limits: what the agent's file says.
        overrides: expired ones too.
        now: wall clock, s.
    """
    found = [_vips(desired, previous, limits, now), *_pools(desired, previous, limits, now)]
    return _standing(found, desired.revision, overrides, now)


def disruption_refusals(
    diff: Diff, revision: int, overrides: Sequence[Override], now: int
) -> tuple[Rejection, ...]:
    """Return the refusals of tables that move more slots than Maglev ever does."""
    found = [
        _Refused(
            "disruption",
            pool,
            f"pools/{pool}",
            f"its table would move {move.moved} of {TABLE_SIZE} slots, and such a change moves "
            f"{move.bound} at most (at least {move.minimum})",
        )
        for pool, move in sorted(diff.moves.items())
        if move.moved > move.bound
    ]
    return _standing(found, revision, overrides, now)


def next_expiry(overrides: Iterable[Override], after: float) -> int | None:
    """Return the first second after this moment at which an override expires, or None."""
    return min((o.expires_at for o in overrides if o.expires_at > after), default=None)


def next_relief(previous: Generation, after: int) -> int | None:
    """Return the first second at which a change that was refused may be allowed, or None."""
    freed = (rest.at + levels.WINDOW_SECONDS for rest in previous.freed.vips.values())
    moments = [moment for moment in freed if moment > after]
    of_pools = levels.next_moment(previous.pools.values(), after)
    return min([*moments, of_pools] if of_pools is not None else moments, default=None)


class _Refused(NamedTuple):
    guard: Guard
    pool: str | None
    key: str
    what: str


def _vips(desired: Desired, previous: Generation, limits: Limits, now: int) -> _Refused | None:
    if all(desired.vips.get(name) is placed.vip for name, placed in previous.vips.items()):
        return None  # as in nearly all changes
    had = {placed.vip.endpoint for placed in previous.vips.values()}
    wanted = {vip.endpoint for vip in desired.vips.values()}
    gone, left, percent = had - wanted, len(wanted), limits.vips_removed
    lately = had | _freed_lately(previous, now)
    most = lately - wanted
    names = [name for name, placed in previous.vips.items() if placed.vip.endpoint in gone]
    if _too_many(len(gone), len(had), left, percent):
        what = f"{_share(len(gone), len(had))} VIPs in force would vanish at once ({_some(names)})"
    elif gone and _too_many(len(most), len(lately), left, percent, free=_FEW):
        within = f"within {levels.WINDOW_SECONDS} s (now {_some(names)})"
        what = f"{_share(len(most), len(lately))} VIPs would have vanished {within}"
    else:
        return None
    return _Refused("vips", None, "vips", what + _above(left, percent))


def _freed_lately(previous: Generation, now: int) -> set[Endpoint]:
    """Return what VIPs that vanished within the window served; their ids still rest."""
    return {
        rest.endpoint
        for rest in previous.freed.vips.values()
        if rest.endpoint is not None and rest.at > now - levels.WINDOW_SECONDS
    }


def _pools(
    desired: Desired, previous: Generation, limits: Limits, now: int
) -> Iterable[_Refused | None]:
    used = {pool for vip in desired.vips.values() for pool in vip.pools}
    for pool, names in _gone(desired, previous, now):
        if pool not in used:
            continue
        had, left = _had(pool, previous), _serving(pool, desired, previous, now)
        document = desired.pools.get(pool)
        own = document.max_removed_percent if document else None
        percent = limits.backends_removed if own is None else own
        most, are_left = _lately(pool, desired, previous, now)
        if _too_many(len(names), had, left, percent):
            of = _share(len(names), had)
            what = f"{of} serving backends would leave service at once ({_some(names)})"
        elif _too_many(most - are_left, most, are_left, percent, free=_FEW):
            of, left = f"{most - are_left} of {most}", are_left
            within = f"within {levels.WINDOW_SECONDS} s (now {_some(names)})"
            what = f"{of} serving backends would have left service {within}"
        else:
            continue
        yield _Refused("removal", pool, f"pools/{pool}/backends", what + _above(left, percent))
    yield from _moved_vips(desired, previous, now)
    yield from _lost_resorts(desired, previous, now)


def _gone(desired: Desired, previous: Generation, now: int) -> Iterable[tuple[str, list[str]]]:
    """Yield the names of serving backends that documents take away, by pool, in order."""
    wanted = desired.by_pool
    for pool, placed in previous.by_pool.groups.items():
        documents = wanted.group(pool)
        there = _in_question(previous.planned.get(pool), placed, documents)
        if not there:
            continue
        addresses = _addresses(documents, placed)
        document = desired.pools.get(pool)
        names = [
            key.name
            for key, each in there.items()
            if each.weight > 0 and _leaves(each, documents, addresses, document, now)
        ]
        if names:
            yield pool, names


def _in_question(
    known: PlannedPool | None,
    placed: Mapping[BackendKey, PlacedBackend],
    documents: Mapping[BackendKey, Backend],
) -> Mapping[BackendKey, PlacedBackend]:
    """Return the backends of a pool whose documents may be others than it was planned from."""
    if known is None or known.backends is not placed:
        return placed
    if known.wanted is documents:
        return {}
    changed = changed_items(known.wanted, documents)
    keys = changed.before.keys() | changed.after.keys()
    return {key: placed[key] for key in sorted(keys & placed.keys())}


def _had(pool: str, previous: Generation) -> int:
    """Return how many backends of a pool take new flows."""
    return sum(placed.weight > 0 for placed in previous.by_pool.group(pool).values())


def _moved_vips(desired: Desired, previous: Generation, now: int) -> Iterable[_Refused]:
    """Yield refusals of VIPs that would change from a pool that serves to one that does not."""
    moved = {
        name: (placed.vip.pool, desired.vips[name].pool)
        for name, placed in sorted(previous.vips.items())
        if name in desired.vips and desired.vips[name].pool != placed.vip.pool
    }
    serving = {new: _serving(new, desired, previous, now) for _, new in moved.values()}
    for name, (old, new) in moved.items():
        if _had(old, previous) and not serving[new]:
            what = f"the pool {new}, which it would change to, has no serving backend; {old} has"
            yield _Refused("removal", new, f"vips/{name}", what)


def _lost_resorts(desired: Desired, previous: Generation, now: int) -> Iterable[_Refused]:
    """Yield refusals of VIPs that would lose the sorry pool that serves them, with no other."""
    for name, placed in sorted(previous.vips.items()):
        wanted, sorry = desired.vips.get(name), placed.vip.sorry_pool
        is_on_it = (
            sorry is not None and placed.vip.pool in placed.unserved and _had(sorry, previous) > 0
        )
        if wanted is None or not is_on_it or wanted.sorry_pool == sorry:
            continue
        pools = filter(None, (wanted.pool, wanted.sorry_pool))
        if not any(_serving(pool, desired, previous, now) for pool in pools):
            what = f"its sorry pool {sorry} serves it, and nothing would replace it"
            yield _Refused("removal", wanted.pool, f"vips/{name}", what)


def _lately(pool: str, desired: Desired, previous: Generation, now: int) -> tuple[int, int]:
    """Return the most that served in the window that ends now, and how many would be left.

    Both by documents alone: what health does is no removal.
    """
    if pool not in previous.pools:
        return 0, 0
    placed, document = previous.by_pool.group(pool).values(), desired.pools.get(pool)
    here = (each.backend for each in placed if each.retire_at is None)
    was = levels.serving(here, document, now)
    left = levels.serving(desired.by_pool.group(pool).values(), document, now)
    return levels.peak(previous.pools[pool], was, now), left


def _addresses(
    wanted: Mapping[BackendKey, Backend], placed: Mapping[BackendKey, PlacedBackend]
) -> Mapping[Address, Backend]:
    """Return the wanted backends of a pool by address, if a name of it has gone."""
    if placed.keys() <= wanted.keys():
        return {}
    return {backend.address: backend for backend in wanted.values()}


def _leaves(
    placed: PlacedBackend,
    wanted: Mapping[BackendKey, Backend],
    addresses: Mapping[Address, Backend],
    document: Pool | None,
    now: int,
) -> bool:
    """Say whether documents take a server of a pool out of service, under whatever name.

    Changes by time alone do not count.
    """
    backend = placed.backend
    new = wanted.get(backend.key) or addresses.get(backend.address)
    if new is backend or new == backend:
        return False
    return new is None or not effect(new, document, now, placed.fitness).weight


def _serving(pool: str, desired: Desired, previous: Generation, now: int) -> int:
    """Return how many of a pool's backends would take new flows with their present fitness."""
    placed, document = previous.by_pool.group(pool), desired.pools.get(pool)
    return sum(
        effect(backend, document, now, old.fitness if (old := placed.get(key)) else FIT).weight > 0
        for key, backend in desired.by_pool.group(pool).items()
    )


def _too_many(gone: int, had: int, left: int, percent: int, *, free: int = 1) -> bool:
    """Say whether too many go: `free` of them may if others stay, all need an override."""
    if gone == 0 or (gone <= free and left):
        return False
    return left == 0 or gone * 100 > percent * had


def _above(left: int, percent: int) -> str:
    return f", more than {percent} %" if left else ""


def _share(gone: int, had: int) -> str:
    return f"all {had}" if gone == had else f"{gone} of {had}"


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:_NAMED]) + (", …" if len(ordered) > _NAMED else "")


def _standing(
    found: Iterable[_Refused | None], revision: int, overrides: Sequence[Override], now: int
) -> tuple[Rejection, ...]:
    """Return the refusals that no override lifts; each says how to lift it."""
    valid = [o for o in overrides if now < o.expires_at]
    return tuple(
        Rejection(
            refused.key, "", f"{refused.what}; {_STAYS}; {_remedy(refused)}", "guard", revision
        )
        for refused in found
        if refused is not None and not any(_lifts(o, refused) for o in valid)
    )


def _lifts(override: Override, refused: _Refused) -> bool:
    return override.guard == refused.guard and override.pool in (None, refused.pool)


def _remedy(refused: _Refused) -> str:
    # It has no time, so that the text stays the same while the refusal does.
    guard, pool = refused.guard, refused.pool
    option = f" --pool {pool}" if pool else ""
    name = f"{guard}-{pool}"[:_LONGEST_NAME].rstrip("-._") if pool else guard
    field = f'"pool": "{pool}", ' if pool else ""
    return (
        f"if this is intended: tidegate override {guard}{option} --for 10m, or put "
        f'overrides/{name} with {{"guard": "{guard}", {field}"expires_at": "YYYY-MM-DDThh:mm:ssZ"}}'
    )
