"""One cell on several ranks, which hold its weights whole or share them out, is the cell on one
process.
"""

import os
import socket
import traceback
from dataclasses import replace

import pytest
import torch

from tunegrid.audits.training import ranks_end_alike, ranks_train_as_one
from tunegrid.grid.recipes import ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.run.build import checksums
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.run.ranks import ALONE, Ranks, full_tensor, join_ranks
from tunegrid.tests.processes import CONTEXT
from tunegrid.tests.small import (
    CPU,
    cell_trainer,
    fine_tuner,
    get_codec,
    get_evidence,
    quick_cell,
    quick_model,
    read_rows,
    silent,
    still,
    train_rows,
)

ZOO = zoo()
# Heads of the study, methods that act on a step or move what is in no layer, and packed bases.
PLAIN = (
    "bert_sum_sft",
    "gpt2_qa_sft",
    "t5_sa_sft",
    "gpt2_sum_lora",
    "gpt2_sa_adalora",
    "gpt2_sa_loraplus",
    "t5_sum_prompt",
)
PACKED = ("gpt2_sa_qlora", "gpt2_sa_qdora")
SHARED_OUT = ("bert_sum_sft", "gpt2_qa_sft", "t5_sa_sft", "gpt2_sum_lora", "t5_qa_lora")


def sharded(ranks):
    return Ranks(ranks.rank, ranks.count, fsdp=True)


def rank_trainer(ranks, cell_id, count=14, **changes):
    """A trainer of a cell of the study or the zoo, without dropout, for three updates."""
    known = (
        ZOO.cell(cell_id, ZOO_PROFILE) if cell_id in ZOO.ids(ZOO_PROFILE) else quick_cell(cell_id)
    )
    cell = replace(known, recipe=replace(known.recipe, **CUT | changes))
    return still(cell_trainer(cell, train_rows(cell_id)[:count], ranks=ranks))


def courses_on(ranks, cell_id, fsdp):
    """The log of a training run on all ranks and, on the first rank, of a run of one process; and
    the weights that the ranks end with.
    """
    trainer = rank_trainer(sharded(ranks) if fsdp else ranks, cell_id)
    trainer.run(silent())
    marks = checksums((name, p) for name, p in trainer.model.named_parameters() if p.requires_grad)
    alone = rank_trainer(ALONE, cell_id) if ranks.rank == 0 else None
    if alone:
        alone.run(silent())
    return trainer.log, marks, alone and alone.log


@pytest.mark.parametrize(
    ("cell_id", "fsdp"),
    [*((name, False) for name in (*PLAIN, *PACKED)), *((name, True) for name in SHARED_OUT)],
)
def test_a_cell_trains_on_two_ranks_as_on_one(cell_id, fsdp):
    """A packed base computes in bf16, which rounds otherwise in a batch of another shape: by 3e-4
    nats in three updates.
    """
    nats, share = (5e-3, 5e-2) if cell_id in PACKED else (1e-4, 1e-3)
    (ours, weights, alone), (_, other, _) = run_ranks(2, courses_on, cell_id, fsdp)
    assert ours.losses == pytest.approx(alone.losses, abs=nats)
    assert ours.order == alone.order
    assert ours.updates == 3
    assert other == weights
    norms = [norm for norm in ours.gradient_norms if norm]
    assert norms == pytest.approx([norm for norm in alone.gradient_norms if norm], rel=share)


# Audits


def rank_audits(ranks, broken):
    trainer = rank_trainer(ranks, "gpt2_sum_lora", 12)
    if broken == "mean of each rank":
        trainer.divisors = lambda batches: (
            [ranks.count * sum(map(trainer.codec.targets, batches))] * len(batches)
        )
    evidence = get_evidence(trainer)
    early = ranks_train_as_one(evidence)
    trainer.run(silent())
    if broken == "a rank of its own" and ranks.rank == 1:
        with torch.no_grad():
            trainer.trained[0].add_(1e-3)
    return early, ranks_end_alike(evidence)


@pytest.mark.parametrize("broken", ["", "mean of each rank", "a rank of its own"])
def test_ranks_that_train_as_one_pass_and_others_are_named(broken):
    (early, late), (_, other) = run_ranks(2, rank_audits, broken)
    assert bool(early[0]) is (broken != "mean of each rank"), early
    assert early[1].startswith("2 ranks, 6 rows: loss off by ")
    assert bool(late[0]) is (broken != "a rank of its own"), late
    assert late[0] or late[1].endswith("; 1 ranks differ from the first: 1")
    assert broken or other == late


# Evaluation, memory and counts


