"""Tests pairs of settings that must give equal results; `ROWS` lists them with the reasons."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.proof.stock.libraries import trainer_settings
from fixtures.session import get_session
from tunegrid.codecs.base import Codec
from tunegrid.codecs.features import chunks
from tunegrid.data.splits import Splits
from tunegrid.grid.cells import Cell
from tunegrid.run.build import build
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.ranks import ALONE, Ranks, fsdp_refusal
from tunegrid.run.serving import Serving
from tunegrid.run.train import Trainer
from tunegrid.tests.small import cell_trainer, silent, still

FIRST = "default"  # PEFT's name for an unnamed adapter
SECOND = "second"
Fields = Mapping[str, Any]
doubles = partial(torch.tensor, dtype=torch.float64)

# How two results are compared


@dataclass(frozen=True)
class Tolerance:
    """Limits on a field's relative difference between two results; 0 means bitwise equality."""

    most: float = 0.0
    least: float = -1.0  # the largest difference must exceed this
    # Divide by the whole field's norm, because some gradients are mere rounding errors, for example
    # the gradient of a bias that is added to all keys.
    whole: bool = False


def difference(name: str, first: Any, second: Any, tolerance: Tolerance) -> str:
    """A sentence about how a field misses its tolerance; empty if the field is within it."""
    first_leaves = leaves(first)
    second_leaves = leaves(second)
    if not first_leaves or not second_leaves:
        return f"{name}: there is nothing to compare"
    unit = None
    if tolerance.whole:
        squares = [float(leaf.double().square().sum()) for leaf in first_leaves.values()]
        unit = math.sqrt(sum(squares))
    gaps = {}
    for path in {**first_leaves, **second_leaves}:
        gaps[path] = relative_gap(first_leaves.get(path), second_leaves.get(path), unit)
    worst_path = max(gaps, key=gaps.__getitem__)
    if gaps[worst_path] > tolerance.most:
        return f"{name}{worst_path}: {gaps[worst_path]:.1e} apart, allowed {tolerance.most:.0e}"
    if gaps[worst_path] <= tolerance.least:
        return f"{name}: nothing differs by more than {tolerance.least:.0e}, and something should"
    return ""


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor or plain value in nested mappings and lists, keyed by its path."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {path: value.detach() if isinstance(value, Tensor) else value}
    values = {}
    for key, item in items:
        values |= leaves(item, f"{path}[{key}]")
    return values


def relative_gap(first: Any, second: Any, unit: float | None = None) -> float:
    """The norm of the difference, relative to `unit` or else to the larger norm.

    Equal values of the same type give 0. Any other values give infinity unless they are finite
    floating-point tensors of the same shape and type.
    """
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return 0.0 if type(first) is type(second) and first == second else math.inf
    if first.shape != second.shape or first.dtype != second.dtype:
        return math.inf
    gap = float((first.double() - second.double()).norm())
    if not gap:
        return 0.0
    if not math.isfinite(gap) or not first.is_floating_point():
        return math.inf
    norms = [float(tensor.double().norm()) for tensor in (first, second)]
    return gap / (unit or max(norms) or 1.0)


# What a setting runs


@dataclass(frozen=True)
class Bench:
    """The cell that settings run, and its parts."""

    cell: Cell
    codec: Codec
    splits: Splits
    device: torch.device
    ranks: Ranks
    folder: Path

    def features(self, count: int) -> list[Any]:
        """At most `count` features, made from the first `count` training rows."""
        return self.codec.encode(self.splits.train[:count], training=True)[:count]

    def model(self, attention: str = "sdpa") -> Any:
        """A new model as the cell trains it, but without dropout and with the given `attention`."""
        model = build(self.cell, self.codec.tokenizer, self.device).eval()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation(attention)
        return model


Setting = Callable[[Bench], Fields]


def setting(run: Callable[..., Fields]) -> Callable[..., Setting]:
    """Lets a function take options now and the bench later: `trained(resumed=2)` is a setting."""

    def with_options(**options: Any) -> Setting:
        return partial(run, **options)

    return with_options


