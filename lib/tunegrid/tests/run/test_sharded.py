"""One cell whose weights are shared out among ranks is the cell on ranks that hold them whole."""

from dataclasses import replace

import pytest
from torch.distributed.tensor import DTensor

from tunegrid.audits.training import ranks_end_alike, ranks_train_as_one
from tunegrid.errors import InputError
from tunegrid.grid.recipes import ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.run.ranks import Ranks
from tunegrid.tests.ranked import CUT, HEADS, cut_on, on_ranks, sharded_is_the_model
from tunegrid.tests.small import cell_of, evidence_from, silent, still, train_rows, trainer_for, trainer_of


def made(cell_id, ranks, count=14, **changes):
    return still(trainer_of(cell_id, train_rows(cell_id)[:count], ranks=ranks, **changes))


def course_of(trainer):
    trainer.run(silent())
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return trainer.log, weights


def both(ranks, cell_id, count, changes):
    """Courses with weights shared out, and held whole by each rank, and how far apart the weights are that they end with."""
    (ours, weights), (theirs, others) = [course_of(made(cell_id, one, count, **changes)) for one in (sharded(ranks), ranks)]
    assert weights.keys() == others.keys()
    return ours, theirs, max(float((weights[name] - others[name]).abs().max()) for name in others)


def sharded(ranks):
    return Ranks(ranks.rank, ranks.count, fsdp=True)


@pytest.mark.parametrize("cell_id", [*HEADS, "gpt2_sum_lora", "t5_qa_lora"])
@pytest.mark.slow
def test_every_head_trains_shared_out_as_held_whole(cell_id):
    for ours, theirs, apart in on_ranks(2, both, cell_id, 14, CUT):
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-4)
        norms = [norm for norm in theirs.gradient_norms if norm]
        assert [norm for norm in ours.gradient_norms if norm] == pytest.approx(norms, rel=1e-3)
        assert (ours.order, ours.updates) == (theirs.order, 3)
        # AdamW moves a weight by its rate, in a direction that rounding turns where the gradient is next to zero.
        assert apart < 0.1 * cell_of(cell_id).recipe.learning_rate


def held_on(ranks):
    """Bytes of the ledger with weights shared out and whole, and how many of the weights are parts."""
    ledgers = []
    for one in (sharded(ranks), ranks):
        trainer = made("gpt2_sum_sft", one, 6, **CUT | {"max_steps": 1})
        trainer.run(silent())
        ledgers.append(vars(trainer.log.ledger))
    parts = [isinstance(p, DTensor) for p in sharded(ranks).sharded_model(trainer.model, trainer.cell, "fp32").parameters()]
    return *ledgers, all(parts)


def test_a_rank_holds_half_of_weights_gradients_and_moments():
    for shared, whole, all_parts in on_ranks(2, held_on):
        assert all_parts
        for name in ("weights_bytes", "gradients_bytes", "optimizer_bytes"):
            assert shared[name] == pytest.approx(whole[name] / 2, rel=0.02), name
        assert shared["checkpoint_bytes"] == whole["checkpoint_bytes"]


def audits_of(ranks):
    trainer = made("gpt2_sum_lora", sharded(ranks), 12, **CUT)
    evidence = evidence_from(trainer)
    early = ranks_train_as_one(evidence)
    trainer.run(silent())
    return early, ranks_end_alike(evidence)


def test_the_audits_of_ranks_hold():
    for answers in on_ranks(2, audits_of):
        assert all(passed for passed, _ in answers), answers


def best_on(ranks):
    """Checksums of the model, and of the sharded one gathered again, where the first of two epochs scored best."""
    trainer = made("gpt2_sum_lora", sharded(ranks), 6, **CUT | {"num_train_epochs": 2, "max_steps": 0})
    scores = iter([2.0, 1.0])
    training = trainer.run(silent(), lambda: (next(scores), []))
    return training.chosen_epoch, sharded_is_the_model(trainer)


def test_the_sharded_model_follows_the_epoch_that_was_chosen():
    assert on_ranks(2, best_on) == [(1, True), (1, True)]


def cut_on_parts(ranks, path):
    return cut_on(sharded(ranks), path, loses_a_file=False)


def test_a_training_that_was_cut_goes_on_to_the_same_weights(tmp_path):
    for began, losses, again, same in on_ranks(2, cut_on_parts, tmp_path / "kept.pt"):
        assert (began, again) == (2, losses)
        assert same


# What cannot be done


def refused_on(ranks, cell_id, changes):
    known = zoo().cell(cell_id, replace(ZOO_PROFILE, max_steps=2)) if cell_id in zoo().ids(ZOO_PROFILE) else cell_of(cell_id)
    cell = replace(known, recipe=replace(known.recipe, **changes))
    with pytest.raises(InputError) as caught:
        trainer_for(cell, train_rows(cell_id)[:6], ranks=sharded(ranks))
    return str(caught.value)


@pytest.mark.parametrize(
    ("cell_id", "changes", "words"),
    [
        ("gpt2_sum_qlora", {}, "FSDP takes weights of one dtype, and NF4 is stored as uint8"),
        ("gpt2_sum_lora", {"optim": "adamw_bnb_8bit"}, "cannot step parts of weights"),
        ("gpt2_sa_adalora", {}, "changes whole weights between updates"),
    ],
)
def test_what_needs_whole_weights_is_refused_with_the_way_out(cell_id, changes, words):
    for sentence in on_ranks(2, refused_on, cell_id, changes):
        assert words in sentence
        assert "leave out :fsdp" in sentence
