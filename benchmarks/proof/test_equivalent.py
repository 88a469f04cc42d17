"""Settings that must be equal: two ways to compute the same, on which cells, how nearly, and why.

From top to bottom: how two results are compared, what a setting runs, the table `ROWS`, and the test. A setting takes a `Bench`
and returns fields. Plants break each row on purpose: a row that nothing breaks proves nothing. What an audit holds in each
cell, or a library's own tests, has no row.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
import transformers as hf
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.proof.stock.libraries import trainer_settings
from fixtures.session import get_session
from tunegrid.codecs.features import chunks
from tunegrid.run.build import build
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.ranks import ALONE, Ranks, fsdp_refusal
from tunegrid.run.serving import Serving
from tunegrid.tests.small import cell_trainer, silent, still

FIRST, SECOND = "default", "second"  # adapters: PEFT's name for one without a name, and another
doubles = partial(torch.tensor, dtype=torch.float64)

# How two results are compared


@dataclass(frozen=True)
class Tolerance:
    """How far apart a field may be: the norm of the difference, in units of the norm; 0 asks for equal bits."""

    most: float = 0.0
    least: float = -1.0  # something must differ by more than this
    whole: bool = False  # in units of the whole field: some gradients are but rounding, as of a bias that is added to all keys


def difference(name, one, other, tolerance):
    """What is wrong with a field, in a sentence; None if nothing is."""
    ours, theirs = leaves(one), leaves(other)
    if not ours or not theirs:
        return f"{name}: there is nothing to compare"
    unit = math.sqrt(sum(float(leaf.double().square().sum()) for leaf in ours.values())) if tolerance.whole else None
    gaps = {place: apart(ours.get(place), theirs.get(place), unit) for place in {**ours, **theirs}}
    worst_place = max(gaps, key=gaps.__getitem__)
    if gaps[worst_place] > tolerance.most:
        return f"{name}{worst_place}: {gaps[worst_place]:.1e} apart, allowed {tolerance.most:.0e}"
    if gaps[worst_place] <= tolerance.least:
        return f"{name}: nothing differs by more than {tolerance.least:.0e}, and something should"
    return None


def leaves(value, path=""):
    """Every tensor or plain value by the path to it."""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        return {path: value.detach() if isinstance(value, Tensor) else value}
    return {place: leaf for key, part in parts for place, leaf in leaves(part, f"{path}[{key}]").items()}


def apart(one, other, unit=None):
    """0 for equal bits, infinity for what cannot be compared or is no number; in units of the larger norm, or of `unit`."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return 0.0 if type(one) is type(other) and one == other else math.inf
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    gap = float((one.double() - other.double()).norm())
    unit = unit or max(float(side.double().norm()) for side in (one, other)) or 1.0
    return gap / unit if not gap or (math.isfinite(gap) and one.is_floating_point()) else math.inf


# What a setting runs


@dataclass(frozen=True)
class Bench:
    """What a setting works with. Models are made anew as often as a setting asks."""

    cell: Any
    codec: Any
    splits: Any
    device: torch.device
    ranks: Ranks
    folder: Any

    def features(self, rows):
        """As many features of the first rows."""
        return self.codec.encode(self.splits.train[:rows], training=True)[:rows]

    def model(self, attention="sdpa"):
        """A model as the cell trains it, whose attention is computed in this way, without dropout."""
        model = build(self.cell, self.codec.tokenizer, self.device).eval()
        (model.get_base_model() if hasattr(model, "get_base_model") else model).set_attn_implementation(attention)
        return model


def setting(run):
    """Options come first and the bench later: `trained(resumed=2)` is a setting."""
    return lambda **options: partial(run, **options)


def get_trainer(bench, *, dropout=True, ranks=ALONE, **recipe):
    """Three updates of four rows in their order, of which the last one has two."""
    recipe = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 3} | recipe
    cell = replace(bench.cell, recipe=replace(bench.cell.recipe, **recipe))
    trainer = cell_trainer(cell, bench.splits.train[:10], ranks=ranks)
    trainer.features = trainer.features[:10]
    trainer.updates = lambda epoch: ([[*rows]] for rows in chunks(trainer.features, cell.recipe.rows_per_update))
    return trainer if dropout else still(trainer)  # ranks would drop differently


