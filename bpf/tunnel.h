/* SPDX-License-Identifier: GPL-2.0-only */
/* Generated from agent/tidegate/spec/decap.py, where each has its meaning.
 * Renew with: python -m tidegate.dataplane.tunnel.tunnel > bpf/tunnel.h */
#pragma once

enum {
	DECAP_IPIP = 0,
	DECAP_SIX_IN_FOUR = 1,
	DECAP_FOUR_IN_SIX = 2,
	DECAP_SIX_IN_SIX = 3,
	DECAP_GUE_OVER_FOUR = 4,
	DECAP_GUE_OVER_SIX = 5,
	DECAP_OTHER_DESTINATION = 6,
	DECAP_NOT_PLAIN = 7,
	DECAP_BAD_SOURCE = 8,
	DECAP_BAD_LENGTH = 9,
	DECAP_BAD_CHECKSUM = 10,
	DECAP_BAD_INNER = 11,
	DECAP_BAD_ECN = 12,
	OUTCOMES = 13,
};
