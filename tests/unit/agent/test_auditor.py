# SPDX-License-Identifier: Apache-2.0
"""What an audit leaves behind that found nothing, something, or could not look."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from tidegate.agent.auditor import Auditor
from tidegate.dataplane.publish.audit import Finding
from tidegate.errors import DataplaneError

if TYPE_CHECKING:
    from tidegate.dataplane.plane import DataPlane


class Plane:
    """A data plane that finds what it is told to."""

    def __init__(self) -> None:
        in_force = SimpleNamespace(number=1, revision=7)
        self.publisher = SimpleNamespace(in_force=in_force)
        self.probe_tunnel = self
        self.meanwhile: list[Finding] = []
        self.found: list[Finding] = []
        self.error = ""

    def take_findings(self) -> list[Finding]:
        """Return what was put back meanwhile."""
        found, self.meanwhile = self.meanwhile, []
        return found

    def audit(self, *, deep: bool) -> list[Finding]:
        """Return what is found, or fail."""
        assert deep
        if self.error:
            raise DataplaneError(self.error)
        return self.found


def test_an_audit_that_cannot_look_is_named_until_it_can() -> None:
    """It raises nothing, and what was damaged before stays named."""
    plane = Plane()
    auditor = Auditor(cast("DataPlane", plane), 1.0, 0.0)
    plane.found = [Finding("vips", "web", "changed", "the map is frozen")]
    auditor.audit(1.0)
    assert len(auditor.damages) == 1
    plane.error = "Too many open files"
    auditor.audit(2.0)
    assert auditor.problem.endswith("Too many open files")
    assert len(auditor.damages) == 1
    plane.error, plane.found = "", []
    auditor.audit(3.0)
    assert not auditor.problem
    assert not auditor.damages


def test_what_was_put_back_meanwhile_counts_at_once() -> None:
    """No audit has to be due, and it is no damage."""
    plane = Plane()
    auditor = Auditor(cast("DataPlane", plane), 60.0, 0.0)
    plane.meanwhile = [Finding("probe tunnel", "eth0 tc filter", "lost")]
    auditor.audit(0.1)
    auditor.audit(0.2)
    assert auditor.repairs == 1
    assert not auditor.damages
