/* SPDX-License-Identifier: GPL-2.0-only */
/* Every structure that the data plane shares with the agent, defined once.
 *
 * The agent's side is agent/tidegate/dataplane/kernel/layout.py; each load compares the two field by field
 * and refuses a program whose layout differs. Addresses are 16 bytes: IPv6, or IPv4 mapped as
 * ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2), which never appears on a wire, so that the families
 * cannot be confused. Addresses and ports are in network order, all else in host order.
 */
#pragma once

/* Key of a VIP in `vips`. Port 0 is any port. Every VIP address has an entry of protocol ICMP or
 * ICMPv6 too: ICMP and later fragments, which have no ports, are recognised by it. */
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

/* Key of `own_addresses`: an address of one of this host's interfaces, of 16 bytes as all are. */
struct own_key {
	u32 address[4];
};

#define VIP_TRACK_TRANSITION (1 << 0) /* track flows of slots in transition only */
#define VIP_TRACK_NONE (1 << 1)
#define VIP_HASH_SOURCE (1 << 2) /* source address alone */
#define VIP_HASH_SOURCE_PORT (1 << 3) /* source address and destination port */
#define VIP_PREFIX (1 << 4) /* a network: destination addresses differ */
#define VIP_ECHO (1 << 5) /* answer pings (on entries of protocol ICMP) */
#define VIP_ROUTES (1 << 6) /* has entries in `routes` */
#define VIP_LONG_WAY (1 << 7) /* uses what the short way of a packet does not have (plain.h) */
#define VIP_MOVED (1 << 8) /* has had other pools, whose flows may still have entries */
#define VIP_SYN_LONG_WAY (1 << 9) /* and its SYNs do, for a limit on them or their MSS */
#define VIP_SAMPLED (1 << 10) /* reports events of some flows */
#define ADDRESS_PASSES (1 << 11) /* what no VIP takes passes (on entries of protocol ICMP) */
#define ADDRESS_REJECTS (1 << 12) /* or is answered */
#define ADDRESS_ENTRY (1 << 13) /* an address and no service (all entries of protocol ICMP) */

struct vip {
	u32 id;
	u32 incarnation;
	u32 pool; /* slot of the outer map */
	u32 flags;
	u64 tag; /* hash of address, port and protocol: equal on every host, unlike the id */
	u64 salt; /* hash of id and incarnation: differs between two uses of an id */
	u32 idle; /* s without a packet after which a UDP flow is forgotten; 0: never */
	u32 tcp_idle; /* s without a packet after which a TCP flow has ended; 0: never */
	u32 insert_rate; /* new entries in the connection table, per second and CPU */
	u32 syn_rate; /* SYNs per second and source prefix; 0: no limit */
	u8 syn_prefix4; /* length of that prefix */
	u8 syn_prefix6;
	u16 mss; /* largest MSS that a SYN may offer; 0: as it is */
	u8 quic_length; /* bytes of the server id in a QUIC connection id; 0: not QUIC */
	u8 quic_offset; /* where it begins in the connection id */
	u16 zero;
	u32 sampling; /* flows in 65536 whose events are reported */
	u32 unused;
};

/* A place of `vips`, two cache lines: what every packet reads is in the first, up to `tcp_idle`. A
 * place that is empty is all zero: no VIP has protocol 0. */
struct vip_place {
	struct vip_key key;
	u32 zero;
	struct vip vip;
	u8 unused[40];
};

_Static_assert(sizeof(struct vip_place) == 128, "a place is two cache lines");
_Static_assert(__builtin_offsetof(struct vip_place, vip.insert_rate) == 64,
	       "what every packet reads fills the first cache line");

/* Which addresses may be a VIP's: one bit for each value of a hash of 16 bits. A bit that is not set
 * says no for certain. `networks`: the first 16 bits of an IPv4 address, or a hash of the first 32 of
 * an IPv6 one, for VIPs that are networks. */
#define ADDRESS_WORDS 1024

struct address_bits {
	u64 hosts[ADDRESS_WORDS];
	u64 networks[ADDRESS_WORDS];
};

struct endpoint {
	u32 address[4];
	u32 family; /* 4 or 6 */
};

#define BACKEND_QUARANTINED 1 /* out of everything, established flows included */
#define BACKEND_DRAINING 2 /* takes no new flows */

/* An update of an array element is a plain copy that a packet may see half done. So an address is
 * first written to the endpoint that is not selected, then selected by a second update that changes
 * one byte: a packet sees the old address or the new one, never a mixture. */
struct backend {
	u32 incarnation; /* 0: no backend has this id */
	u8 flags;
	u8 selected; /* which endpoint is in force, 0 or 1 */
	u16 gue_port; /* destination port of GUE (UDP) encapsulation, host order; 0: IP in IP */
	u32 mtu; /* bytes of the outer packet on the way to it; 0: as the link's */
	u32 pool; /* that it is in; 0: its pool is gone */
	struct endpoint endpoints[2];
	u32 unused[2]; /* an entry is 64 bytes */
};

#define LINE_ENTRIES 5

/* A line of the connection table, the SYN marks or the fragments (lines.h). */
struct line {
	u64 owners[LINE_ENTRIES]; /* 40 bits of fingerprint, 8 of incarnation, 16 of backend; 0: empty */
	u32 states[LINE_ENTRIES]; /* 16 bits of tick, 12 of VIP id, 4 of flags; of a mark: the SYN's
				   * sequence number */
	u32 moments; /* of marks: 6 bits each, when its SYN came */
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

#define STAND_INS 16

/* Who takes the flows of a pool's slots whose owners are out, where re-hashing finds nobody. Fewer
 * backends are listed again and again. */
struct stand_ins {
	u32 ids[STAND_INS];
};

/* A limit (limit.h). */
struct bucket {
	u64 spent; /* moment up to which its tokens are spent, in 1/2^24 of a jiffy */
	u64 unused;
};

/* The MAC addresses of a frame to a gateway, destination first, as they are written: by words. */
struct macs {
	u32 words[3];
};

#define OWN_MACS 6

struct link {
	struct macs to4;
	struct macs to6;
	u32 mtu; /* bytes of IP packet that the link carries */
	u8 has_gateway4;
	u8 has_gateway6;
	u8 takes_any; /* frames for any unicast MAC address are ours */
	u8 zero;
	u64 own[OWN_MACS]; /* or those for these, as little-endian words; no address: all ones */
};

struct vip_counters {
	u64 packets;
	u64 bytes; /* of the IP packets received, before encapsulation */
	u64 decisions[DECISIONS];
	u64 rehashed_quarantined; /* the slot's owner was quarantined */
	u64 rehashed_gone; /* the slot has no owner, or none that exists */
	u64 tracked; /* entries written to the connection table */
	u64 untracked; /* entries not written, since the limit was reached */
	u64 answered; /* packets too big */
	u64 drops[REASONS];
};

/* Of an address that VIPs have: what is for none of their flows. Its id is the lowest of theirs. */
struct address_counters {
	u64 answered; /* pings, and rejections */
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
