"""Names what differs between the environments of two runs, for `gate`, `upgrade` and `history`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tunegrid.machine import PACKAGES
from tunegrid.record import Record
from tunegrid.record.record import KernelRecord
from tunegrid.words import some


def version_changes(
    old: Mapping[str, str | None],
    new: Mapping[str, str | None],
    notes: Mapping[str, str] | None = None,
) -> list[str]:
    """Names each package whose version differs, such as "peft 0.21.2 -> 0.22.0".

    The suite's libraries come first. Packages that only one side knows are left out; None means
    that a package is not installed. `notes` names, by package, differences between equal versions.
    """
    notes = notes or {}
    changes = []
    for name in sorted(old.keys() & new.keys(), key=lambda name: (name not in PACKAGES, name)):
        change = f"{name} {old[name] or 'none'} -> {new[name] or 'none'}"
        if old[name] != new[name]:
            changes.append(change)
        elif name in notes:
            changes.append(f"{change} ({notes[name]})")
    return changes


def library_versions(records: Sequence[Record]) -> dict[str, str]:
    """The versions of each library in these records, joined by "and"."""
    numbers_by_name: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        for name, version in record.versions.items():
            if version:
                numbers_by_name[name][version] = None
    return {name: " and ".join(versions) for name, versions in numbers_by_name.items()}


def environment_changes(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """Names the libraries whose version or code differs between the records of two runs."""
    olds = _known_versions(old)
    news = _known_versions(new)
    digests = [_library_digests(records) for records in (old, new)]
    notes = {}
    for name in digests[0].keys() & digests[1].keys():
        if digests[0][name] != digests[1][name]:
            notes[name] = "other code"
    return version_changes(olds, news, notes)


def environment_sentences(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """A sentence for each way in which the environments of two runs differ."""
    from tunegrid.gate.numerics import unlike_kernels  # imports scipy

    sentences = []
    versions = environment_changes(old, new)
    if versions:
        sentences.append(f"The environments differ in {some(versions)}.")
    kernels = unlike_kernels(_kernels(old), _kernels(new))
    if kernels:
        sentences.append(f"They computed with other compiled code: {some(kernels)}.")
    return sentences


def _kernels(records: Sequence[Record]) -> dict[str, KernelRecord]:
    return {name: kernel for record in records for name, kernel in record.kernels.items()}


def _known_versions(records: Sequence[Record]) -> dict[str, str | None]:
    """The versions by library; None for a library that is not installed."""
    names = dict.fromkeys(name for record in records for name in record.versions)
    return dict.fromkeys(names) | library_versions(records)


def _library_digests(records: Sequence[Record]) -> dict[str, set[str]]:
    """The digests of each library's code in these records."""
    digests: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, digest in record.libraries.items():
            digests[name].add(digest)
    return dict(digests)