@setting
def trained(bench, *, resumed=0, together="", **changes):
    """A training; `resumed` by another trainer, from a file, after so many updates; `together`: what ranks have of weights."""
    if together == "parts" and (refusal := fsdp_refusal(bench.cell, bench.model(), "fp32")):
        pytest.skip(refusal)
    changes["ranks"] = Ranks(bench.ranks.rank, bench.ranks.count, fsdp=together == "parts") if together else ALONE
    trainer = get_trainer(bench, **changes)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    if resumed:
        trainer.run(silent(), first_updates=resumed)
        file = Checkpoints(path=bench.folder / "training.pt", every_seconds=0.0, resume=True)
        file.save_if_due(trainer)
        file.restore(trainer := get_trainer(bench, **changes))
        assert trainer.log.updates == resumed, "it goes on where it stopped"
    trainer.run(silent())
    return {
        "losses": doubles(trainer.log.losses),
        "norms": doubles([norm for norm in trainer.log.gradient_norms if norm is not None]),
        "rates": doubles([rate for rates in trainer.log.group_rates for rate in rates]),
        "order": trainer.log.order,
        "moves": {name: p - start[name] for name, p in trainer.model.named_parameters() if name in start},
    }


class TheirTrainer(hf.Trainer):
    """`transformers.Trainer`, given our micro-batches in our order, our loss and the mean over all targets of an update."""

    loss_is_scaled_for_ga = True

    def get_train_dataloader(self):
        """One epoch; `max_steps` says how many."""
        return MicroBatches(self.ours)

    def get_batch_samples(self, batches, count, device):
        """The next batches, and all their targets."""
        batches = list(islice(batches, count))
        return batches, sum(map(self.ours.codec.targets, batches))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Our sum over their count."""
        return self.ours.codec.loss(model, self.ours.codec.to_device(inputs, self.args.device)) / num_items_in_batch


class MicroBatches:
    """A loader in our order for Trainer; no `DataLoader`, which would draw random numbers."""

    def __init__(self, trainer):
        """Batches of a trainer of ours."""
        self.trainer, self.dataset, self.epoch = trainer, trainer.features, 0

    def set_epoch(self, epoch):
        """Trainer calls it before each epoch."""
        self.epoch = epoch

    def __len__(self):
        """Micro-batches of an epoch."""
        return sum(map(len, self.trainer.updates(self.epoch)))

    def __iter__(self):
        """In our order."""
        return (self.trainer.codec.collate(rows) for group in self.trainer.updates(self.epoch) for rows in group)


class Seed(hf.TrainerCallback):
    """Random numbers begin where ours do."""

    def on_train_begin(self, args, state, control, **objects):
        """Trainer calls it before the first update."""
        hf.set_seed(args.seed)


@setting
def looped(bench, *, by_trainer=False, **recipe):
    """Twelve updates by our loop, or by transformers' `Trainer` with the optimizer and schedule of its own arguments."""
    one_rate = {"max_steps": 12, "head_learning_rate": None}  # as Trainer's arguments have
    cell = replace(bench.cell, recipe=replace(bench.cell.recipe, **one_rate | recipe))
    trainer = cell_trainer(cell, bench.splits.train[:200])
    if by_trainer:
        settings = trainer_settings(cell, bench.folder / "trainer", bench.device) | {
            "max_steps": trainer.total,
            "gradient_accumulation_steps": cell.recipe.gradient_accumulation_steps,
        }
        their_trainer = TheirTrainer(
            trainer.model, hf.TrainingArguments(**settings), train_dataset=trainer.features, callbacks=[Seed()]
        )
        their_trainer.remove_callback(hf.PrinterCallback)
        their_trainer.ours = trainer
        their_trainer.train()
        logs = [entry for entry in their_trainer.state.log_history if "loss" in entry]
        figures = [[entry[name] for entry in logs] for name in ("learning_rate", "loss", "grad_norm")]
    else:
        trainer.run(silent())
        figures = trainer.log.learning_rates, trainer.log.losses, trainer.log.gradient_norms
    weights = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    return dict(zip(("rates", "losses", "norms"), map(doubles, figures), strict=True)) | {"weights": weights}


