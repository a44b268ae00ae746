/* SPDX-License-Identifier: GPL-2.0-only */
/* Every structure that the data plane shares with the agent, drawn once.
 *
 * The agent's side is agent/tidegate/dataplane/layout.py; each load compares the two field by field
 * and refuses a program whose drawing differs. Addresses are 16 bytes: IPv6, or IPv4 mapped as
 * ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2), which never appears on a wire, so that the families
 * cannot be confused. Addresses and ports are in network order, all else in host order.
 */
#pragma once

struct vip_key {
	u32 address[4];
	u16 port;
	u8 protocol;
	u8 zero;
};

struct vip {
	u32 id;
	u32 incarnation;
	u32 pool; /* slot of the outer map */
	u32 zero;
	u64 tag; /* hash of address, port and protocol: equal on every host, unlike the id */
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
	u16 zero;
	struct endpoint endpoints[2];
};

struct flow_key {
	u32 source[4];
	u32 vip;
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
	u64 rehashed;
};

struct backend_counters {
	u64 packets;
	u64 bytes;
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

/* The flag is more than `current != fallback`: a slot that moved away and back inside its window
 * has equal owners, and still has flows of the owner in between. */
struct slot {
	u32 current;
	u32 fallback; /* with IN_WINDOW while the slot's transition window is open */
};

/* TABLE_BYTES comes from the agent as a number: bcc cannot describe a bound with sizeof in it. */
_Static_assert(TABLE_BYTES == ((sizeof(struct table_header) +
				TABLE_SIZE * (sizeof(struct slot) + 1) + 7) & ~7UL),
	       "TABLE_BYTES is not header, slots and windows, rounded up to 8");

struct table {
	char bytes[TABLE_BYTES];
};
