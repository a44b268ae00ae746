# SPDX-License-Identifier: Apache-2.0
"""What one pass over the documents has found so far."""

from dataclasses import dataclass, field

from tidegate.keyspace.documents.host_rules import HostAddresses
from tidegate.keyspace.documents.rejections import Rejections
from tidegate.model.grouped import Edits
from tidegate.model.values import Backend, BackendKey, Desired, Pool, Snapshot, Vip


@dataclass(slots=True)
class Work:
    """What one pass has found so far; it begins with what is good by itself.

    Attributes:
        kept: VIPs in force whose documents are refused.
        has_last_backends: whether a backend in force stands for a document that is refused.
    """

    snapshot: Snapshot
    last: Desired
    pools: dict[str, Pool]
    backends: Edits[BackendKey, Backend]
    vips: dict[str, Vip]
    rejections: Rejections
    host: HostAddresses
    kept: dict[str, Vip] = field(default_factory=dict)
    hash_seed: str | None = None
    has_last_backends: bool = False

    def created(self, key: str) -> int:
        """Return the revision that created a key; 0 if it is not there."""
        document = self.snapshot.documents.get(key)
        return document.create_revision if document is not None else 0