def answers(bench, model, batch):
    """A model's logits of a batch; of an extractor both."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    output = model(**inputs, **({"use_cache": False} if bench.codec.generates else {}))
    return [output[name] for name in ("logits", "start_logits", "end_logits") if name in output]


@setting
def read(bench, *, left=False, attention="sdpa"):
    """Logits of four rows at their real tokens, and the sum of their gradients; in one batch, or padded on the `left`."""
    model, logits = bench.model(attention), []
    features = sorted(bench.features(40), key=lambda feature: len(feature.input_ids))
    batch = bench.codec.collate([features[i * (len(features) - 1) // 3] for i in range(4)])  # from the shortest to the longest
    if left:
        mask = batch["attention_mask"]
        source = [n for n, t in batch.items() if not n.startswith("decoder") and t.shape[1:] == mask.shape[1:]]
        pads = (mask == 0).sum(-1).tolist()
        batch |= {n: torch.stack([row.roll(pad) for row, pad in zip(batch[n], pads, strict=True)]) for n in source}
    if left and not bench.cell.id.startswith("t5"):  # which knows distances only
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    outputs = answers(bench, model, batch)
    for i, mask in enumerate(batch.get("decoder_attention_mask", batch["attention_mask"]).bool()):
        logits += [one[i][mask] if one[i].shape[:1] == mask.shape else one[i] for one in outputs]
    # Unlike that of a usual loss, its gradient does not vanish where a model is sure.
    sum((one.flatten() * torch.arange(one.numel()).cos()).sum() for one in logits).backward()
    return {
        "logits": logits,
        "gradients": {n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.grad.any()},
    }


@setting
def packed(bench, *, alone=False):
    """Logits of three texts, each by itself, or in one row whose positions start anew with each text, without a mask."""
    model, logits = bench.model(), []
    texts = [torch.tensor([*feature.input_ids, *feature.target]) for feature in bench.features(3)]
    for group in [[text] for text in texts] if alone else [texts]:
        positions = torch.cat([torch.arange(len(text)) for text in group])
        output = model(input_ids=torch.cat(group)[None], position_ids=positions[None], use_cache=False)
        logits += output.logits[0].split([len(text) for text in group])
    return {"logits": logits}


def make_model(bench, second=None):
    """A model with one adapter or two, and noise on all that trains, so that an adapter that starts as nothing is something."""
    model = bench.model()
    if second:
        model.add_adapter(second, model.peft_config[FIRST])
    for name, p in model.named_parameters():
        if p.requires_grad or second in name.split("."):
            generator = torch.Generator().manual_seed(sum(name.encode()))  # the same beside another adapter
            p.data.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model.eval()


@setting
def served(bench, *, saved):
    """What a model has learned and answers, and its tokenizer, which has settings of its own; `saved` and loaded again."""
    model, tokenizer = make_model(bench), copy.deepcopy(bench.codec.tokenizer)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.pad_token or tokenizer.eos_token, 37
    tokenizer(["a b c d e f"], truncation=True, max_length=4, padding="max_length")  # the backend keeps both settings
    if saved:
        Serving().save(bench.cell, model, tokenizer, bench.folder / "saved")
        model, tokenizer = Serving().load(bench.cell, bench.folder / "saved", bench.device)
    texts = [*(bench.codec.text(row) for row in bench.splits.test[:2]), bench.cell.head.new_token or ""]
    with torch.no_grad():
        logits = answers(bench, model, bench.codec.collate(bench.features(4)))
    return {
        "learned": {name: p for name, p in model.named_parameters() if name in trained},
        "logits": logits,
        "token ids": [tokenizer(texts, truncation=cut, padding=not cut)["input_ids"] for cut in (True, False)],
        "settings": [tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length, tokenizer.all_special_ids],
    }


@setting
def filed(bench, *, second=None):
    """The tensors in an adapter's file, of a model that has no other, or a second one beside it."""
    make_model(bench, second).save_pretrained(folder := bench.folder / str(second))
    return {"tensors": load_file(folder / "adapter_model.safetensors")}


@setting
@torch.no_grad()
def merged(bench, *, groups=(), second=None):
    """What layers with an adapter make of random numbers, the model's logits, and the weights below, after merging in turn."""
    model = make_model(bench, second)
    for names in groups:
        model.merge_adapter(names)
    layers = {name: m for name, m in model.eval().named_modules() if isinstance(m, BaseTunerLayer) and hasattr(m, "merge")}
    bases = {name: m.get_base_layer() for name, m in layers.items() if not isinstance(m.get_base_layer(), nn.Embedding)}
    outputs = {}
    for name, base in bases.items():
        width = getattr(base, "in_features", base.weight.shape[0])
        outputs[name] = layers[name](torch.randn(3, 5, width, generator=torch.Generator().manual_seed(width)))
    logits = answers(bench, model, bench.codec.collate(bench.features(4)))
    return {
        "layers": outputs,
        "logits": logits,
        "weights": {name: dict(base.named_parameters()) for name, base in bases.items()},
    }


