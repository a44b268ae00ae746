/* SPDX-License-Identifier: GPL-2.0-only */
/* The VIP of a packet: by address and port, then any port, then networks, longest prefix first.
 *
 * ICMP and later fragments have no ports: they are looked up as protocol ICMP and port 0, where
 * every VIP address has an entry.
 *
 * A VIP of one address is at one of two places of an array, which are computed from its key, so that
 * a look-up reads one or two cache lines and calls nothing. The array has two images. The agent
 * writes to the one that is not in force, and `vip_image` then selects it: a packet sees all VIPs of
 * one moment. Before an image is written again an RCU grace period has passed, so the entry that a
 * packet has found stays until it is done with it. The places, the bits and the factors are
 * agent/tidegate/dataplane/publish/vip_places.py and address_bits.py too. */
#pragma once

#define MAPPED_BITS 128
#define PREFIX_FIXED_BITS 32 /* of a prefix_key, before the address */

/* The primes of xxHash (Collet), for want of a reason for others; they have to be odd. */
#define FACTOR1 0x9e3779b185ebca87ULL
#define FACTOR2 0xc2b2ae3d27d4eb4fULL
#define FACTOR3 0x165667b19e3779f9ULL
#define FACTOR4 0x85ebca77c2b2ae63ULL
#define NETWORK_FACTOR 0x9e3779b1U

#define PLACE_BITS 15
_Static_assert(VIP_PLACES == 1 << PLACE_BITS, "places are computed as PLACE_BITS bits of a hash");

/* What is looked up: the address as two words, and port and protocol as they lie in a vip_key. */
struct wanted_vip {
	u64 high;
	u64 low;
	u32 service;
};

static __always_inline u64 mixed(u64 x)
{
	x ^= x >> 32;
	return x * FACTOR4;
}

static __always_inline u32 has_bit(const u64 *words, u32 bit)
{
	return words[bit >> 6] >> (bit & 63) & 1;
}

/* Whether the address, as two words in its 16-byte form, may be in a VIP that is a network. */
static __always_inline bool is_network_address(u64 high, u64 low)
{
	bool is_v4 = !high && (u32)low == MAPPED_PREFIX;
	u16 hash = is_v4 ? bpf_ntohs((u16)(low >> 32)) : (u32)high * NETWORK_FACTOR >> 16;
	u32 zero = 0;
	const struct address_bits *bits = vip_addresses.lookup(&zero);

	return bits && has_bit(bits->networks, hash);
}

/* Whether the address may be a VIP's. If not, it is none. */
static __always_inline bool is_vip_address(u64 high, u64 low)
{
	u32 zero = 0;
	const struct address_bits *bits = vip_addresses.lookup(&zero);

	if (bits && has_bit(bits->hosts, mixed(high * FACTOR1 + low * FACTOR2) >> 48))
		return true;
#if WITH_PREFIXES
	return is_network_address(high, low);
#else
	return false;
#endif
}

/* The cheap look at a frame before all others: false if it is for no VIP, true if it may be. Frames
 * with VLAN tags are left to the parser. */
static __always_inline bool may_be_for_vip(void *data, void *end)
{
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return false;
		return is_vip_address(0, (u64)ip->daddr << 32 | MAPPED_PREFIX);
	}
#if WITH_V6
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		u64 words[2];

		if ((void *)(ip + 1) > end)
			return false;
		__builtin_memcpy(words, &ip->daddr, sizeof(words));
		return is_vip_address(words[0], words[1]);
	}
#endif
	return eth->h_proto == bpf_htons(ETH_P_8021Q) || eth->h_proto == bpf_htons(ETH_P_8021AD);
}

/* The VIP at a place, if it is the wanted one. */
static __always_inline struct vip *vip_at(u32 index, const struct wanted_vip *wanted)
{
	struct vip_place *place;
	u64 words[2];
	u32 service;

	/* The barrier keeps clang from dropping a bound that only the verifier needs. */
	asm volatile("" : "+r"(index));
	place = vips.lookup(&index);
	if (!place)
		return NULL;
	__builtin_memcpy(words, place->key.address, sizeof(words));
	__builtin_memcpy(&service, &place->key.port, sizeof(service));
	if (words[0] != wanted->high || words[1] != wanted->low || service != wanted->service)
		return NULL;
	return &place->vip;
}

