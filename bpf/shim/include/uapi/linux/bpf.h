/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty on purpose: bcc brings its own copy of this header. */
