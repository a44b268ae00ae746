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

/* The checksum when one aligned 16-bit word changes; right for every value, 0 and 0xffff too. */
static __always_inline u16 updated(u16 checksum, u16 before, u16 after)
{
	return ~fold((u64)(u16)~checksum + (u16)~before + after);
}
