"""An adapter over a packed base, served and merged in three ways: what is the same, and what is seen where a merge is wrong."""

from dataclasses import replace
from functools import cache, partial

import pytest
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit
from tunegrid.results.merges import objections
from tunegrid.run.merges import merges

from tunegrid.audits import Evidence
from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import Cell
from tunegrid.grid.profiles import ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.run.serving import Serving
from tunegrid.tests.small import CPU, cell_of, silent, trainer_for

SETTINGS = {"max_steps": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0, "per_device_train_batch_size": 4}
ROWS = 8


def trained(cell: Cell) -> Evidence:
    """A cell after four updates at a high rate."""
    splits = load_splits(cell.task, cell.profile)
    trainer = trainer_for(cell, splits.train[:24])
    trainer.run(silent())
    return Evidence(cell=cell, codec=trainer.codec, trainer=trainer, splits=splits)


@cache
def shared(cell_id: str) -> Evidence:
    return trained(cell_of(cell_id, **SETTINGS))


def compared(evidence: Evidence, serving=None):
    settings = {"codec": evidence.codec, "rows": evidence.splits.test[:ROWS], "metrics": Metrics()}
    score = partial(evaluate, **settings, device=CPU, progress=silent())
    return merges(replace(evidence, serving=serving or Serving()), score)


@pytest.mark.parametrize("cell_id", ["bert_sa_qlora", "gpt2_sum_qlora", "t5_qa_qlora"])
def test_each_merge_lies_on_its_base_and_has_the_adapter_in_every_layer(cell_id):
    part = compared(shared(cell_id))
    assert list(objections(part)) == []
    assert (part.packed.base, part.unpacked.base, part.original.base) == ("packed", "unpacked", "original")
    assert part.rows == part.sampled == ROWS
    assert part.packed.layers == part.unpacked.layers == part.original.layers > 0


def test_onto_the_unpacked_base_nothing_is_lost_but_what_packed_layers_round():
    """They compute in bf16, of 8 bits; packing again loses more."""
    part = compared(shared("bert_sa_qlora"))
    assert part.unpacked.largest_difference <= 2**-8 * part.largest_logit
    assert part.unpacked.mean_difference < part.packed.mean_difference


def without_adapter(packed_alone: bool):
    """A merge in which every second layer has an alpha of 0."""

    class Forgetful(Serving):
        def merge(self, model):
            kind = Linear4bit if packed_alone else LoraLayer
            for layer in [module for module in model.modules() if isinstance(module, kind)][::2]:
                layer.scaling["default"] = 0.0
            return super().merge(model)

    return Forgetful()


def test_layers_that_a_merge_leaves_without_the_adapter_are_named():
    part = compared(shared("bert_sa_qlora"), without_adapter(packed_alone=False))
    half = part.unpacked.unlike
    assert 0 < len(half) < part.unpacked.layers
    assert part.original.unlike == half
    assert part.packed.layers == part.unpacked.layers - len(half)  # it is held to layers that merged rightly
    assert [sentence for sentence in objections(part) if f"{half[0]} among them" in sentence] != []


def test_so_are_layers_that_only_packing_leaves_without_it():
    part = compared(shared("bert_sa_qlora"), without_adapter(packed_alone=True))
    assert part.unpacked.unlike == part.original.unlike == []
    assert 0 < len(part.packed.unlike) < part.packed.layers
    assert list(objections(part)) == [
        "merged into the packed base, whose layers PEFT packs again, "
        f"{len(part.packed.unlike)} of {part.packed.layers} layers do not compute what the adapter computes over it, "
        f"{part.packed.unlike[0]} among them"
    ]


class Swapped(Serving):
    """Merges onto the checkpoint and calls it the unpacked base."""

    def load_onto(self, base, cell, folder, device):
        return super().load_onto("original" if base == "unpacked" else base, cell, folder, device)


@pytest.mark.parametrize("cell_id", ["bert_sa_qlora", "gpt2_sum_qlora"])
def test_the_original_is_not_taken_for_the_unpacked_base(cell_id):
    part = compared(shared(cell_id), Swapped())
    assert part.unpacked.base == "original"
    assert next(objections(part)) == (
        "what is to be merged onto the packed base's numbers, unpacked, lies on the original base"
    )


def test_a_base_that_no_checkpoint_holds_has_no_original():
    cell = cell_of("gpt2_sa_qlora", **SETTINGS)
    part = compared(trained(replace(cell, profile=replace(cell.profile, perturbation=1))))
    assert part.original.refused == "no checkpoint holds the base: it was saved packed, beside the adapter"
    assert part.original.score is part.original.flips is part.original.largest_difference is None
    assert list(objections(part)) == []


@pytest.mark.parametrize(
    ("cell_id", "refused"),
    [("gpt2_sa_qdora", []), ("gpt2_sa_qoft", ["original"]), ("t5_sa_qia3", ["packed", "unpacked"])],
)
def test_what_peft_does_not_merge_of_the_zoo_is_said_with_its_reason(cell_id, refused):
    """GPT-2's own layers are no torch.nn.Linear; IA3 asks for a flag that transformers' `dequantize` leaves on the model."""
    cell = zoo().cell(cell_id, ZOO_PROFILE)
    part = compared(trained(replace(cell, recipe=replace(cell.recipe, max_steps=4))))
    assert [base for base in ("packed", "unpacked", "original") if getattr(part, base).refused] == refused
    assert list(objections(part)) == []
