/* SPDX-License-Identifier: GPL-2.0-only */
/* The maps that balancer.c uses. The agent creates them (agent/tidegate/dataplane/kernel/maps.py holds
 * their sizes and flags) and puts their descriptors into the compiled program, so that a new
 * program takes over the maps of the one before. The one-element sizes here are never used. */
#pragma once

BPF_TABLE("array", u32, struct vip_place, vips, 1); /* two images of VIP_PLACES places */
BPF_TABLE("array", u32, u32, vip_image, 1); /* which of them is in force, 0 or 1 */
BPF_TABLE("array", u32, struct address_bits, vip_addresses, 1);
BPF_F_TABLE("lpm_trie", struct prefix_key, struct vip, prefixes, 1, BPF_F_NO_PREALLOC);
BPF_TABLE("hash", struct own_key, u32, own_addresses, 1); /* a set: of this host */
BPF_F_TABLE("lpm_trie", struct route_key, struct route, routes, 1, BPF_F_NO_PREALLOC);
BPF_TABLE("array", u32, struct table, inner, 1);
BPF_ARRAY_OF_MAPS(outer, "inner", 1);
BPF_TABLE("array", u32, struct backend, backends, 1);
BPF_TABLE("array", u32, struct line, flows, 1);
BPF_TABLE("array", u32, struct line, syns, 1); /* marks of flows whose handshake is not complete */
BPF_TABLE("array", u32, struct line, fragments, 1);
BPF_TABLE("hash", struct quic_key, struct quic_server, quic_servers, 1);
BPF_TABLE("hash", u32, struct stand_ins, stand_ins, 1); /* by pool */
BPF_TABLE("array", u32, u64, syn_limits, 1); /* two rows of cells that all prefixes share (limit.h) */
BPF_TABLE("array", u32, u64, mark_limits, 1); /* likewise, of marks */
BPF_TABLE("percpu_array", u32, struct bucket, insert_limits, 1);
BPF_TABLE("percpu_array", u32, struct bucket, answer_limits, 1); /* by kind of answer */
BPF_TABLE("percpu_array", u32, struct bucket, error_limits, 1); /* of ICMP errors, by VIP id */
BPF_TABLE("array", u32, struct link, links, 1); /* by interface index */
BPF_TABLE("percpu_array", u32, struct vip_counters, vip_counts, 1);
BPF_TABLE("percpu_array", u32, struct address_counters, address_counts, 1);
BPF_TABLE("percpu_array", u32, struct backend_counters, backend_counts, 1);
BPF_TABLE("percpu_array", u32, u64, verdict_counts, 1);
#if WITH_EVENTS
BPF_RINGBUF_OUTPUT(events, 1); /* of struct event */
BPF_TABLE("percpu_array", u32, struct event, event_space, 1); /* where an event is built */
BPF_TABLE("percpu_array", u32, struct bucket, event_limits, 1); /* by VIP id; 0: shared by all VIPs */
BPF_TABLE("percpu_array", u32, struct event_counters, event_counts, 1);
#endif