# The table


@dataclass(frozen=True)
class Row:
    """Two settings that are equal on some cells, how nearly by field, and why."""

    id: str
    cells: tuple[str, ...]
    one: Callable[[Bench], Mapping[str, Any]]
    other: Callable[[Bench], Mapping[str, Any]]
    equal: Mapping[str, Tolerance]
    why: str
    ranks: int = 1  # processes that run both together


SAME_BITS = Tolerance()
# fp32 has 24 bits: one rounding is 6e-8. Sums of some hundred products in another order come out 1e-7 to 2e-6 apart.
ROUNDING = Tolerance(2e-5)
READ = {"logits": ROUNDING, "gradients": Tolerance(2e-5, whole=True)}
# AdamW divides a gradient by its own size: where that is next to zero, rounding turns the direction of a whole step.
TRAINED = {"losses": ROUNDING, "norms": Tolerance(1e-4), "moves": Tolerance(2e-2, whole=True)}
EXACTLY_TRAINED = dict.fromkeys(("losses", "norms", "rates", "moves", "order"), SAME_BITS)
LOOPED = dict.fromkeys(("rates", "losses", "norms", "weights"), SAME_BITS)
ADAPTERS = (  # every method of the zoo that has an adapter, on a cell that every one of its kind can train
    *("gpt2_sa_lora", "gpt2_sa_rslora", "gpt2_sa_dora", "gpt2_sa_pissa", "gpt2_sa_loraplus"),
    *("gpt2_sa_adalora", "gpt2_sa_ia3", "gpt2_sa_vera", "bert_sa_oft", "gpt2_sa_ln"),
)
OVER_NF4 = ("gpt2_sa_qlora", "gpt2_sa_qdora", "bert_sa_qoft", "gpt2_sa_qia3")
OTHERS = ("gpt2_sa_bitfit", "t5_sum_prompt")  # without an adapter that merges
still_trained = partial(trained, dropout=False)
RECOMPUTED = trained(gradient_checkpointing=False), trained(gradient_checkpointing=True)
SIXES = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 5, "max_grad_norm": 1.0}
OPTIONS = {"lr_scheduler_type": "cosine", "warmup_steps": 4, "weight_decay": 0.5, "max_grad_norm": 1.0}

