/* SPDX-License-Identifier: GPL-2.0-only */
/* Every structure that the data plane shares with the agent, defined once.
 *
 * The agent's side is agent/tidegate/dataplane/kernel/layout.py; each load compares the two field by field
 * and refuses a program whose layout differs. Addresses are 16 bytes: IPv6, or IPv4 mapped as
 * ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2), which never appears on a wire, so that the families
 * cannot be confused. Addresses and ports are in network order, all else in host order.
 */
#pragma once

/* Key of `vips`. Port 0 is any port. Every VIP address has an entry of protocol ICMP or ICMPv6 too:
 * ICMP and later fragments, which have no ports, are recognised by it. */
struct vip_key {
	u32 address[4];
	u16 port;
	u8 protocol;
	u8 zero;
};

/* Key of `prefixes`, the VIPs that are networks: protocol and port first, matched whole. */
struct prefix_key {
	u32 length; /* bits: 32 for what is before the address, and the address's own */
	u8 protocol;
	u8 zero;
	u16 port;
	u32 address[4];
};

#define VIP_TRACK_TRANSITION (1 << 0) /* track flows of slots in transition only */
#define VIP_TRACK_NONE (1 << 1)
#define VIP_HASH_SOURCE (1 << 2) /* source address alone */
#define VIP_HASH_SOURCE_PORT (1 << 3) /* source address and destination port */
#define VIP_PREFIX (1 << 4) /* a network: destination addresses differ */
#define VIP_ECHO (1 << 5) /* answer pings (on entries of protocol ICMP) */
#define VIP_ROUTES (1 << 6) /* has entries in `routes` */

struct vip {
	u32 id;
	u32 incarnation;
	u32 pool; /* slot of the outer map */
	u32 flags;
	u64 tag; /* hash of address, port and protocol: equal on every host, unlike the id */
	u32 idle; /* s without a packet after which a UDP flow is forgotten; 0: never */
	u32 insert_rate; /* new entries in the connection table, per second and CPU */
	u32 syn_rate; /* SYNs per second and source prefix; 0: no limit */
	u8 syn_prefix4; /* length of that prefix */
	u8 syn_prefix6;
	u16 mss; /* largest MSS that a SYN may offer; 0: as it is */
	u8 quic_length; /* bytes of the server id in a QUIC connection id; 0: not QUIC */
	u8 quic_offset; /* where it begins in the connection id */
	u16 zero;
	u32 sampling; /* flows in 65536 whose events are reported */
};

struct endpoint {
	u32 address[4];
	u32 family; /* 4 or 6 */
};

#define BACKEND_QUARANTINED 1 /* out of everything, established flows included */

/* An update of an array element is a plain copy that a packet may see half done. So an address is
 * first written to the endpoint that is not selected, then selected by a second update that changes
 * one byte: a packet sees the old address or the new one, never a mixture. */
struct backend {
	u32 incarnation; /* 0: no backend has this id */
	u8 flags;
	u8 selected; /* which endpoint is in force, 0 or 1 */
	u16 gue_port; /* destination port of GUE (UDP) encapsulation, host order; 0: IP in IP */
	u32 mtu; /* bytes of the outer packet on the way to it; 0: as the link's */
	struct endpoint endpoints[2];
};

struct flow_key {
	u32 source[4];
	u32 vip; /* id, and for a network VIP a digest of the destination address above bit 12 */
	u16 source_port;
	u16 port;
};

/* Connection table and SYN table: which use of which backend id a flow belongs to. */
struct flow {
	u32 backend;
	u32 backend_incarnation;
	u32 vip_incarnation;
	u32 zero;
	u64 generation; /* of the table that chose the backend */
	u64 seen;	/* CLOCK_MONOTONIC, ns: when the entry was written; UDP: last packet */
};