def get_trainer(
    bench: Bench,
    *,
    dropout: bool = True,
    ranks: Ranks = ALONE,
    **changes: Any,
) -> Trainer:
    """A trainer for ten features in a fixed order, by default in updates of four, four and two."""
    fields = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
    }
    cell = replace(bench.cell, recipe=replace(bench.cell.recipe, **fields | changes))
    trainer = cell_trainer(cell, bench.splits.train[:10], ranks=ranks)
    trainer.features = trainer.features[:10]

    def updates(epoch: int) -> Iterator[list[list[Any]]]:
        for rows in chunks(trainer.features, cell.recipe.rows_per_update):
            yield [[*rows]]

    trainer.updates = updates
    return trainer if dropout else still(trainer)  # ranks would drop differently


@setting
def trained(bench: Bench, *, resumed: int = 0, together: str = "", **changes: Any) -> Fields:
    """Trains the cell.

    With `resumed`, a second trainer continues from a checkpoint made after this many updates. With
    `together`, ranks share the training, each with all weights ("whole") or a shard ("parts").
    """
    is_fsdp = together == "parts"
    if is_fsdp:
        refusal = fsdp_refusal(bench.cell, bench.model(), "fp32")
        if refusal:
            pytest.skip(refusal)
    if together:
        changes["ranks"] = Ranks(bench.ranks.rank, bench.ranks.count, fsdp=is_fsdp)
    trainer = get_trainer(bench, **changes)
    start = {}
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            start[name] = p.detach().clone()
    if resumed:
        trainer.run(silent(), first_updates=resumed)
        file = Checkpoints(path=bench.folder / "training.pt", every_seconds=0.0, resume=True)
        file.save_if_due(trainer)
        trainer = get_trainer(bench, **changes)
        file.restore(trainer)
        assert trainer.log.updates == resumed, "it goes on where it stopped"
    trainer.run(silent())
    log = trainer.log
    weights = dict(trainer.model.named_parameters())
    return {
        "losses": doubles(log.losses),
        "norms": doubles([norm for norm in log.gradient_norms if norm is not None]),
        "rates": doubles(list(chain.from_iterable(log.group_rates))),
        "order": log.order,
        "moves": {name: weights[name] - first for name, first in start.items()},
    }


class TheirTrainer(hf.Trainer):
    """`transformers.Trainer` with our micro-batches in our order, and with our loss."""

    loss_is_scaled_for_ga = True
    ours: Trainer

    def get_train_dataloader(self) -> Any:
        """A loader of our micro-batches, which Trainer iterates over once per epoch."""
        return MicroBatches(self.ours)

    def get_batch_samples(self, batches: Any, count: int, device: Any) -> tuple[list[Any], int]:
        """Up to `count` batches, and their total number of targets."""
        batches = list(islice(batches, count))
        return batches, sum(map(self.ours.codec.targets, batches))

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Our summed loss, divided by the number of the update's targets."""
        batch = self.ours.codec.to_device(inputs, self.args.device)
        return self.ours.codec.loss(model, batch) / num_items_in_batch


class MicroBatches:
    """A loader for Trainer that keeps our order; a `DataLoader` would draw random numbers."""

    def __init__(self, trainer: Trainer) -> None:
        """Takes the batches from one of our trainers."""
        self.trainer = trainer
        self.dataset = trainer.features
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; Trainer calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of micro-batches in an epoch."""
        return sum(map(len, self.trainer.updates(self.epoch)))

    def __iter__(self) -> Iterator[Any]:
        """Yields the micro-batches of an epoch in our order."""
        for group in self.trainer.updates(self.epoch):
            for rows in group:
                yield self.trainer.codec.collate(rows)


class Seed(hf.TrainerCallback):
    """Seeds the random generators as our loop does."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Sets the seed; Trainer calls this before the first update."""
        hf.set_seed(args.seed)


