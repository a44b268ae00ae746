# SPDX-License-Identifier: Apache-2.0
"""The mark with which some editors begin UTF-8.

It is left out wherever a document comes from, a file or a key, as RFC 8259 section 8.1 allows: what
was checked in a file must be the same in etcd.
"""

from typing import Final

_MARK: Final = b"\xef\xbb\xbf"


def without_mark(value: bytes) -> bytes:
    """Return a document's bytes without a byte order mark at their beginning."""
    return value.removeprefix(_MARK)