static __always_inline struct vip *find_placed(u32 image, const struct wanted_vip *wanted)
{
	u64 hash = mixed(wanted->high * FACTOR1 + wanted->low * FACTOR2 + wanted->service * FACTOR3);
	u32 first = image * VIP_PLACES;
	struct vip *vip = vip_at(first + (hash >> (64 - PLACE_BITS)), wanted);

	if (vip)
		return vip;
	return vip_at(first + (hash >> (64 - 2 * PLACE_BITS) & (VIP_PLACES - 1)), wanted);
}

static __always_inline struct vip *find_exact(struct wanted_vip *wanted)
{
	u32 zero = 0, *selected = vip_image.lookup(&zero), image;
	struct vip *vip;

	if (!selected)
		return NULL;
	image = *selected & 1;
	vip = find_placed(image, wanted);
#if WITH_ANY_PORT
	if (!vip && (u16)wanted->service) {
		wanted->service &= 0xffff0000U;
		vip = find_placed(image, wanted);
	}
#endif
	return vip;
}

/* Whether an address is one of the host's own. A network VIP leaves these out, or it would take the
 * host's connections to etcd, and the host could never be told otherwise. */
static __always_inline bool is_own_address(const struct packet *packet)
{
	const u32 *address = packet->destination.address;
	struct own_key key = { { address[0], address[1], address[2], address[3] } };

	return own_addresses.lookup(&key) != NULL;
}

static __always_inline struct vip *find_network(const struct packet *packet, u8 protocol, u16 port)
{
	const u32 *address = packet->destination.address;
	struct prefix_key key = {
		.length = PREFIX_FIXED_BITS + MAPPED_BITS,
		.protocol = protocol,
		.port = port,
		.address = { address[0], address[1], address[2], address[3] },
	};
	struct vip *vip = prefixes.lookup(&key);

	if (!vip && key.port) {
		key.port = 0;
		vip = prefixes.lookup(&key);
	}
	return vip && !is_own_address(packet) ? vip : NULL;
}

static __always_inline struct vip *find(const struct packet *packet, u8 protocol, u16 port)
{
	const u32 *address = packet->destination.address;
	struct wanted_vip wanted = {
		.high = (u64)address[1] << 32 | address[0],
		.low = (u64)address[3] << 32 | address[2],
		.service = (u32)protocol << 16 | port,
	};
	struct vip *vip = find_exact(&wanted);

#if WITH_PREFIXES
	if (!vip && is_network_address(wanted.high, wanted.low))
		vip = find_network(packet, protocol, port);
#endif
	return vip;
}

/* The entry of a VIP's address: each has one of protocol ICMP and port 0. */
static __always_inline struct vip *find_address(const struct packet *packet)
{
	return find(packet, packet->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP, 0);
}

/* The VIP of a packet with ports, if it is one of one address and this very port. */
static __always_inline struct vip *find_one(const struct packet *packet)
{
	const u32 *address = packet->destination.address;
	u32 zero = 0, *selected = vip_image.lookup(&zero);
	struct wanted_vip wanted = {
		.high = (u64)address[1] << 32 | address[0],
		.low = (u64)address[3] << 32 | address[2],
		.service = (u32)packet->destination.protocol << 16 | packet->destination.port,
	};

	return selected ? find_placed(*selected & 1, &wanted) : NULL;
}

static __always_inline struct vip *find_vip(const struct packet *packet)
{
	if (packet->kind == KIND_UNREADABLE)
		return NULL;
	if (packet->kind == KIND_LATER_FRAGMENT || packet->kind == KIND_ICMP)
		return find_address(packet);
	return find(packet, packet->destination.protocol, packet->destination.port);
}
