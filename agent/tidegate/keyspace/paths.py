# SPDX-License-Identifier: Apache-2.0
"""Where things are in etcd: the only place that puts keys together.

    <root>/<fleet>/config/<release>/…     what control systems write
    <root>/<fleet>/tracks/<track>         which release a track's hosts follow
    <root>/<fleet>/hosts/<host>           steering of one host
    <root>/<fleet>/fleet                  steering of all hosts
    <root>/<fleet>/overrides/<override>   guards that are lifted for a while
    <root>/<fleet>/rollout                the rollout under way
    <root>/<fleet>/rollout-driver         the process that drives it
    <root>/<fleet>/status/<host>          what the agent of a host writes
    <root>/<fleet>/health/<host>/…        its verdicts on backends
    <root>-secrets/<fleet>/hash-seed      what only agents read

This module knows no etcd client and checks no document.
"""

import re
from typing import Final, NamedTuple

import msgspec

from tidegate.errors import ConfigError
from tidegate.model.document_types import Name

NAME_PATTERN: Final[str] = msgspec.json.schema(Name)["pattern"]
"""The rule for a name in a key is the one for a name in a document."""

_NAME: Final = re.compile(NAME_PATTERN)

NAME_RULE: Final = (
    "a name is 1 to 63 letters, digits, dots, underscores and hyphens, "
    "and starts and ends with a letter or digit"
)

DEFAULT_RELEASE: Final = "live"
DEFAULT_TRACK: Final = "stable"


def is_name(text: str) -> bool:
    """Say whether `text` may be one part of a key."""
    return _NAME.fullmatch(text) is not None


def fleet_prefix(root: str, fleet: str) -> str:
    """Return the prefix of all of a fleet's keys, with its slash.

    Raises:
        ConfigError: a part is not a name.
    """
    return f"{_fleet(root, fleet)}/"


def release_prefix(root: str, fleet: str, release: str = DEFAULT_RELEASE) -> str:
    """Return the prefix of a release's documents, with its slash: keys below it are relative to it.

    Raises:
        ConfigError: a part is not a name.
    """
    return f"{_fleet(root, fleet)}/config/{_part('release', release)}/"


def status_key(root: str, fleet: str, host: str) -> str:
    """Return the key of a host's status document.

    Raises:
        ConfigError: a part is not a name.
    """
    return f"{_fleet(root, fleet)}/status/{_part('host', host)}"


def seed_key(root: str, fleet: str) -> str:
    """Return the key of a fleet's seed of the flow hash: outside its prefix, which others read.

    Raises:
        ConfigError: a part is not a name.
    """
    _fleet(root, fleet)
    return f"{root}-secrets/{fleet}/hash-seed"


def verdict_prefix(root: str, fleet: str, host: str | None = None) -> str:
    """Return the prefix of the health verdicts of a host, or of all, with its slash.

    Raises:
        ConfigError: a part is not a name.
    """
    prefix = f"{_fleet(root, fleet)}/health/"
    return prefix if host is None else f"{prefix}{_part('host', host)}/"


def verdict_key(pool: str, backend: str) -> str:
    """Return the key of a verdict on a backend, relative to the prefix of its host's verdicts."""
    return f"{pool}/{backend}"


FLEET_KEY: Final = "fleet"
"""Key of the steering of all hosts, relative to the fleet."""

ROLLOUT_KEY: Final = "rollout"
"""Key of the rollout under way, relative to the fleet."""

DRIVER_KEY: Final = "rollout-driver"
"""Key of the process that drives the rollout, relative to the fleet; it disappears with it."""

SEED_KEY: Final = "secrets/hash-seed"
"""What the seed's key is called among the keys that steer a host; it has no key relative to it."""

TRACKS_PREFIX: Final = "tracks/"
OVERRIDES_PREFIX: Final = "overrides/"


def track_key(track: str) -> str:
    """Return a track's key, relative to the fleet."""
    return f"{TRACKS_PREFIX}{track}"


def host_key(host: str) -> str:
    """Return the key of a host's steering, relative to the fleet."""
    return f"hosts/{host}"


def override_key(override: str) -> str:
    """Return the key of an override of a guard, relative to the fleet."""
    return f"{OVERRIDES_PREFIX}{override}"


def releases_key(release: str) -> str:
    """Return the prefix of a release, relative to the fleet."""
    return f"config/{release}/"


SETTINGS_KEY: Final = "settings"
"""Key of a release's settings, relative to it."""


def vip_key(vip: str) -> str:
    """Return a VIP's key, relative to its release."""
    return f"vips/{vip}"


def pool_key(pool: str) -> str:
    """Return a pool's key, relative to its release."""
    return f"pools/{pool}"


def backend_key(pool: str, backend: str) -> str:
    """Return a backend's key, relative to its release."""
    return f"pools/{pool}/backends/{backend}"


class KeyRange(NamedTuple):
    """Keys from one to before another, as etcd asks for them; no end is the one key."""

    key: bytes
    end: bytes


def key_range(key: str) -> KeyRange:
    """Return the range of all keys below a key that ends with a slash, or of the one key."""
    start = key.encode()
    return KeyRange(start, prefix_end(start) if key.endswith("/") else b"")


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all keys that start with `prefix`, as etcd's ranges want it."""
    end = prefix.rstrip(b"\xff")
    # A NUL is etcd's word for "to the end of the keyspace".
    return end[:-1] + bytes([end[-1] + 1]) if end else b"\0"


def _fleet(root: str, fleet: str) -> str:
    if not root.startswith("/") or root.endswith("/"):
        raise ConfigError(f"etcd.root is {root!r}; it must start with a slash and not end with one")
    return f"{root}/{_part('fleet', fleet)}"


def _part(what: str, text: str) -> str:
    if not is_name(text):
        raise ConfigError(f"{what} is {text!r}; {NAME_RULE}")
    return text
