"""Made-up runs for the tests of the page; no cell is trained."""

import math
from dataclasses import replace

from tunegrid.page.view import PageRun, make_page
from tunegrid.runs import examples
from tunegrid.tests import records
from tunegrid.tests.records import CELLS, MEASURED, altered, audit_ids, hits

HOSTILE = (
    "<script>document.title = 'owned'</script><img src=https://example.org/x onerror=alert(1)>"
)
MEBI = 2**20
ROWS = 40  # test rows of a record


def get_record(
    cell="bert_sa_lora", right=36, seed=0, status="passed", audits=(), id_prefix="", **changes
):
    """A record with 40 test rows, `right` of them correct; the text of one row holds a script."""
    task = CELLS[cell].task
    metric = task.main_score
    missed = []
    if status == "missed":
        score = 100 * right / ROWS
        missed = [f"{metric} {score:.1f} is below 88.0 ({cell}, quick, seed {seed})"]
    number = [*CELLS].index(cell)
    size = (number + 1) * MEBI // 8
    ledger = {
        "weights_bytes": 9 * size,
        "gradients_bytes": 2 * size,
        "optimizer_bytes": 4 * size,
        "checkpoint_bytes": 2 * size,
    }
    memory = MEASURED["memory"]
    training = {
        "losses": [3.0 * math.exp(-update / 20) + 0.1 * (update % 7) for update in range(90)],
        "seconds": 5.0 + number,
        "updates": 90,
    }
    parts = {
        "bounds": {metric: 88.0},
        "status": status,
        "missed": missed,
        "audits": add_audits(cell, audits),
        "training": MEASURED["training"] | training,
        "memory": memory | {"ledger": memory["ledger"] | ledger},
    }
    ids = [f"{task.id}{id_prefix}{row}" for row in range(ROWS)]
    points = {metric: hits(ROWS, right)}
    record = records.get_record(cell, points, seed, ids, **parts | changes)
    if record.examples:
        inputs = [f"review {row}: it works well, I would buy it again" for row in range(ROWS - 1)]
        texts = examples.write_texts([*inputs, HOSTILE], ["negative", "positive"] * (ROWS // 2))
        record = altered(record, "examples.texts", texts)
    return record


def add_audits(cell, audits):
    """These findings, followed by the cell's other audits as passed."""
    findings = {name: {"passed": True, "detail": "-"} for name in audit_ids(CELLS[cell])}
    for name, passed, detail in audits:
        findings[name] = {"passed": passed, "detail": detail}
    return [{"name": name} | finding for name, finding in findings.items()]


def make_run(records, name="run.json", when="2026-11-25T09:00:00", **facts):
    return PageRun(name=name, records=list(records), when=when, commit="0123456789", **facts)


def failing():
    """Two cells below their bound and worse than before, a failed audit, and a crashed cell."""
    before = {cell: get_record(cell, 39) for cell in CELLS}
    frozen = "2 of 53 frozen tensors changed"
    after = before | {
        "t5_qa_sft": get_record("t5_qa_sft", 5, status="missed"),
        "gpt2_sa_lora": get_record("gpt2_sa_lora", 8, status="missed"),
        "bert_sum_sft": get_record(
            "bert_sum_sft",
            status="missed",
            audits=[("base_frozen", False, frozen)],
            missed=[f"audit base_frozen: {frozen} (bert_sum_sft, quick, seed 0)"],
        ),
        "t5_sa_lora": get_record(
            "t5_sa_lora",
            status="error",
            scores={},
            examples=None,
            missed=[f"ValueError: {HOSTILE}"],
        ),
    }
    older = make_run(before.values(), "before.json", "2026-11-24T09:00:00")
    return make_page(make_run(after.values()), [older])


def empty():
    return make_page(make_run([]))


def one_cell():
    return make_page(make_run([get_record()]))


def many_cells():
    """120 cells of a user's grid: ten backbones, three tasks and four methods."""
    foreign_records = []
    for task in ("sa", "qa", "sum"):
        for number in range(10):
            for method in ("lora", "dora", "ia3", "sft"):
                like = "sft" if method == "sft" else "lora"
                right = 36 + len(foreign_records) % 5
                record = get_record(f"bert_{task}_{like}", right)
                record = altered(record, "training.seconds", 1.0 + right)
                backbone = f"net{number}"
                cell = f"{backbone}_{task}_{method}"
                foreign = replace(record, cell=cell, backbone=backbone, method=method)
                foreign_records.append(foreign)
    return make_page(make_run(foreign_records))


PAGES = {page.__name__: page for page in (failing, empty, one_cell, many_cells)}
