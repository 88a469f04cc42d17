"""Lists the libraries' own faults that audits find, with the cells and versions that have them.

A cell whose only failed audits are such faults has the status *known*: it fails no run, but it is
no pass either. The same audit still fails in any other cell, and at any other version.
"""

from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from tunegrid.record import Record


@dataclass(frozen=True, kw_only=True)
class KnownFault:
    """A fault of a library that makes one audit fail."""

    audit: str
    cells: tuple[str, ...]
    library: str
    versions: str  # those with the fault, as pip writes them
    issue: str
    link: str

    @property
    def reason(self) -> str:
        """The issue and the versions, such as "pytorch#158232, torch<2.11"."""
        return f"{self.issue}, {self.library}{self.versions}"


KNOWN_FAULTS = (
    # A weight that is evaluated and then trained gets no gradient.
    KnownFault(
        audit="gradients_survive_evaluation",
        cells=("gpt2_sa_lora",),
        library="torch",
        versions="<2.11",
        issue="pytorch#158232",
        link="https://github.com/pytorch/pytorch/issues/158232",
    ),
)


def find_known_fault(record: Record, audit: str) -> KnownFault | None:
    """The known fault that explains why this record's audit failed; None if there is none."""
    for fault in KNOWN_FAULTS:
        version = record.versions.get(fault.library)
        if audit != fault.audit or record.cell not in fault.cells or version is None:
            continue
        if SpecifierSet(fault.versions).contains(version, prereleases=True):
            return fault
    return None
