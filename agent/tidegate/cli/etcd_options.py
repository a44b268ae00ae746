# SPDX-License-Identifier: Apache-2.0
"""The options by which an operator's command finds etcd: the agent's file, single ones, or both.

`add_options` adds the options, `fleet` reads them, `keyspace/etcd/store.py` has the connection. Of
the agent's file only `fleet` and `[etcd]` are read, so an operator's file needs nothing else.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tidegate.keyspace.etcd.store import Fleet

_OPTIONS: Final = {
    "root": "key under which all fleets live (default /tidegate)",
    "ca": "PEM file of the authorities that sign etcd's certificate",
    "cert": "PEM file of your certificate",
    "key": "PEM file of its key",
    "server-name": "name that etcd's certificate must carry, if not the endpoint's own",
    "user": "etcd user",
    "password-file": "file with that user's password",
}

WHERE: Final = """\
etcd is found by -c FILE, the agent's file; other options take precedence over it:
  tidegate … -c /etc/tidegate/agent.toml
  tidegate … --endpoints 10.0.0.1:2379,10.0.0.2:2379 --fleet edge
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options for etcd and the fleet."""
    group = command.add_argument_group("where etcd is")
    group.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="the agent's file: its [etcd] and fleet"
    )
    group.add_argument(
        "--endpoints", metavar="HOST:PORT,…", help="etcd's members (default 127.0.0.1:2379)"
    )
    group.add_argument("--fleet", metavar="NAME", help="the fleet (default default)")
    for name, text in _OPTIONS.items():
        metavar = "FILE" if name in {"ca", "cert", "key", "password-file"} else "TEXT"
        # Not "key" and the like: commands have options of that name too.
        group.add_argument(f"--{name}", dest=_place(name), metavar=metavar, help=text)


def fleet(options: argparse.Namespace) -> "Fleet":
    """Return the fleet that the options name.

    Raises:
        ConfigError: it cannot be used; the text names the file and key, or the option.
    """
    import msgspec

    from tidegate.keyspace.etcd.settings import EtcdSettings, check
    from tidegate.keyspace.etcd.store import Fleet

    found = Fleet(EtcdSettings(), "default")
    if options.config is not None:
        found = _from_file(options.config)
    given = {name.replace("-", "_"): getattr(options, _place(name)) for name in _OPTIONS}
    if options.endpoints is not None:
        given["endpoints"] = tuple(options.endpoints.split(","))
    given = {name: value for name, value in given.items() if value is not None}
    settings = msgspec.structs.replace(found.etcd, **given)
    check(settings)
    return Fleet(settings, options.fleet or found.name)


def _place(name: str) -> str:
    return f"etcd_{name.replace('-', '_')}"


def _from_file(path: Path) -> "Fleet":
    import tomllib

    import msgspec

    from tidegate.errors import ConfigError
    from tidegate.keyspace.etcd.settings import EtcdSettings
    from tidegate.keyspace.etcd.store import Fleet
    from tidegate.model.document_types import Name

    class Part(msgspec.Struct, frozen=True):
        """What an operator's command needs of the file."""

        fleet: Name = "default"
        etcd: EtcdSettings = msgspec.field(default_factory=EtcdSettings)

    try:
        part = msgspec.convert(tomllib.loads(path.read_text("utf-8")), Part, strict=True)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    return Fleet(part.etcd, part.fleet)