/* Datagrams in fragments: where the first fragment went (RFC 791, RFC 8200 section 4.5). */
struct fragment_key {
	u32 source[4];
	u32 destination[4];
	u32 id; /* as on the wire */
	u32 protocol; /* of IPv4, where ids are per protocol; 0 in IPv6 */
};

/* Client prefixes of a VIP that go elsewhere. */
struct route_key {
	u32 length; /* bits: 32 for the VIP, and the address's own */
	u32 vip;
	u32 source[4];
};

#define ROUTE_DENY 1

struct route {
	u32 pool;
	u32 flags;
};

/* QUIC server ids (draft-ietf-quic-load-balancers section 4.1, plaintext), padded with zeros. */
struct quic_key {
	u32 pool;
	u8 length;
	u8 id[15];
};

struct quic_server {
	u32 backend;
	u32 backend_incarnation;
};

/* A limit: tokens are refilled by the time since, up to one second's worth. */
struct bucket {
	u64 tokens; /* in 1/2^20 */
	u64 at; /* CLOCK_MONOTONIC, ns */
};

struct limit_key {
	u32 vip;
	u32 prefix[4];
};

struct link {
	u8 mac[6];
	u8 gateway4[6];
	u8 gateway6[6];
	u8 has_gateway4;
	u8 has_gateway6;
	u32 mtu; /* bytes of IP packet that the link carries */
};

struct vip_counters {
	u64 packets;
	u64 bytes; /* of the IP packets received, before encapsulation */
	u64 decisions[DECISIONS];
	u64 rehashed_quarantined; /* the slot's owner was quarantined */
	u64 rehashed_gone; /* the slot has no owner, or none that exists */
	u64 tracked; /* entries written to the connection table */
	u64 untracked; /* entries not written, since the limit was reached */
	u64 answered; /* pings, and packets too big */
	u64 drops[REASONS];
};

struct backend_counters {
	u64 packets;
	u64 bytes;
};

/* A record of the ring buffer `events`: what happened to a sampled flow. Backend, decision and
 * generation are 0 where no backend was chosen; id 0 is never a backend. */
struct event {
	u64 time; /* CLOCK_MONOTONIC, ns */
	u64 generation; /* of the table that chose the backend; 0: none did (QUIC) */
	u32 vip;
	u32 vip_incarnation;
	u32 backend;
	u32 backend_incarnation;
	u32 slot;
	u8 kind;
	u8 decision;
	u8 reason;
	u8 protocol;
	u32 source[4];
	u32 destination[4];
	u16 source_port;
	u16 port;
	u32 zero;
};

struct event_counters {
	u64 sent;
	u64 lost; /* above the limit, or the ring buffer was full */
};

/* The leaf of an inner map, one element: a header, then the slots that packets read, then each
 * slot's window, which only the agent reads. It is declared as bytes because bcc would describe
 * every array element to its own compiler, which takes seconds. */
#define WINDOWS 256

struct window {
	u64 opened; /* generation whose table opened it */
	u64 closes_at; /* wall clock, s */
};

struct table_header {
	u64 generation;
	u32 window_count;
	u32 zero;
	struct window windows[WINDOWS];
};

#define IN_WINDOW 0x80000000U
#define MAY_BE_TRACKED 0x40000000U
#define OWNER 0x3fffffffU

/* IN_WINDOW is more than `current != fallback`: a slot that moved away and back inside its window
 * has equal owners, and still has flows of the owner in between. MAY_BE_TRACKED is set with it and
 * stays: flows that were tracked in the window may outlive it. */
struct slot {
	u32 current;
	u32 fallback; /* and the two flags */
};

/* TABLE_BYTES comes from the agent as a number: bcc cannot describe a bound with sizeof in it. */
_Static_assert(TABLE_BYTES == ((sizeof(struct table_header) +
				TABLE_SIZE * (sizeof(struct slot) + 1) + 7) & ~7UL),
	       "TABLE_BYTES is not header, slots and windows, rounded up to 8");

struct table {
	char bytes[TABLE_BYTES];
};
