/* SPDX-License-Identifier: GPL-2.0-only */
/* The Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3). */
#pragma once

static __always_inline u16 fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The checksum when one aligned 16-bit word changes. Of data that is all zero afterwards it would be
 * 0xffff, and 0 is returned (RFC 1624 section 5): no header with addresses is. */
static __always_inline u16 updated(u16 checksum, u16 before, u16 after)
{
	return ~fold((u64)(u16)~checksum + (u16)~before + after);
}

#define CHUNK 128
#define CHUNKS (9216 / CHUNK) /* jumbo frames */

/* The sum over the frame from `at` on. The checksum of what is inside cannot
 * stand for it: it may be absent, or not filled in yet by a sender that offloads it. */
static __always_inline u64 sum_of_frame(struct xdp_md *ctx, u32 at, u32 length)
{
	u8 chunk[CHUNK];
	u64 sum = 0;

	for (int i = 0; i < CHUNKS; i++) {
		/* The same ranges in every turn, for the verifier. */
		asm volatile("" : "+r"(at), "+r"(length));
		at &= 0x3fff;
		length &= 0x3fff;
		if (length < CHUNK || bpf_xdp_load_bytes(ctx, at, chunk, CHUNK))
			break;
		sum = (u32)bpf_csum_diff(0, 0, chunk, CHUNK, sum);
		at += CHUNK;
		length -= CHUNK;
	}
	if (length == 0 || length >= CHUNK)
		return sum;
	__builtin_memset(chunk, 0, sizeof(chunk));
	asm volatile("" : "+r"(length));
	length = ((length - 1) & (CHUNK - 1)) + 1; /* unchanged; a bound for the verifier */
	if (bpf_xdp_load_bytes(ctx, at, chunk, length))
		return sum;
	return (u32)bpf_csum_diff(0, 0, chunk, CHUNK, sum);
}