@setting
def looped(bench: Bench, *, by_trainer: bool = False, **changes: Any) -> Fields:
    """Trains for twelve updates with our loop, or with `Trainer` and its optimizer and schedule."""
    fields = {"max_steps": 12, "head_learning_rate": None}  # Trainer's arguments have one rate
    cell = replace(bench.cell, recipe=replace(bench.cell.recipe, **fields | changes))
    trainer = cell_trainer(cell, bench.splits.train[:200])
    if by_trainer:
        settings = trainer_settings(cell, bench.folder / "trainer", bench.device)
        settings["max_steps"] = trainer.total
        settings["gradient_accumulation_steps"] = cell.recipe.gradient_accumulation_steps
        their_trainer = TheirTrainer(
            trainer.model,
            hf.TrainingArguments(**settings),
            train_dataset=trainer.features,
            callbacks=[Seed()],
        )
        their_trainer.remove_callback(hf.PrinterCallback)
        their_trainer.ours = trainer
        their_trainer.train()
        logs = [entry for entry in their_trainer.state.log_history if "loss" in entry]
        rates = [entry["learning_rate"] for entry in logs]
        losses = [entry["loss"] for entry in logs]
        norms = [entry["grad_norm"] for entry in logs]
    else:
        trainer.run(silent())
        rates = trainer.log.learning_rates
        losses = trainer.log.losses
        norms = trainer.log.gradient_norms
    return {
        "rates": doubles(rates),
        "losses": doubles(losses),
        "norms": doubles(norms),
        "weights": {name: p for name, p in trainer.model.named_parameters() if p.requires_grad},
    }


