/* SPDX-License-Identifier: GPL-2.0-only */
/* The flow hash: SipHash-1-3 (Aumasson and Bernstein, INDOCRYPT 2012) over two to five words.
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

#define BEGIN_HASH(words)                                                                          \
	u64 v0 = HASH_KEY0 ^ 0x736f6d6570736575ULL;                                                \
	u64 v1 = HASH_KEY1 ^ 0x646f72616e646f6dULL ^ (words);                                      \
	u64 v2 = HASH_KEY0 ^ 0x6c7967656e657261ULL;                                                \
	u64 v3 = HASH_KEY1 ^ 0x7465646279746573ULL

#define END_HASH()                                                                                 \
	do {                                                                                       \
		v2 ^= 0xff;                                                                        \
		SIPROUND;                                                                          \
		SIPROUND;                                                                          \
		SIPROUND;                                                                          \
	} while (0)

static __always_inline u64 two_words(const u32 *words)
{
	return (u64)words[1] << 32 | words[0];
}

/* The source (32 bits of IPv4, 128 of IPv6), then the VIP's tag, which stands for destination
 * address, port and protocol, with the ports; then, for a network VIP, the destination address. A
 * VIP that keeps a client on one backend leaves out what differs between the client's flows. */
static __always_inline u64 hash_of(const struct packet *packet, u64 tag, u32 flags)
{
	u64 ports = (u64)packet->destination.port << 16 | packet->source_port;
	bool with_destination = false;

#if WITH_PREFIXES
	with_destination = flags & VIP_PREFIX && !(flags & VIP_HASH_SOURCE);
#endif
	BEGIN_HASH((packet->is_v6 ? 3 : 2) + (with_destination ? 2 : 0));

	if (flags & VIP_HASH_SOURCE)
		ports = 0;
	else if (flags & VIP_HASH_SOURCE_PORT)
		ports &= 0xffff0000;
	if (packet->is_v6) {
		ABSORB(two_words(packet->source));
		ABSORB(two_words(packet->source + 2));
	} else {
		ABSORB((u64)packet->source[3]);
	}
	ABSORB(tag ^ ports);
	if (with_destination) {
		ABSORB(two_words(packet->destination.address));
		ABSORB(two_words(packet->destination.address + 2));
	}
	END_HASH();
	return v0 ^ v1 ^ v2 ^ v3;
}

static __always_inline u64 flow_hash(const struct packet *packet, const struct vip *vip)
{
	return hash_of(packet, vip->tag, vip->flags);
}

/* The key of a flow in the connection table and among the marks: its hash, over all that tells flows
 * apart also where the VIP leaves some of it out, and another one for each use of a VIP id. */
static __always_inline u64 tracking_key(const struct packet *packet, const struct vip *vip, u64 hash)
{
	u32 partial = VIP_HASH_SOURCE | VIP_HASH_SOURCE_PORT;

	if (vip->flags & partial)
		hash = hash_of(packet, vip->tag, vip->flags & ~partial);
	return hash ^ vip->salt;
}

/* The key of a datagram: addresses, id, and in IPv4, where ids are per protocol, the protocol. In
 * IPv6 the next header of a later fragment need not be that of the first. */
static __always_inline u64 fragment_key(const struct packet *packet)
{
	u64 protocol = packet->is_v6 ? 0 : packet->destination.protocol;

	BEGIN_HASH(5);

	ABSORB(two_words(packet->source));
	ABSORB(two_words(packet->source + 2));
	ABSORB(two_words(packet->destination.address));
	ABSORB(two_words(packet->destination.address + 2));
	ABSORB(protocol << 32 | packet->fragment_id);
	END_HASH();
	return v0 ^ v1 ^ v2 ^ v3;
}

static __always_inline u32 leading_bits(u32 word, int bits)
{
	if (bits <= 0)
		return 0;
	return bits >= 32 ? word : word & bpf_htonl(0xffffffffU << (32 - bits));
}

/* The hash of a source prefix, for a limit of the VIP with this salt. The prefix is written to memory of
 * which the verifier knows nothing, or it would follow the hash for each length. */
static __always_inline u64 prefix_hash(u32 *prefix, const struct packet *packet, u32 bits4, u32 bits6,
				       u64 salt)
{
	int bits = packet->is_v6 ? bits6 : 96 + bits4;

	BEGIN_HASH(3);

	for (int i = 0; i < 4; i++)
		prefix[i] = leading_bits(packet->source[i], bits - 32 * i);
	asm volatile("" ::: "memory");
	ABSORB(two_words(prefix));
	ABSORB(two_words(prefix + 2));
	ABSORB(salt);
	END_HASH();
	return v0 ^ v1 ^ v2 ^ v3;
}

/* The slot of a hash: its upper half scaled to the table, without a division. */
static __always_inline u32 slot_of(u64 hash)
{
	return (u32)(((hash >> 32) * TABLE_SIZE) >> 32);
}
