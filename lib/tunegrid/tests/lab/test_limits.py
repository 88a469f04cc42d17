"""The largest values of audits beside their limits."""

from dataclasses import replace

from tunegrid.lab.limits import find_extremes, limits_table
from tunegrid.record import AuditFinding
from tunegrid.tests.records import get_record


def with_findings(seed, *findings):
    record = get_record("bert_sum_lora", seed=seed)
    return replace(record, audits=[AuditFinding(passed=True, **finding) for finding in findings])


def test_the_largest_value_of_each_audit_and_limit():
    cache = {"name": "cache_changes_nothing", "detail": "", "limit": 1e-4}
    records = [
        with_findings(
            1,
            cache | {"value": 2e-6},
            {"name": "loss", "detail": "at rate 1.0e-02 off by 3.0e-05, gradients by 1.0e-07"},
        ),
        with_findings(
            2,
            cache | {"value": 5e-5},
            cache | {"value": 0.01, "limit": 0.1},
            {"name": "no_leakage", "detail": "8"},
        ),
    ]
    assert limits_table(find_extremes(records)).splitlines()[2:] == [
        "| `cache_changes_nothing` | 1.0e-04 | 5.0e-05 | 0.5 | bert_sum_lora, seed 2 | 2 |",
        "| `cache_changes_nothing` | 1.0e-01 | 1.0e-02 | 0.1 | bert_sum_lora, seed 2 | 1 |",
        "| `loss` |  | 3.0e-05 |  | bert_sum_lora, seed 1 | 1 |",
    ]