def answers(bench: Bench, model: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """A model's logits for a batch; for spans, one tensor for starts and one for ends."""
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if bench.codec.generates:
        inputs["use_cache"] = False
    output = model(**inputs)
    return [output[name] for name in ("logits", "start_logits", "end_logits") if name in output]


@setting
def read(bench: Bench, *, left: bool = False, attention: str = "sdpa") -> Fields:
    """The logits of four rows, except at padding, and the gradients of a weighted sum of logits.

    Padding follows the text, or precedes it if `left`.
    """
    model = bench.model(attention)
    features = sorted(bench.features(40), key=lambda feature: len(feature.input_ids))
    last = len(features) - 1
    # The rows go from the shortest to the longest.
    batch = bench.codec.collate([features[i * last // 3] for i in range(4)])
    if left:
        roll_padding(batch)
    if left and not bench.cell.id.startswith("t5"):  # T5 has only relative positions
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    outputs = answers(bench, model, batch)
    masks = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
    logits = []
    for i, mask in enumerate(masks):
        for output in outputs:
            row = output[i]
            logits.append(row[mask] if row.shape[:1] == mask.shape else row)
    # Unlike a usual loss's gradient, this gradient does not vanish where a model is sure.
    sum((row.flatten() * torch.arange(row.numel()).cos()).sum() for row in logits).backward()
    gradients = {}
    for name, p in model.named_parameters():
        if p.grad is not None and p.grad.any():
            gradients[name] = p.grad
    return {"logits": logits, "gradients": gradients}


def roll_padding(batch: dict[str, Tensor]) -> None:
    """Moves the padding of each source from its end to its beginning."""
    mask = batch["attention_mask"]
    pads = (mask == 0).sum(-1).tolist()
    for name, tensor in batch.items():
        if not name.startswith("decoder") and tensor.shape[1:] == mask.shape[1:]:
            rows = [row.roll(pad) for row, pad in zip(tensor, pads, strict=True)]
            batch[name] = torch.stack(rows)


@setting
def packed(bench: Bench, *, alone: bool = False) -> Fields:
    """Logits of three texts, each `alone` or all in one row; positions start at 0 in each text."""
    model = bench.model()
    texts = [torch.tensor([*feature.input_ids, *feature.target]) for feature in bench.features(3)]
    rows = [[text] for text in texts] if alone else [texts]
    logits: list[Tensor] = []
    for row in rows:
        positions = torch.cat([torch.arange(len(text)) for text in row])
        output = model(
            input_ids=torch.cat(row)[None],
            position_ids=positions[None],
            use_cache=False,
        )
        logits += output.logits[0].split([len(text) for text in row])
    return {"logits": logits}


def make_model(bench: Bench, second: str | None = None) -> Any:
    """The cell's model, with a second adapter if one is named; noise gives adapters an effect."""
    model = bench.model()
    if second:
        model.add_adapter(second, model.peft_config[FIRST])
    for name, p in model.named_parameters():
        if p.requires_grad or second in name.split("."):
            # The noise is the same whether or not there is another adapter.
            generator = torch.Generator().manual_seed(sum(name.encode()))
            p.data.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model.eval()


@setting
def served(bench: Bench, *, saved: bool) -> Fields:
    """Trainable weights, logits, token ids and tokenizer settings; if `saved`, after a reload."""
    model = make_model(bench)
    tokenizer = copy.deepcopy(bench.codec.tokenizer)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.model_max_length = 37
    # The tokenizer's backend remembers truncation and padding.
    tokenizer(["a b c d e f"], truncation=True, max_length=4, padding="max_length")
    if saved:
        Serving().save(bench.cell, model, tokenizer, bench.folder / "saved")
        model, tokenizer = Serving().load(bench.cell, bench.folder / "saved", bench.device)
    texts = [bench.codec.text(row) for row in bench.splits.test[:2]]
    texts.append(bench.cell.head.new_token or "")
    with torch.no_grad():
        logits = answers(bench, model, bench.codec.collate(bench.features(4)))
    return {
        "learned": {name: p for name, p in model.named_parameters() if name in trained},
        "logits": logits,
        "token ids": [
            tokenizer(texts, truncation=True, padding=False)["input_ids"],
            tokenizer(texts, truncation=False, padding=True)["input_ids"],
        ],
        "settings": [
            tokenizer.padding_side,
            tokenizer.truncation_side,
            tokenizer.model_max_length,
            tokenizer.all_special_ids,
        ],
    }


@setting
def filed(bench: Bench, *, second: str | None = None) -> Fields:
    """The tensors in the first adapter's file; the model may have a `second` adapter."""
    folder = bench.folder / str(second)
    make_model(bench, second).save_pretrained(folder)
    return {"tensors": load_file(folder / "adapter_model.safetensors")}


@setting
@torch.no_grad()
def merged(bench: Bench, *, groups: Sequence[list[str]] = (), second: str | None = None) -> Fields:
    """Outputs and base weights of adapted layers, and logits, after merging `groups` in turn."""
    model = make_model(bench, second)
    for names in groups:
        model.merge_adapter(names)
    outputs = {}
    weights = {}
    for name, layer in model.eval().named_modules():
        if not (isinstance(layer, BaseTunerLayer) and hasattr(layer, "merge")):
            continue
        base = layer.get_base_layer()
        if isinstance(base, nn.Embedding):
            continue
        width = getattr(base, "in_features", base.weight.shape[0])
        generator = torch.Generator().manual_seed(width)
        outputs[name] = layer(torch.randn(3, 5, width, generator=generator))
        weights[name] = dict(base.named_parameters())
    return {
        "layers": outputs,
        "logits": answers(bench, model, bench.codec.collate(bench.features(4))),
        "weights": weights,
    }


# The table


@dataclass(frozen=True)
class Row:
    """Two settings that must give equal results: on which cells, how closely, and why."""

    id: str
    cells: tuple[str, ...]
    first: Setting
    second: Setting
    equal: Mapping[str, Tolerance]
    why: str
    ranks: int = 1  # processes that run both settings together


SAME_BITS = Tolerance()
# fp32 has 24 bits, so one rounding is 6e-8. Sums of a few hundred products in another order differ
# by 1e-7 to 2e-6.
ROUNDING = Tolerance(2e-5)
READ = {"logits": ROUNDING, "gradients": Tolerance(2e-5, whole=True)}
# AdamW divides a gradient by its own size. If the gradient is close to zero, rounding can reverse
# the direction of a whole step.
TRAINED = {"losses": ROUNDING, "norms": Tolerance(1e-4), "moves": Tolerance(2e-2, whole=True)}
EXACTLY_TRAINED = dict.fromkeys(("losses", "norms", "rates", "moves", "order"), SAME_BITS)
LOOPED = dict.fromkeys(("rates", "losses", "norms", "weights"), SAME_BITS)
# The zoo's methods whose adapter can be merged into an fp32 base, each on a cell that it can train
ADAPTERS = (
    "gpt2_sa_lora",
    "gpt2_sa_rslora",
    "gpt2_sa_dora",
    "gpt2_sa_pissa",
    "gpt2_sa_loraplus",
    "gpt2_sa_adalora",
    "gpt2_sa_ia3",
    "gpt2_sa_vera",
    "bert_sa_oft",
    "gpt2_sa_ln",
)
OVER_NF4 = ("gpt2_sa_qlora", "gpt2_sa_qdora", "bert_sa_qoft", "gpt2_sa_qia3")
OTHERS = ("gpt2_sa_bitfit", "t5_sum_prompt")  # methods with no adapter that can be merged
still_trained = partial(trained, dropout=False)
RECOMPUTED = (trained(gradient_checkpointing=False), trained(gradient_checkpointing=True))
SIXES = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 5, "max_grad_norm": 1.0}
OPTIONS = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 4,
    "weight_decay": 0.5,
    "max_grad_norm": 1.0,
}

ROWS = (
    Row(
        "gradient-checkpointing",
        ("gpt2_sum_lora", "bert_sa_sft", "gpt2_sa_qlora", "t5_sa_lora", "bert_sum_lora"),
        *RECOMPUTED,
        EXACTLY_TRAINED,
        "the backward pass repeats the same operations on the same numbers, dropout's included",
    ),
    Row(
        "gradient-checkpointing-of-t5",
        ("t5_sum_lora", "t5_sum_sft"),
        *RECOMPUTED,
        TRAINED,
        "the bias of T5's cross-attention then asks for a gradient, "
        "for which SDPA takes another kernel",
    ),
    Row(
        "padded-in-front",
        (
            "gpt2_sum_sft",
            "gpt2_qa_lora",
            "gpt2_sa_sft",
            "bert_qa_sft",
            "t5_sum_sft",
            "t5_sa_lora",
        ),
        read(),
        read(left=True),
        READ,
        "as padded behind, where positions count from the first real token",
    ),
    Row(
        "packed",
        ("gpt2_sum_sft", "gpt2_sum_lora"),
        packed(alone=True),
        packed(),
        {"logits": ROUNDING},
        "positions that start anew part the rows; a wider attention sums zeros, too",
    ),
    Row(
        "eager-attention",
        ("bert_qa_sft", "gpt2_sum_lora", "t5_sum_sft", "bert_sum_sft", "t5_sa_sft"),
        read(),
        read(attention="eager"),
        READ,
        "one softmax, fused or not; T5 learns its bias through the mask that SDPA is given",
    ),
    Row(
        "bf16-autocast",
        ("t5_sum_sft", "bert_sa_sft", "gpt2_sum_lora"),
        still_trained(precision="fp32", learning_rate=1e-5),
        still_trained(precision="bf16", learning_rate=1e-5),
        {"losses": Tolerance(4e-3, least=1e-6), "moves": Tolerance(0.1, whole=True)},
        "bf16 has 8 bits, 2e-3 a rounding, which sums over many products even out; a run in "
        "bf16 that gives fp32's losses was not one",
    ),
    Row(
        "three-ranks-of-which-one-idles",
        ("t5_sum_sft",),
        still_trained(),
        still_trained(together="whole"),
        TRAINED,
        "the same sums in another order, over ranks with unequal numbers of targets; "
        "the last update has two rows",
        ranks=3,
    ),
    Row(
        "shared-out",
        ("gpt2_sum_lora",),
        still_trained(),
        still_trained(together="parts"),
        TRAINED,
        "FSDP2 sums the same gradients, in parts",
        ranks=2,
    ),
    Row(
        "resumed",
        (
            "gpt2_sum_lora",
            "bert_qa_qlora",
            "t5_sum_sft",
            "bert_sa_lora",
            *ADAPTERS,
            *OVER_NF4,
            *OTHERS,
        ),
        trained(),
        trained(resumed=1),
        EXACTLY_TRAINED,
        "a file holds all that the next update depends on, bit by bit: random numbers go on "
        "where they were, as does what a method keeps between updates: every one of the zoo",
    ),
    Row(
        "trainer",
        ("bert_sa_sft", "gpt2_qa_lora", "t5_sum_lora", "gpt2_sum_qlora"),
        looped(),
        looped(by_trainer=True),
        LOOPED,
        "our loop is Trainer's: the same operations in the same order, "
        "an epoch's short last batch and clipping included",
    ),
    Row(
        "trainer-accumulates",
        ("bert_qa_lora",),
        looped(**SIXES),
        looped(by_trainer=True, **SIXES),
        LOOPED,
        "an update divides by all its targets, as ours does",
    ),
    Row(
        "trainer-with-options",
        ("bert_qa_sft",),
        looped(**OPTIONS),
        looped(by_trainer=True, **OPTIONS),
        LOOPED,
        "what a recipe asks is what TrainingArguments make of the same words",
    ),
    Row(
        "saved",
        (
            *ADAPTERS,
            *OVER_NF4,
            *OTHERS,
            "bert_sum_lora",
            "gpt2_sum_lora",
            "gpt2_sum_qlora",
            "t5_sum_sft",
            "bert_sa_sft",
            "bert_sum_sft",
            "gpt2_sum_sft",
        ),
        served(saved=False),
        served(saved=True),
        dict.fromkeys(("learned", "logits", "token ids", "settings"), SAME_BITS),
        "files hold fp32, bit by bit: the adapter, the head and new tokens' rows beside it; "
        "a tokenizer is its files",
    ),
    Row(
        "two-adapters",
        (
            "gpt2_sa_lora",
            "gpt2_sa_dora",
            "gpt2_sa_ia3",
            "bert_sa_oft",
            "gpt2_sa_vera",
            "gpt2_sum_lora",
            "gpt2_sa_qlora",
        ),
        filed(),
        filed(second="default_2"),
        {"tensors": SAME_BITS},
        "a file holds one adapter's tensors, all of them, "
        "and none of one whose name begins like its own",
    ),
    Row(
        "merged",
        ADAPTERS,
        merged(),
        merged(groups=([FIRST],)),
        {"layers": ROUNDING, "logits": Tolerance(1e-4)},
        "x W + x D is x (W + D), but for rounding, which later layers carry on",
    ),
    Row(
        "merged-in-turn",
        ("gpt2_sa_lora", "gpt2_sa_rslora", "gpt2_sa_dora", "gpt2_sa_ia3", "t5_sum_lora"),
        merged(groups=([FIRST, SECOND],), second=SECOND),
        merged(groups=([FIRST], [SECOND]), second=SECOND),
        {"weights": ROUNDING},
        "two adapters are added in the same order, at once or one after the other",
    ),
)


def unequal(row: Row, bench: Bench) -> list[str]:
    """One sentence for each field of a row that misses its tolerance."""
    first = row.first(bench)
    second = row.second(bench)
    sentences = []
    for name, tolerance in row.equal.items():
        sentences.append(difference(name, first[name], second[name], tolerance))
    return list(filter(None, sentences))


def cases() -> Iterator[Any]:
    """Yields a test case for each cell of each row."""
    for row in ROWS:
        for cell_id in row.cells:
            yield pytest.param(row, cell_id, id=f"{row.id}-{cell_id}")


@pytest.fixture
def cell(request: pytest.FixtureRequest, row: Row, cell_id: str) -> Cell:
    session = get_session(request.config)
    if row.ranks > 1 and session.child.ranks == 1:
        needs = f"{row.id} needs {row.ranks} processes"
        pytest.skip(f"{needs}, which --engine=ray does not start: leave it out")
    name = "quick" if cell_id in session.grid.recipes else "zoo"
    profile = replace(session.profile(name), ranks=row.ranks)
    return session.get_grid(profile).cell(cell_id, profile)


@pytest.fixture
def bench(cell, codec, splits, device, ranks, tmp_path) -> Bench:
    return Bench(cell, codec, splits, device, ranks, tmp_path)


@pytest.mark.equivalent
@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # PEFT warns about what rows do on purpose
@pytest.mark.parametrize(("row", "cell_id"), list(cases()))
def test_equal(row: Row, bench: Bench) -> None:
    assert unequal(row, bench) == [], row.why
