"""Made-up runs for the tests of the page; no cell is trained."""

import json
import math

from tunegrid.grid.cells import STUDY_IDS
from tunegrid.page.view import PageRun, make_page
from tunegrid.record import from_json, to_json
from tunegrid.runs import examples
from tunegrid.tests.records import CELLS, MEASURED, audit_ids, complete, complete_json

HOSTILE = (
    "<script>document.title = 'owned'</script><img src=https://example.org/x onerror=alert(1)>"
)
MAIN = {"sa": "accuracy", "qa": "f1", "sum": "rougeLsum"}
MEBI = 2**20
SOUND = ("checkpoint_loaded", True, "all 53 tensors equal the checkpoint's")


def make_points(right, count=40):
    """The points of `count` rows, of which the first `right` are correct."""
    return [100.0 if index < right else 0.0 for index in range(count)]


def get_record(
    cell="bert_sa_lora", right=36, seed=0, status="passed", audits=(SOUND,), rows=None, **changes
):
    """A record with 40 test rows, `right` of them correct; the text of one row holds a script."""
    task = cell.split("_")[1]
    points = make_points(right)
    words = [("negative", "positive")[index % 2] for index in range(len(points))]
    labels = [str(index % 2 if hit else 1 - index % 2) for index, hit in enumerate(points)]
    texts = [f"what hit {index} ?" for index in range(len(points))] if task != "sa" else labels
    metric = MAIN[task]
    kept = examples.write(
        [f"{task}{rows or ''}{index}" for index in range(len(points))], {metric: points}, texts
    )
    praise = "it works well, I would buy it again"
    inputs = [
        HOSTILE if index == 39 else f"review {index}: {praise}" for index in range(len(points))
    ]
    texts = examples.write_texts(inputs, words)
    score = sum(points) / len(points)
    missed = (
        [f"{metric} {score:.1f} is below 88.0 ({cell}, quick, seed {seed})"]
        if status == "missed"
        else []
    )
    index = list(STUDY_IDS).index(cell) if cell in STUDY_IDS else 3
    sizes = {
        name: (index + 1) * size
        for name, size in zip(("weights", "gradients", "optimizer"), (9, 2, 4), strict=True)
    }
    ledger = MEASURED["memory"]["ledger"] | {
        f"{name}_bytes": size * MEBI // 8 for name, size in sizes.items()
    }
    losses = [3.0 * math.exp(-update / 20) + 0.1 * (update % 7) for update in range(90)]
    parts = {
        "scores": {metric: score},
        "bounds": {metric: 88.0},
        "data": MEASURED["data"] | {"rows": MEASURED["data"]["rows"] | {"test": len(points)}},
        "examples": vars(kept) | {"texts": texts},
        "seeds": {"seed": seed, "split_seed": 42, "perturbation": None},
        "status": status,
        "missed": missed,
        "audits": add_audits(cell, audits),
        "training": MEASURED["training"]
        | {"losses": losses, "seconds": 5.0 + index, "updates": 90},
        "memory": MEASURED["memory"]
        | {"ledger": ledger | {"checkpoint_bytes": ledger["gradients_bytes"]}},
    }
    return complete(cell, **parts | changes)


def add_audits(cell, audits):
    """These findings, followed by the cell's other audits as passed."""
    findings = [
        {"name": name, "passed": passed, "detail": detail} for name, passed, detail in audits
    ]
    others = (
        [name for name in audit_ids(CELLS[cell]) if name not in [name for name, _, _ in audits]]
        if cell in CELLS
        else []
    )
    return findings + [{"name": name, "passed": True, "detail": "-"} for name in others]


def make_run(records, name="run.json", when="2026-11-25T09:00:00", **facts):
    return PageRun(name=name, records=list(records), when=when, commit="0123456789", **facts)


def failing():
    """Two cells below their bound and worse than before, a failed audit, and a crashed cell."""
    before = make_run(
        (get_record(cell, 39) for cell in STUDY_IDS), "before.json", "2026-11-24T09:00:00"
    )
    changed = {
        "t5_qa_sft": get_record("t5_qa_sft", 5, status="missed"),
        "gpt2_sa_lora": get_record("gpt2_sa_lora", 8, status="missed"),
        "bert_sum_sft": get_record(
            "bert_sum_sft",
            status="missed",
            audits=[("base_frozen", False, "2 of 53 frozen tensors changed")],
            missed=[
                "audit base_frozen: 2 of 53 frozen tensors changed (bert_sum_sft, quick, seed 0)"
            ],
        ),
        "t5_sa_lora": get_record(
            "t5_sa_lora",
            status="error",
            scores={},
            examples=None,
            missed=[f"ValueError: {HOSTILE}"],
        ),
    }
    return make_page(
        make_run(changed.get(cell) or get_record(cell, 39) for cell in STUDY_IDS), [before]
    )


def empty():
    return make_page(make_run([]))


def one_cell():
    return make_page(make_run([get_record()]))


def many_cells():
    """120 cells of a user's grid: ten backbones, three tasks and four methods."""
    cells = [
        (f"net{b}", task, method)
        for task in MAIN
        for b in range(10)
        for method in ("lora", "dora", "ia3", "sft")
    ]
    return make_page(
        make_run(foreign(*cell, right=36 + index % 5) for index, cell in enumerate(cells))
    )


def foreign(backbone, task, method, right):
    """A record of a cell that the study does not have."""
    like = to_json(get_record(f"bert_{task}_{'sft' if method == 'sft' else 'lora'}", right))
    names = {"cell": f"{backbone}_{task}_{method}", "backbone": backbone, "method": method}
    training = like["training"] | {"seconds": 1.0 + right}
    return from_json(json.loads(json.dumps(like | names | {"training": training})))


PAGES = {page.__name__: page for page in (failing, empty, one_cell, many_cells)}


def footprint_json(**changes):
    from tunegrid.tests.records import FOOTPRINT

    return complete_json(**FOOTPRINT | changes)
