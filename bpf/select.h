/* SPDX-License-Identifier: GPL-2.0-only */
/* Which backend a packet goes to.
 *
 * A flow stays where it is because of three facts. A tracked flow is found in the connection table,
 * whatever the Maglev table says. A flow that was born while its slot was in transition is in the
 * SYN table with the backend that its SYN went to, until its first ACK tracks it. So an untracked
 * packet that is not a SYN belongs to a flow from before the window, whose owner is the slot's
 * fallback, however often the slot changed since. A mark in the SYN table counts only if it was
 * made inside the window that is open now: an older one was left by a flow that never finished its
 * handshake.
 *
 * With tracking `transition` this holds with far fewer entries: a slot that never was in transition
 * has no tracked flow, so its packets need no look-up; and all that is seen in a window is tracked,
 * so whoever sends at least once in it stays when it closes. */
#pragma once

/* Look-ups after an unusable owner; with half of all slots unusable one packet in 500 finds none. */
#define REHASHES 8
#define DIGEST_BITS 0xfffff000U /* ids of VIPs are below 4096 */

struct choice {
	u64 hash;
	u64 generation;
	u32 pool;
	u32 id;
	u32 incarnation;
	u32 slot;
	u8 decision;
	bool is_rehashed;
	bool was_quarantined; /* the owner that was passed over */
	bool track;
	bool had_entry; /* the connection table named a backend, usable or not */
	bool is_promoted; /* an entry was written */
	bool is_refused; /* or the limit on entries refused it */
};

/* The key of a flow in the connection table and the SYN table. A network VIP has many destination addresses: a digest of it takes the
 * bits above the id. If two collide, the two flows of one client port share a backend. */
static __always_inline void flow_key_of(struct flow_key *key, const struct packet *packet,
					const struct vip *vip)
{
	__builtin_memcpy(key->source, packet->source, sizeof(key->source));
	key->vip = vip->id;
	key->source_port = packet->source_port;
	key->port = packet->destination.port;
#if WITH_PREFIXES
	if (vip->flags & VIP_PREFIX) {
		const u32 *to = packet->destination.address;

		/* The upper bits of a product depend on all bits of its factors. */
		key->vip |= (to[0] * 0x27d4eb2fU ^ to[1] * 0x9e3779b1U ^ to[2] * 0x85ebca6bU ^
			     to[3] * 0xc2b2ae35U) & DIGEST_BITS;
	}
#endif
}

/* The backend with this id if packets may go to it. Incarnation 0 asks for any use of the id. */
static __always_inline struct backend *usable(u32 id, u32 incarnation)
{
	struct backend *backend = backends.lookup(&id);

	if (!backend || !backend->incarnation || backend->flags & BACKEND_QUARANTINED)
		return NULL;
	if (incarnation && backend->incarnation != incarnation)
		return NULL;
	return backend;
}

static __always_inline struct slot *slot_at(struct table *table, u32 i)
{
	/* The barrier keeps clang from dropping a check that only the verifier needs. */
	asm volatile("" : "+r"(i));
	if (i >= TABLE_SIZE)
		return NULL;
	return (struct slot *)(table->bytes + sizeof(struct table_header)) + i;
}

/* The generation whose table opened the window that this slot is in. */
static __always_inline u64 window_opened(struct table *table, u32 i)
{
	u8 *windows = (u8 *)table->bytes + sizeof(struct table_header) +
		      TABLE_SIZE * sizeof(struct slot);
	struct table_header *header = (struct table_header *)table->bytes;
	u32 window;

	asm volatile("" : "+r"(i));
	if (i >= TABLE_SIZE)
		return ~0ULL;
	window = windows[i];
	return header->windows[window].opened;
}

static __always_inline bool choose(struct choice *choice, u32 id, u32 incarnation, u8 decision)
{
	struct backend *backend = usable(id, incarnation);

	if (!backend)
		return false;
	choice->id = id;
	choice->incarnation = backend->incarnation;
	choice->decision = decision;
	return true;
}

static __always_inline bool choose_tracked(struct choice *choice, const struct vip *vip,
					   const struct packet *packet, struct flow_key *key)
{
	struct flow *flow = flows.lookup(key);

	if (!flow || flow->vip_incarnation != vip->incarnation)
		return false;
#if WITH_UDP
	if (packet->kind == KIND_UDP) {
		u64 now = bpf_ktime_get_ns();

		if (vip->idle && now - flow->seen > vip->idle * SECOND)
			return false;
#if WITH_EVENTS
		choice->had_entry = true;
#endif
		if (!choose(choice, flow->backend, flow->backend_incarnation, BY_TRACKED))
			return false;
		if (!packet->is_error)
			flow->seen = now;
		choice->generation = flow->generation;
		return true;
	}
#endif
#if WITH_EVENTS
	choice->had_entry = true;
#endif
	choice->generation = flow->generation;
	return choose(choice, flow->backend, flow->backend_incarnation, BY_TRACKED);
}