def score_ranks(ranks, cell_id, count):
    evaluated = []
    codec = get_codec(cell_id)

    class Recording(type(codec)):
        def predict(self, model, features, device):
            evaluated.extend(feature.example for feature in features)
            return super().predict(model, features, device)

    rows = train_rows(cell_id)[:count]
    evaluation = evaluate(
        quick_model(cell_id),
        Recording(codec.cell, codec.tokenizer),
        rows,
        Metrics(),
        CPU,
        silent(),
        ranks,
    )
    return (
        evaluated,
        evaluation.scores,
        evaluation.examples,
        [prediction.value for prediction in evaluation.predictions],
    )


@pytest.mark.parametrize(("cell_id", "count"), [("bert_sa_sft", 7), ("gpt2_qa_sft", 2)])
def test_three_ranks_score_every_row_once(cell_id, count):
    answers = run_ranks(3, score_ranks, cell_id, count)
    scored_rows = []
    for evaluated, *_ in answers:
        scored_rows += evaluated
    assert sorted(scored_rows) == list(range(count))
    alone = score_ranks(ALONE, cell_id, count)
    for answer in answers:
        assert answer[1:] == alone[1:]


# Epochs and checkpoints


def cut_as(ranks, fsdp, path, loses_a_file):
    return cut_course(sharded(ranks) if fsdp else ranks, path, loses_a_file)


@pytest.mark.parametrize(
    ("fsdp", "loses_a_file", "goes_on_at"), [(False, False, 2), (False, True, 0), (True, False, 2)]
)
def test_ranks_that_were_cut_go_on_together_or_not_at_all(tmp_path, fsdp, loses_a_file, goes_on_at):
    for began, losses, again, same in run_ranks(
        2, cut_as, fsdp, tmp_path / "kept.safetensors", loses_a_file
    ):
        assert began == goes_on_at
        assert again == losses
        assert same


# Ranks in a test, each a process, and what they train.


# Updates of 6, 6 and 2 rows
CUT = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 3}


def run_ranks(count: int, function, *arguments) -> list:
    """What `function(ranks, *arguments)` returns on each rank; the function is one of a module."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(count)]
    workers = [
        CONTEXT.Process(
            target=_work, args=(rank, count, port, sending, function, arguments), daemon=True
        )
        for rank, (_, sending) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    answers = []
    for rank, (receiving, _) in enumerate(pipes):
        assert receiving.poll(300), f"rank {rank} says nothing"
        answers.append(receiving.recv())
    traces = [f"rank {rank}: {trace}" for rank, (_, trace) in enumerate(answers) if trace]
    assert not traces, "\n".join(traces)  # one that failed takes the others along
    for worker in workers:
        worker.join()
    return [answer for answer, _ in answers]


def _work(rank, count, port, sending, function, arguments):
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in own.items()} | {"OMP_NUM_THREADS": "1"})
    try:
        with join_ranks(count, CPU) as ranks:
            sending.send((function(ranks, *arguments), None))
    except BaseException:
        sending.send((None, traceback.format_exc()))


class Cut(Exception):
    """Training ends here."""


def sharded_is_the_model(trainer):
    learned = {name: full_tensor(p) for name, p in trainer.stepped.items() if p.requires_grad}
    return all(torch.equal(learned[name], trainer.parameters[name]) for name in learned)


def cut_course(ranks, path, loses_a_file):
    """Losses of a whole training run, and of a run that was cut after its second update and
    continued; checksums of their weights.
    """

    def prepared(resume, cuts=False):
        checkpoints = Checkpoints(path=path, every_seconds=0.0, resume=resume, ranks=ranks)

        def save_and_cut(trainer):
            checkpoints.save_if_due(trainer)
            if cuts and trainer.log.updates == 2:
                raise Cut

        rows = read_rows("cnn_dailymail/train")[:14]
        trainer = fine_tuner("gpt2_sum_lora", rows, ranks=ranks, after_update=save_and_cut, **CUT)
        checkpoints.restore(trainer)
        return trainer, checkpoints

    whole, _ = prepared(resume=False)
    losses = whole.run(silent()).losses
    trainer, checkpoints = prepared(resume=False, cuts=True)
    with pytest.raises(Cut):
        trainer.run(silent())
    if loses_a_file and ranks.rank == 1:
        checkpoints.clear()
    again, _ = prepared(resume=True)
    began = again.log.updates
    assert sharded_is_the_model(again)  # audits look at the model before it goes on
    return (
        began,
        losses,
        again.run(silent()).losses,
        checksums(whole.model.named_parameters()) == checksums(again.model.named_parameters()),
    )
