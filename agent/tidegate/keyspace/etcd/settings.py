# SPDX-License-Identifier: Apache-2.0
"""The `[etcd]` table of the agent's file: where etcd is, which user we are, and how long we wait.

Holds paths of secrets, never secrets. Opens no file and no connection.
"""

from ipaddress import AddressValueError, IPv4Address, ip_address
from typing import Annotated, Final

from msgspec import Meta, Struct

from tidegate.errors import ConfigError

_MAX_PORT: Final = 65535

PositiveSeconds = Annotated[float, Meta(gt=0, le=3600)]


class EtcdSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to reach etcd. All times are seconds; `check` says whether the whole makes sense."""

    root: Annotated[str, Meta(description="Key under which all fleets live.")] = "/tidegate"
    endpoints: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="host:port of each member; IPv6 as [address]:port."),
    ] = ("127.0.0.1:2379",)
    ca: Annotated[
        str | None, Meta(description="PEM file of the authorities that sign etcd's certificate.")
    ] = None
    cert: Annotated[str | None, Meta(description="PEM file of this host's certificate.")] = None
    key: Annotated[str | None, Meta(description="PEM file of that certificate's key.")] = None
    server_name: Annotated[
        str | None,
        Meta(description="Name that etcd's certificate must carry, if not the endpoint's own."),
    ] = None
    user: Annotated[str | None, Meta(description="etcd user.")] = None
    password_file: Annotated[
        str | None, Meta(description="File with that user's password; read again at each login.")
    ] = None
    call_timeout: Annotated[
        PositiveSeconds, Meta(description="Deadline of one call, such as one page of a list.")
    ] = 5.0
    backoff_max: Annotated[
        PositiveSeconds, Meta(description="Longest wait between two tries; each wait is random.")
    ] = 3.0
    idle_probe: Annotated[
        PositiveSeconds, Meta(description="Silence after which a watch asks for a sign of life.")
    ] = 2.0
    silence_limit: Annotated[
        PositiveSeconds,
        Meta(description="Silence after which a watch is given up; a list follows."),
    ] = 6.0
    stale_after: Annotated[
        PositiveSeconds, Meta(description="Time without contact after which state is `stale`.")
    ] = 15.0
    relist_interval: Annotated[
        PositiveSeconds,
        Meta(description="Time between two full lists, which find what a watch may have lost."),
    ] = 300.0
    fatal_retry: Annotated[
        PositiveSeconds, Meta(description="Wait after a refusal that only a person can mend.")
    ] = 30.0
    page_size: Annotated[int, Meta(ge=1, le=100_000, description="Keys in one page of a list.")] = (
        1000
    )
    status_ttl: Annotated[
        int, Meta(ge=3, le=3600, description="Seconds for which a dead host's status remains.")
    ] = 15


def check(settings: EtcdSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: names the key and says what is allowed.
    """
    if not settings.root.startswith("/") or settings.root.endswith("/"):
        raise ConfigError(
            f"etcd.root is {settings.root!r}; it must start with a slash and not end with one"
        )
    for endpoint in settings.endpoints:
        split_endpoint(endpoint)
    _check_tls(settings)
    _check_user(settings)
    if settings.silence_limit <= settings.idle_probe:
        raise ConfigError("etcd.silence_limit must be longer than etcd.idle_probe")


def _check_tls(settings: EtcdSettings) -> None:
    if (settings.cert is None) != (settings.key is None):
        missing = "key" if settings.key is None else "cert"
        raise ConfigError(f"etcd.{missing} is missing: etcd.cert and etcd.key go together")
    if settings.cert is not None and settings.ca is None:
        # etcd3 would use plain text here, silently.
        raise ConfigError("etcd.ca is missing: a client certificate is used only with TLS")
    if settings.server_name is not None and settings.ca is None:
        raise ConfigError("etcd.ca is missing: etcd.server_name is used only with TLS")


def _check_user(settings: EtcdSettings) -> None:
    if (settings.user is None) != (settings.password_file is None):
        missing = "user" if settings.user is None else "password_file"
        raise ConfigError(f"etcd.{missing} is missing: user and password_file go together")
    if settings.user is None or settings.ca is not None:
        return
    for endpoint in settings.endpoints:
        host = split_endpoint(endpoint)[0]
        if host != "localhost" and not _is_loopback(host):
            raise ConfigError(
                f"etcd.ca is missing: the password of etcd.user would go to {endpoint} in plain "
                "text; without TLS a user is accepted on loopback only"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Split `host:port` or `[address]:port` into host and port.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = endpoint.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    number = int(port) if port.isascii() and port.isdigit() else 0
    plain = host and not set(host) & set("/ ,@[]")
    if not colon or not plain or (":" in host) != bracketed or not 1 <= number <= _MAX_PORT:
        raise ConfigError(
            f"etcd.endpoints has {endpoint!r}; an endpoint is host:port or [IPv6 address]:port, "
            "without a scheme"
        )
    return host, number


def targets(settings: EtcdSettings) -> tuple[str, ...]:
    """Return gRPC targets to use in turn, each as `host:port`-shaped text.

    One target with all addresses has gRPC fail over by itself within a fraction of a second. It
    exists for addresses of one family only, and its certificate check needs one name for all; other
    lists become a target each, and the client moves to the next when one fails.
    """
    hosts = [split_endpoint(endpoint)[0] for endpoint in settings.endpoints]
    one_name = settings.ca is None or settings.server_name is not None
    if len(hosts) > 1 and one_name:
        if all(_is_ipv4(host) for host in hosts):
            return ("ipv4:" + ",".join(settings.endpoints),)
        if all(":" in host for host in hosts):
            return ("ipv6:" + ",".join(settings.endpoints),)
    return settings.endpoints


def _is_ipv4(host: str) -> bool:
    try:
        IPv4Address(host)
    except AddressValueError:
        return False
    return True