/* The owner is unusable: try the owners of slots drawn from the same hash, the same on each host. */
static __always_inline bool choose_rehashed(struct choice *choice, struct table *table, u32 owner,
					    u8 decision)
{
	struct backend *passed_over = backends.lookup(&owner);
	u64 hash = choice->hash;

	choice->is_rehashed = true;
	choice->was_quarantined = passed_over && passed_over->incarnation;
	for (int i = 0; i < REHASHES; i++) {
		struct slot *slot;

		hash = hash * 6364136223846793005ULL + 1442695040888963407ULL; /* Knuth's MMIX */
		slot = slot_at(table, slot_of(hash));
		if (slot && choose(choice, slot->current, 0, decision))
			return true;
	}
	return false;
}

static __always_inline void remember(struct flow *flow, const struct choice *choice,
				     const struct vip *vip, u64 now)
{
	flow->backend = choice->id;
	flow->backend_incarnation = choice->incarnation;
	flow->vip_incarnation = vip->incarnation;
	flow->generation = choice->generation;
	flow->seen = now;
}

/* Fills the choice, or returns the reason why there is none. */
static __always_inline int select_backend(struct choice *choice, struct vip *vip,
					  const struct packet *packet, struct flow_key *key)
{
	bool is_tcp = packet->kind == KIND_TCP;
	bool is_tracking = !(vip->flags & VIP_TRACK_NONE);
	bool is_full = !(vip->flags & (VIP_TRACK_NONE | VIP_TRACK_TRANSITION));
	struct table *table;
	struct slot *slot;
	struct flow *mark;
	bool in_window;
	u32 first = 0;
	void *blob;
	u8 decision;

	choice->slot = slot_of(choice->hash);
	if ((is_full || (is_tracking && !is_tcp)) && choose_tracked(choice, vip, packet, key))
		return DROP_NONE;

	blob = outer.lookup(&choice->pool);
	if (!blob)
		return DROP_NO_TABLE;
	table = bpf_map_lookup_elem(blob, &first);
	if (!table)
		return DROP_NO_TABLE;
	slot = slot_at(table, choice->slot);
	if (!slot)
		return DROP_NO_TABLE;
#if WITH_TRANSITION
	if (is_tracking && !is_full && is_tcp && slot->fallback & MAY_BE_TRACKED &&
	    choose_tracked(choice, vip, packet, key))
		return DROP_NONE;
#endif
	choice->generation = ((struct table_header *)table->bytes)->generation;
	in_window = is_tracking && slot->fallback & IN_WINDOW;

	/* A reset ends its flow, so it is not worth an entry; an error is not a packet of its flow. */
	choice->track = is_tracking && (is_full || !is_tcp || in_window) && !packet->is_syn &&
			!packet->is_rst && !packet->is_error;

	if (is_tcp && !packet->is_syn && in_window) {
		mark = syns.lookup(key);
		if (mark && mark->vip_incarnation == vip->incarnation &&
		    mark->generation >= window_opened(table, choice->slot) &&
		    choose(choice, mark->backend, mark->backend_incarnation, BY_FRESH))
			return DROP_NONE;
		if (choose(choice, slot->fallback & OWNER, 0, BY_FALLBACK))
			return DROP_NONE;
	}

	decision = !is_tcp ? BY_DATAGRAM : packet->is_syn ? BY_SYN : BY_CURRENT;
	if (!choose(choice, slot->current, 0, decision) &&
	    !choose_rehashed(choice, table, slot->current, decision))
		return DROP_NO_BACKEND;

	/* A SYN never touches the connection table: a flood must not evict established flows. */
	if (packet->is_syn && in_window) {
		struct flow born = {};

		remember(&born, choice, vip, bpf_ktime_get_ns());
		syns.update(key, &born);
	}
	return DROP_NONE;
}

/* Writes an entry, unless new ones come faster than the VIP allows: then they stay untracked, and
 * what is tracked already is not evicted. */
static __always_inline void track(struct choice *choice, const struct vip *vip,
				  struct flow_key *key, struct vip_counters *counters)
{
	u64 now = bpf_ktime_get_ns();
	u32 id = vip->id;
	struct bucket *budget = insert_limits.lookup(&id);
	struct flow flow = {};

	if (!budget || !take(budget, vip->insert_rate, now)) {
		counters->untracked++;
		choice->is_refused = true;
		return;
	}
	remember(&flow, choice, vip, now);
	flows.update(key, &flow);
	counters->tracked++;
	choice->is_promoted = true;
}