# fmt: off
ROWS = (
    Row("gradient-checkpointing", ("gpt2_sum_lora", "bert_sa_sft", "gpt2_sa_qlora", "t5_sa_lora", "bert_sum_lora"), *RECOMPUTED,
        EXACTLY_TRAINED, "the backward pass repeats the same operations on the same numbers, dropout's included"),
    Row("gradient-checkpointing-of-t5", ("t5_sum_lora", "t5_sum_sft"), *RECOMPUTED, TRAINED,
        "the bias of T5's cross-attention then asks for a gradient, for which SDPA takes another kernel"),
    Row("padded-in-front", ("gpt2_sum_sft", "gpt2_qa_lora", "gpt2_sa_sft", "bert_qa_sft", "t5_sum_sft", "t5_sa_lora"),
        read(), read(left=True), READ, "as padded behind, where positions count from the first real token"),
    Row("packed", ("gpt2_sum_sft", "gpt2_sum_lora"), packed(alone=True), packed(), {"logits": ROUNDING},
        "positions that start anew part the rows; a wider attention sums zeros, too"),
    Row("eager-attention", ("bert_qa_sft", "gpt2_sum_lora", "t5_sum_sft", "bert_sum_sft", "t5_sa_sft"), read(),
        read(attention="eager"), READ, "one softmax, fused or not; T5 learns its bias through the mask that SDPA is given"),
    Row("bf16-autocast", ("t5_sum_sft", "bert_sa_sft", "gpt2_sum_lora"), still_trained(precision="fp32", learning_rate=1e-5),
        still_trained(precision="bf16", learning_rate=1e-5), {"losses": Tolerance(4e-3, least=1e-6), "moves":
        Tolerance(0.1, whole=True)}, "bf16 has 8 bits, 2e-3 a rounding, which sums over many products even out; a run in bf16 "
        "that gives fp32's losses was not one"),
    Row("three-ranks-of-which-one-idles", ("t5_sum_sft",), still_trained(), still_trained(together="whole"), TRAINED,
        "the same sums in another order, over ranks with unequal numbers of targets; the last update has two rows", ranks=3),
    Row("shared-out", ("gpt2_sum_lora",), still_trained(), still_trained(together="parts"), TRAINED,
        "FSDP2 sums the same gradients, in parts", ranks=2),
    Row("resumed", ("gpt2_sum_lora", "bert_qa_qlora", "t5_sum_sft", "bert_sa_lora", *ADAPTERS, *OVER_NF4, *OTHERS), trained(),
        trained(resumed=1), EXACTLY_TRAINED, "a file holds all that the next update depends on, bit by bit: random numbers "
        "go on where they were, as does what a method keeps between updates: every one of the zoo"),
    Row("trainer", ("bert_sa_sft", "gpt2_qa_lora", "t5_sum_lora", "gpt2_sum_qlora"), looped(), looped(by_trainer=True), LOOPED,
        "our loop is Trainer's: the same operations in the same order, an epoch's short last batch and clipping included"),
    Row("trainer-accumulates", ("bert_qa_lora",), looped(**SIXES), looped(by_trainer=True, **SIXES), LOOPED,
        "an update divides by all its targets, as ours does"),
    Row("trainer-with-options", ("bert_qa_sft",), looped(**OPTIONS), looped(by_trainer=True, **OPTIONS), LOOPED,
        "what a recipe asks is what TrainingArguments make of the same words"),
    Row("saved", (*ADAPTERS, *OVER_NF4, *OTHERS, "bert_sum_lora", "gpt2_sum_lora", "gpt2_sum_qlora", "t5_sum_sft",
        "bert_sa_sft", "bert_sum_sft", "gpt2_sum_sft"), served(saved=False), served(saved=True),
        dict.fromkeys(("learned", "logits", "token ids", "settings"), SAME_BITS),
        "files hold fp32, bit by bit: the adapter, the head and new tokens' rows beside it; a tokenizer is its files"),
    Row("two-adapters", ("gpt2_sa_lora", "gpt2_sa_dora", "gpt2_sa_ia3", "bert_sa_oft", "gpt2_sa_vera", "gpt2_sum_lora",
        "gpt2_sa_qlora"), filed(), filed(second="default_2"), {"tensors": SAME_BITS},
        "a file holds one adapter's tensors, all of them, and none of one whose name begins like its own"),
    Row("merged", ADAPTERS, merged(), merged(groups=([FIRST],)), {"layers": ROUNDING, "logits": Tolerance(1e-4)},
        "x W + x D is x (W + D), but for rounding, which later layers carry on"),
    Row("merged-in-turn", ("gpt2_sa_lora", "gpt2_sa_rslora", "gpt2_sa_dora", "gpt2_sa_ia3", "t5_sum_lora"),
        merged(groups=([FIRST, SECOND],), second=SECOND), merged(groups=([FIRST], [SECOND]), second=SECOND),
        {"weights": ROUNDING}, "two adapters are added in the same order, at once or one after the other"),
)
# fmt: on


def unequal(row, bench):
    """A sentence for each field of a row that is not as it should be."""
    one, other = row.one(bench), row.other(bench)
    return [text for name, tolerance in row.equal.items() if (text := difference(name, one[name], other[name], tolerance))]


@pytest.fixture
def cell(request, row, cell_id):
    session = get_session(request.config)
    if row.ranks > 1 and session.child.ranks == 1:
        pytest.skip(f"{row.id} needs {row.ranks} processes, which --engine=ray does not start: leave it out")
    profile = replace(session.profile("quick" if cell_id in session.grid.recipes else "zoo"), ranks=row.ranks)
    return session.get_grid(profile).cell(cell_id, profile)


@pytest.fixture
def bench(cell, codec, splits, device, ranks, tmp_path):
    return Bench(cell, codec, splits, device, ranks, tmp_path)


@pytest.mark.equivalent
@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # on what a row does to adapters on purpose
@pytest.mark.parametrize(
    ("row", "cell_id"), [pytest.param(row, cell_id, id=f"{row.id}-{cell_id}") for row in ROWS for cell_id in row.cells]
)
def test_equal(row, bench):
    assert unequal(row, bench) == [], row.why
