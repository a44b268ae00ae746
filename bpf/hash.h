/* SPDX-License-Identifier: GPL-2.0-only */
/* The flow hash: SipHash-1-3 (Aumasson and Bernstein, INDOCRYPT 2012) over two or three words.
 * It is keyed, so that nobody who does not know the key can aim flows at one slot. The number of
 * words is part of the initial state in place of SipHash's length byte. */
#pragma once

#define ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

#define SIPROUND                                                                                   \
	do {                                                                                       \
		v0 += v1;                                                                          \
		v1 = ROTATE(v1, 13) ^ v0;                                                          \
		v0 = ROTATE(v0, 32);                                                               \
		v2 += v3;                                                                          \
		v3 = ROTATE(v3, 16) ^ v2;                                                          \
		v0 += v3;                                                                          \
		v3 = ROTATE(v3, 21) ^ v0;                                                          \
		v2 += v1;                                                                          \
		v1 = ROTATE(v1, 17) ^ v2;                                                          \
		v2 = ROTATE(v2, 32);                                                               \
	} while (0)

#define ABSORB(word)                                                                               \
	do {                                                                                       \
		v3 ^= (word);                                                                      \
		SIPROUND;                                                                          \
		v0 ^= (word);                                                                      \
	} while (0)

/* IPv4: the source's 32 bits; IPv6: all 128. Then the VIP's tag, which stands for destination
 * address, port and protocol, with the source port. */
static __always_inline u64 flow_hash(const struct flow_key *flow, u64 tag, bool is_v6)
{
	u64 v0 = HASH_KEY0 ^ 0x736f6d6570736575ULL;
	u64 v1 = HASH_KEY1 ^ 0x646f72616e646f6dULL ^ (is_v6 ? 3 : 2);
	u64 v2 = HASH_KEY0 ^ 0x6c7967656e657261ULL;
	u64 v3 = HASH_KEY1 ^ 0x7465646279746573ULL;

	if (is_v6) {
		ABSORB((u64)flow->source[1] << 32 | flow->source[0]);
		ABSORB((u64)flow->source[3] << 32 | flow->source[2]);
	} else {
		ABSORB((u64)flow->source[3]);
	}
	ABSORB(tag ^ ((u64)flow->port << 16 | flow->source_port));
	v2 ^= 0xff;
	SIPROUND;
	SIPROUND;
	SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

/* The slot of a hash: its upper half scaled to the table, without a division. */
static __always_inline u32 slot_of(u64 hash)
{
	return (u32)(((hash >> 32) * TABLE_SIZE) >> 32);
}
