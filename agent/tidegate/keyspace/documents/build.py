# SPDX-License-Identifier: Apache-2.0
"""Build the value of a document that has the right types, or find its faults.

These are the rules between the fields of one document; `decode` has those of single fields, and
`validate` those between documents.
"""

from collections.abc import Iterable
from typing import Final

from tidegate.keyspace.documents.addresses import (
    parse_address,
    parse_network,
    parse_service_network,
)
from tidegate.keyspace.documents.check_rules import health_faults
from tidegate.keyspace.documents.decode import Fault
from tidegate.keyspace.documents.timestamps import parse_timestamp
from tidegate.model.constants import MAX_VIP_ROUTES
from tidegate.model.documents import BackendDocument, PoolDocument, VipDocument
from tidegate.model.values import (
    Backend,
    BackendKey,
    Network,
    Pool,
    Quic,
    SourceRoute,
    SynLimit,
    Vip,
)

_LONGEST_CONNECTION_ID: Final = 20  # bytes, RFC 9000 section 17.2


def build_vip(name: str, document: VipDocument) -> Vip | list[Fault]:
    """Build a VIP from its document."""
    network = parse_service_network(document.address)
    if isinstance(network, str):
        return [_fault("address", f"address {network}")]
    faults = _quic_faults(document)
    if document.sorry_pool == document.pool:
        reason = "is the pool that it stands in for; name another pool"
        faults.append(_fault("sorry_pool", f"sorry_pool {reason}"))
    routes = _clients("source_routes", document.source_routes, network, faults)
    deny = _clients("deny", document.deny, network, faults)
    faults += [
        _fault("deny", f"deny has {both}, which source_routes has too; remove one of them")
        for both in sorted(routes.keys() & deny.keys(), key=str)
    ]
    count = len(document.source_routes) + len(document.deny)
    if count > MAX_VIP_ROUTES:
        limit = f"the limit is {MAX_VIP_ROUTES}"
        reason = f"source_routes and deny have {count} networks together; {limit}"
        faults.append(_fault("source_routes", reason))
    if faults:
        return faults
    pools = document.source_routes
    quic, syn = document.quic, document.syn_limit
    return Vip(
        name=name,
        network=network,
        port=document.port,
        protocol=document.protocol,
        pool=document.pool,
        tracking=document.tracking,
        hash=document.hash,
        unserved=document.unserved,
        udp_idle_timeout=document.udp_idle_timeout,
        tcp_idle_timeout=document.tcp_idle_timeout,
        insert_limit=document.insert_limit,
        syn_limit=SynLimit(syn.rate, syn.prefix4, syn.prefix6) if syn else None,
        mss_clamp=document.mss_clamp,
        echo=document.echo,
        quic=Quic(quic.server_id_length, quic.offset) if quic else None,
        source_routes=tuple(
            SourceRoute(client, pools[routes[client]]) for client in sorted(routes)
        ),
        deny=tuple(sorted(deny)),
        flow_sampling=document.flow_sampling,
        sorry_pool=document.sorry_pool,
    )


def build_pool(name: str, document: PoolDocument) -> Pool | list[Fault]:
    """Build a pool from its document."""
    faults = health_faults(document.health) if document.health else []
    return faults or Pool(
        name=name,
        deregistration_delay=document.deregistration_delay,
        transition_window=document.transition_window,
        encapsulation=document.encapsulation,
        gue_port=document.gue_port,
        mtu=document.mtu,
        slow_start=document.slow_start,
        slow_start_steps=document.slow_start_steps,
        max_removed_percent=document.max_removed_percent,
        health=document.health,
    )


def build_backend(owner: BackendKey, document: BackendDocument) -> Backend | list[Fault]:
    """Build a backend from its document."""
    address = parse_address(document.address)
    start, deadline = _time(document.starts_at), _time(document.drain_deadline)
    if deadline is not None and document.state != "drain":
        deadline = 'needs state "drain"'
    if isinstance(address, str) or isinstance(start, str) or isinstance(deadline, str):
        found = {"address": address, "starts_at": start, "drain_deadline": deadline}
        return [_fault(f, f"{f} {what}") for f, what in found.items() if isinstance(what, str)]
    server_id = document.quic_server_id
    return Backend(
        pool=owner.pool,
        name=owner.name,
        address=address,
        weight=document.weight,
        state=document.state,
        quic_server_id=bytes.fromhex(server_id) if server_id else b"",
        starts_at=start,
        drain_deadline=deadline,
    )


def _time(text: str | None) -> int | str | None:
    return None if text is None else parse_timestamp(text)


def _clients(
    field: str, texts: Iterable[str], service: Network, faults: list[Fault]
) -> dict[Network, str]:
    """Return the client networks of a field with their texts, and add its faults."""
    found: dict[Network, str] = {}
    for text in texts:
        network = parse_network(text)
        if isinstance(network, str):
            faults.append(_fault(field, f"an entry of {field} {network}"))
        elif network.version != service.version:
            reason = f"is {text}, but clients of this VIP have IPv{service.version} addresses"
            faults.append(_fault(field, f"an entry of {field} {reason}"))
        elif network in found:
            faults.append(_fault(field, f"{field} has {network} twice; write it once"))
        else:
            found[network] = text
    return found


def _quic_faults(document: VipDocument) -> list[Fault]:
    quic = document.quic
    if quic is None:
        return []
    if document.protocol != "udp":
        return [_fault("quic", 'quic needs protocol "udp"')]
    length = quic.offset + quic.server_id_length
    if length > _LONGEST_CONNECTION_ID:
        limit = f"a connection id has at most {_LONGEST_CONNECTION_ID}"
        return [_fault("quic", f"quic ends at byte {length} of connection ids; {limit}")]
    return []


def _fault(field: str, reason: str) -> Fault:
    return Fault(field, reason, "schema")
