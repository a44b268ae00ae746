/* SPDX-License-Identifier: GPL-2.0-only */
/* What is chosen for a packet, and the look-ups that every way of choosing shares. */
#pragma once

#define ANY_INCARNATION 0x100

struct choice {
	u64 hash;
	u64 key; /* of the flow in the connection table and among the marks */
	u64 generation;
	u32 pool;
	u32 id;
	u32 incarnation;
	u32 slot;
	u32 vip; /* that a later fragment is of; 0: the packet names its VIP itself */
	u32 current; /* the slot, if the pool has a table */
	u32 fallback;
	u32 prefix[4]; /* of the client, whose limit is asked for */
	u64 table_generation;
	bool has_table;
	bool look; /* for an entry or a mark: one may name another backend than the slot's owner */
	u8 decision;
	bool is_rehashed;
	bool was_quarantined; /* the owner that was passed over */
	bool track;
	bool had_entry; /* the connection table named a backend, usable or not */
	bool continues; /* from a mark, whose backend may be unusable */
	bool is_over_limit; /* its prefix has left its share of marks */
	bool is_promoted; /* an entry was written */
	bool is_refused; /* or the limit on entries refused it, or nobody had to make room */
	struct found found; /* the flow's entry */
	struct found mark; /* or the mark of its SYN */
};

#define STEP() asm volatile("" ::: "memory")

/* The backend with this id if packets may go to it; of its incarnation the lower 8 bits count. */
static __always_inline struct backend *usable(u32 id, u32 incarnation)
{
	struct backend *backend = backends.lookup(&id);

	if (!backend || !backend->incarnation || backend->flags & BACKEND_QUARANTINED)
		return NULL;
	if (incarnation != ANY_INCARNATION && (backend->incarnation & INCARNATION_MASK) != incarnation)
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

static __always_inline bool find_flow(struct choice *choice)
{
	struct pair pair;
	bool is_there = flow_pair(&pair, choice->key) && find_in(&choice->found, &pair, choice->key);

	STEP();
	return is_there;
}

static __always_inline void put_flow(const struct found *found, u64 owner, u32 state)
{
	u32 number = found->line;
	struct line *line = flows.lookup(&number);

	if (line)
		put(line, found->at, owner, state);
}

static __always_inline void put_state(const struct found *found, u32 state)
{
	u32 number = found->line, at = found->at;
	struct line *line = flows.lookup(&number);

	asm volatile("" : "+r"(at));
	if (line && at < LINE_ENTRIES)
		line->states[at] = state;
}
