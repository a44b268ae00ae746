/* SPDX-License-Identifier: GPL-2.0-only */
/* Which backend a packet goes to.
 *
 * A flow stays where it is because of three facts. A tracked flow is found in the connection table,
 * whatever the Maglev table says. A flow that was born while its slot was in transition is in the
 * SYN table with the backend that its SYN went to, until its first ACK tracks it. So an untracked
 * packet that is not a SYN belongs to a flow from before the window, whose owner is the slot's
 * fallback, however often the slot changed since. A mark in the SYN table counts only if it was
 * made inside the window that is open now: an older one was left by a flow that never finished its
 * handshake. */
#pragma once

/* Look-ups after an unusable owner; with half of all slots unusable one packet in 500 finds none. */
#define REHASHES 8

struct choice {
	struct backend *backend;
	u64 hash;
	u64 generation;
	u32 id;
	u32 incarnation;
	u32 slot;
	u8 decision;
	bool rehashed;
	bool track;
};

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
	choice->backend = backend;
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
	if (!choose(choice, flow->backend, flow->backend_incarnation, BY_TRACKED))
		return false;
	if (packet->destination.protocol == IPPROTO_UDP)
		flow->seen = bpf_ktime_get_ns();
	return true;
}

/* The owner is unusable: try the owners of slots drawn from the same hash, the same on each host. */
static __always_inline bool choose_rehashed(struct choice *choice, struct table *table, u8 decision)
{
	u64 hash = choice->hash;

	choice->rehashed = true;
	for (int i = 0; i < REHASHES; i++) {
		struct slot *slot;

		hash = hash * 6364136223846793005ULL + 1442695040888963407ULL; /* Knuth's MMIX */
		slot = slot_at(table, slot_of(hash));
		if (slot && choose(choice, slot->current, 0, decision))
			return true;
	}
	return false;
}

/* Fills the choice, or returns the reason why there is none. */
static __always_inline int select_backend(struct choice *choice, struct vip *vip,
					  const struct packet *packet, struct flow_key *key)
{
	bool is_tcp = packet->destination.protocol == IPPROTO_TCP;
	struct table *table;
	struct slot *slot;
	struct flow *mark;
	u32 first = 0;
	void *blob;

	choice->hash = flow_hash(key, vip->tag, packet->is_v6);
	choice->slot = slot_of(choice->hash);
	if (choose_tracked(choice, vip, packet, key))
		return DROP_NONE;

	blob = outer.lookup(&vip->pool);
	if (!blob)
		return DROP_NO_TABLE;
	table = bpf_map_lookup_elem(blob, &first);
	if (!table)
		return DROP_NO_TABLE;
	choice->generation = ((struct table_header *)table->bytes)->generation;
	slot = slot_at(table, choice->slot);
	if (!slot)
		return DROP_NO_TABLE;

	/* A reset ends its flow, so it is not worth an entry. */
	choice->track = !packet->is_syn && !packet->is_rst;

	if (is_tcp && !packet->is_syn && slot->fallback & IN_WINDOW) {
		mark = syns.lookup(key);
		if (mark && mark->vip_incarnation == vip->incarnation &&
		    mark->generation >= window_opened(table, choice->slot) &&
		    choose(choice, mark->backend, mark->backend_incarnation, BY_FRESH))
			return DROP_NONE;
		if (choose(choice, slot->fallback & ~IN_WINDOW, 0, BY_FALLBACK))
			return DROP_NONE;
	}

	u8 decision = !is_tcp ? BY_DATAGRAM : packet->is_syn ? BY_SYN : BY_CURRENT;

	if (!choose(choice, slot->current, 0, decision) && !choose_rehashed(choice, table, decision))
		return DROP_NO_BACKEND;

	/* A SYN never touches the connection table: a flood must not evict established flows. */
	if (packet->is_syn && slot->fallback & IN_WINDOW) {
		struct flow born = {
			.backend = choice->id,
			.backend_incarnation = choice->incarnation,
			.vip_incarnation = vip->incarnation,
			.generation = choice->generation,
			.seen = bpf_ktime_get_ns(),
		};
		syns.update(key, &born);
	}
	return DROP_NONE;
}

static __always_inline void track(const struct choice *choice, const struct vip *vip,
				  struct flow_key *key)
{
	struct flow flow = {
		.backend = choice->id,
		.backend_incarnation = choice->incarnation,
		.vip_incarnation = vip->incarnation,
		.generation = choice->generation,
		.seen = bpf_ktime_get_ns(),
	};

	if (choice->track)
		flows.update(key, &flow);
}
