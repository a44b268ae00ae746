/* SPDX-License-Identifier: GPL-2.0-only */
/* Passes everything. A veth delivers what its peer transmits by XDP_TX only if it has an XDP program
 * itself; the lab's router has this one. */
#include <uapi/linux/bpf.h>

int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}
