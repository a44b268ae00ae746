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

/* The source (32 bits of IPv4, 128 of IPv6), then the VIP's tag, which stands for destination
 * address, port and protocol, with the ports; then, for a network VIP, the destination address. A
 * VIP that keeps a client on one backend leaves out what differs between the client's flows. */
static __always_inline u64 flow_hash(const struct packet *packet, const struct vip *vip)
{
	u64 ports = (u64)packet->destination.port << 16 | packet->source_port;
	bool with_destination = false;
	u64 v0, v1, v2, v3;

	if (vip->flags & VIP_HASH_SOURCE)
		ports = 0;
	else if (vip->flags & VIP_HASH_SOURCE_PORT)
		ports &= 0xffff0000;
#if WITH_PREFIXES
	with_destination = vip->flags & VIP_PREFIX && !(vip->flags & VIP_HASH_SOURCE);
#endif
	v0 = HASH_KEY0 ^ 0x736f6d6570736575ULL;
	v1 = HASH_KEY1 ^ 0x646f72616e646f6dULL ^
	     ((packet->is_v6 ? 3 : 2) + (with_destination ? 2 : 0));
	v2 = HASH_KEY0 ^ 0x6c7967656e657261ULL;
	v3 = HASH_KEY1 ^ 0x7465646279746573ULL;

	if (packet->is_v6) {
		ABSORB((u64)packet->source[1] << 32 | packet->source[0]);
		ABSORB((u64)packet->source[3] << 32 | packet->source[2]);
	} else {
		ABSORB((u64)packet->source[3]);
	}
	ABSORB(vip->tag ^ ports);
	if (with_destination) {
		const u32 *to = packet->destination.address;

		ABSORB((u64)to[1] << 32 | to[0]);
		ABSORB((u64)to[3] << 32 | to[2]);
	}
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
