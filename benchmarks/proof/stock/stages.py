"""Compares both sides of a cell, the libraries' path and ours, stage by stage.

Stages follow the flow of data. Each takes a `Pair` and yields comparisons; the first difference
ends the comparison.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.proof.stock import libraries, ours
from benchmarks.proof.stock.known import KNOWN, cell_kind, extracts, is_separated
from benchmarks.proof.stock.libraries import Course, Pass, Weights
from benchmarks.proof.test_equivalent import leaves
from tunegrid.codecs.base import IGNORED, Codec, move_batch
from tunegrid.codecs.features import chunks
from tunegrid.data.sources import Row
from tunegrid.grid.cells import Cell
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.device import autocast, resolve_precision, set_random_states

UPDATES = 6  # an epoch of five batches, the last of which is half as large, and one more batch
# An epoch has one update of three batches and one of two. The checkpoint after the first update is
# in the middle of an epoch.
ACCUMULATED = {
    "max_steps": 3,
    "gradient_accumulation_steps": 3,
    "save_strategy": "steps",
    "save_steps": 1,
}
TEST_ROWS = 10
# Both sides run the same kernels on the same weights, rows and random numbers. By definition they
# differ in one way: one takes a mean, the other divides a sum. Each of up to a thousand losses is
# then rounded independently by 2^-24, which sums up to 32 x 2^-24. Measured differences are at most
# 3e-7 with AVX-512, with AVX2, and with neither. Gradients are sums that largely cancel, so their
# tolerance is ten times as large (measured: 1e-7).
LOSS = 32 * 2**-24
# In bf16 or fp16, fp32's last digit may decide how a gradient is rounded, which changes it by 4e-3;
# a norm averages over thousands of gradients.
NORM = {"fp32": 10 * LOSS, "bf16": 5e-4, "fp16": 5e-4}
OWN_MEANS = {"batches_add_up", "batches_weigh_alike"}


class Comparison(NamedTuple):
    """Two values to compare at a stage, and the tolerance for floats."""

    what: str
    theirs: Any
    ours: Any
    tolerance: float = 0.0


class Pair:
    """Both sides of a cell; they start from the same saved model with transformers' head."""

    def __init__(
        self,
        cell: Cell,
        train: Sequence[Row],
        test: Sequence[Row],
        folder: Path,
        device: torch.device,
        without: str = "",
    ) -> None:
        """Takes a few rows of each split; adjusts for all known differences except `without`."""
        hf.logging.set_verbosity_error()
        hf.logging.disable_progress_bar()
        libraries.datasets.disable_progress_bars()
        self.folder = folder
        self.device = device
        self.test = test[:TEST_ROWS]
        self.cell = libraries.write_start(cell, folder / "start")
        self.kit = libraries.KITS[cell_kind(self.cell)]
        self.precision = resolve_precision(self.cell, device)[0]
        self.known = {known.id for known in KNOWN if known.concerns(self.cell)} - {without}
        self.ungrouped = {}
        if "grouped_predictions" in self.known:
            self.ungrouped["train_sampling_strategy"] = "random"
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder / "start", trust_remote_code=False)
        self.codec = ours.knowing_codec(self.cell, load_tokenizer(self.cell), self.known)
        self.size = self.cell.recipe.per_device_train_batch_size
        self.rows = train[: self._count_rows(train)]
        self.features = self.codec.encode(self.rows, training=True)
        self.table = libraries.encoded(self.cell, self.tokenizer, self.rows)
        self.start_weights = libraries.trained(self.our_model())

    def _count_rows(self, rows: Sequence[Row]) -> int:
        """Chooses how many rows to take so that, if possible, the last batch is not full."""
        count = math.ceil(4.5 * self.size)
        while count > 1 and self.size > 1:
            if len(self.codec.encode(rows[:count], training=True)) % self.size:
                break
            count -= 1
        return count

    def our_model(self) -> Any:
        """Our untrained model."""
        return build(self.cell, load_tokenizer(self.cell), self.device)

    def model(self) -> Any:
        """The libraries' untrained model, with our initial values of the trainable weights."""
        hf.set_seed(self.cell.profile.seed)
        model = libraries.make_model(self.cell, self.tokenizer, self.device)
        return ours.put(model, self.start_weights)

    def trainer(self, name: str, model: Any = None, **changes: Any) -> Any:
        """The libraries' trainer, for a new model unless `model` is given."""
        return libraries.get_trainer(
            self.cell,
            model or self.model(),
            self.tokenizer,
            self.table,
            self.folder / name,
            self.device,
            **changes,
        )

    @cached_property
    def batches(self) -> list[tuple[Weights, Weights]]:
        """Pairs of the libraries' batch and our batch, in row order, with the same tensor names."""
        extra = {"example", "offset_mapping"}.intersection(self.table.column_names)
        table = self.table.remove_columns(sorted(extra))
        collate = libraries.make_collator(self.cell, self.tokenizer, self.model())
        batches = []
        row_numbers = chunks(range(len(table)), self.size)
        for rows, features in zip(row_numbers, chunks(self.features, self.size), strict=True):
            their_batch = libraries.make_batch(collate([table[i] for i in rows]))
            batches.append((their_batch, self.codec.collate(features)))
        return batches

    @cached_property
    def trained(self) -> tuple[Any, Course]:
        """The libraries' trainer after training without accumulation, and the run's history."""
        trainer = self.trainer("trained", max_steps=UPDATES)
        return trainer, libraries.train(trainer)

    @cached_property
    def whole(self) -> Course:
        """The history of the libraries' training run with accumulation."""
        return libraries.train(self.trainer("accumulated", **ACCUMULATED))

    def updates(self, course: Course, accumulation: int = 1) -> Iterator[Comparison]:
        """Compares each update's loss and unclipped gradient norm, given the libraries' weights."""
        model = self.our_model().train()
        losses = []
        norms = []
        for epoch in chunks(course.passes, len(self.batches)):
            for passes in chunks(epoch, accumulation):
                ours.put(model, passes[0].weights).zero_grad()
                losses.append(self._accumulate(model, passes))
                gradients = [p.grad.float() for p in model.parameters() if p.grad is not None]
                norms.append(float(nn.utils.get_total_norm(gradients)))
        yield Comparison("loss of update", course.loss, losses, LOSS)
        # Quotients compare small norms as tightly as large ones.
        quotients = [theirs / norm for theirs, norm in zip(course.grad_norm, norms, strict=True)]
        yield Comparison(
            "gradient norm over ours of update",
            quotients,
            [1.0] * len(norms),
            NORM[self.precision],
        )

    def _accumulate(self, model: Any, passes: Sequence[Pass]) -> float:
        """Sums our gradients over the batches of an update; returns the loss.

        With `batches_add_up`, the loss is the sum of the batches' means; with
        `batches_weigh_alike`, it is the mean of these means.
        """
        counts = [self.codec.targets(each.batch) for each in passes]
        loss = 0.0
        for each, count in zip(passes, counts, strict=True):
            divisor = count if self.known & OWN_MEANS else sum(counts)
            if "batches_weigh_alike" in self.known:
                divisor *= len(passes)
            set_random_states(self.device, each.states)
            with autocast(self.precision, self.device):
                batch = self.codec.to_device(each.batch, self.device)
                batch_loss = self.codec.loss(model, batch) / divisor
            batch_loss.backward()
            loss += float(batch_loss.detach())
        return loss

    @cached_property
    def trained_updates(self) -> list[Comparison]:
        """Comparisons of losses and gradient norms in the run without accumulation."""
        return [*self.updates(self.trained[1])]

    def answers(self, model: Any, *, served: bool = False) -> list[Any]:
        """The libraries' answers to the test rows: labels, texts of spans, or generated texts.

        A model that is `served` gets one row at a time, in fp32: near a tie, other rows in the
        batch and their padding decide by rounding, at true size in about one row of a hundred.
        """
        training = not is_separated(self.cell)
        test = libraries.encoded(self.cell, self.tokenizer, self.test, training=training)
        settings: dict[str, Any] = {**self.ungrouped}
        if self.codec.generates:
            settings |= {"predict_with_generate": True, "per_device_eval_batch_size": TEST_ROWS}
        if served:
            settings |= {"per_device_eval_batch_size": 1, "bf16": False, "fp16": False}
        trainer = self.trainer("scored", model, **settings)
        if self.codec.generates:
            tables = [test]
            if served:
                tables = [test.select([number]) for number in range(len(test))]
            texts: list[str] = []
            for table in tables:
                texts += libraries.predicted_texts(self.cell, trainer, table)
            return texts
        if extracts(self.cell):
            return libraries.predicted_spans(self.cell, trainer, self.test, test)
        return libraries.predicted_labels(trainer, test)

    def our_trained(self) -> Any:
        """Our model with the final weights of the libraries' training."""
        model = ours.put(self.our_model(), self.trained[1].weights)
        if "repacked_for_evaluation" in self.known:
            for module in model.modules():
                if isinstance(module, bnb.nn.Linear4bit):
                    # This is the default, which `keep_packed_layers` switches off.
                    module.support_avx512bf16_for_cpu = True
        return model.eval()

    @torch.inference_mode()
    def our_answers(
        self,
        model: Any,
        codec: Codec | None = None,
        *,
        served: bool = False,
    ) -> list[Any]:
        """Our model's answers to the test rows, batched and rounded as those of `answers`."""
        codec = codec or self.codec
        size = TEST_ROWS if codec.generates else libraries.TEST_BATCH
        precision = self.precision
        if served or codec.generates:
            precision = "fp32"
        if served:
            size = 1
        features = codec.encode(self.test, training=False)
        outputs = []
        with autocast(precision, self.device):
            for chunk in chunks(features, size):
                outputs += codec.predict(model, chunk, self.device)
        return [prediction.value for prediction in codec.decode(self.test, features, outputs)]


def first_difference(pair: Pair, last: str = "pipeline") -> str:
    """A sentence about the first difference up to the stage `last`; empty if there is none."""
    for name, stage in STAGES.items():
        for comparison in stage(pair):
            sentence = unequal(comparison)
            if sentence:
                return f"{name}: {sentence}"
        if name == last:
            break
    return ""


def unequal(comparison: Comparison) -> str:
    """A sentence about the first position where two values differ; empty if they are equal.

    Floats may differ by the tolerance, which is absolute up to 1 and relative above 1.
    """
    their_values = leaves(comparison.theirs)
    our_values = leaves(comparison.ours)
    for path in {**our_values, **their_values}:
        theirs = their_values.get(path, "missing")
        own = our_values.get(path, "missing")
        if not is_equal(theirs, own, comparison.tolerance):
            return f"{comparison.what}{path} is {shown(theirs)}, ours is {shown(own)}"
    return ""


def is_equal(theirs: Any, own: Any, tolerance: float) -> bool:
    """Compares floats within the tolerance and everything else exactly, including types."""
    if isinstance(theirs, float) and isinstance(own, float):
        return math.isclose(theirs, own, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(theirs, Tensor) and isinstance(own, Tensor):
        return theirs.dtype == own.dtype and torch.equal(theirs, own)
    return type(theirs) is type(own) and bool(theirs == own)


def shown(value: Any) -> str:
    """Formats a value for a sentence; a tensor is shown as its dtype, shape and norm."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{dtype} {tuple(value.shape)} of norm {float(value.double().norm()):.7g}"
    if isinstance(value, float):
        return f"{value:.7g}"
    return repr(value)


def windows(pair: Pair) -> Iterator[Comparison]:
    """Compares the number of windows of each row and the token ids of each window."""
    count = len(pair.rows)
    their_ids = zip(pair.table["example"], pair.table["input_ids"], strict=True)
    their_windows = group_by_row(count, their_ids)
    our_ids = []
    for feature in pair.features:
        target = feature.target if is_separated(pair.cell) else []
        our_ids.append((feature.example, [*feature.input_ids, *target]))
    our_windows = group_by_row(count, our_ids)
    their_counts = {row: len(ids) for row, ids in their_windows.items()}
    our_counts = {row: len(ids) for row, ids in our_windows.items()}
    yield Comparison("number of windows of row", their_counts, our_counts)
    yield Comparison("token of row", their_windows, our_windows)


def group_by_row(count: int, numbered_ids: Iterable[tuple[int, list[int]]]) -> Mapping[int, Any]:
    """The token ids of each row's windows, keyed by the row's number."""
    rows: dict[int, list[list[int]]] = {row: [] for row in range(count)}
    for row, ids in numbered_ids:
        rows[row].append(ids)
    return rows


def start(pair: Pair) -> Iterator[Comparison]:
    """Compares which weights are trainable, and the initial values of all weights."""
    their_weights = dict(pair.model().named_parameters())
    our_weights = dict(pair.our_model().named_parameters())
    their_training = {name: p.requires_grad for name, p in their_weights.items()}
    our_training = {name: p.requires_grad for name, p in our_weights.items()}
    yield Comparison("training of", their_training, our_training)
    if "biases_rounded_late" in pair.known:
        for name, p in their_weights.items():
            if name.endswith("bias"):
                their_weights[name] = p.to(our_weights[name].dtype)
    yield Comparison("", their_weights, our_weights)


def labels(pair: Pair) -> Iterator[Comparison]:
    """Compares the labels that the collators make."""
    no_labels = torch.empty(0)
    their_labels = [their_batch.get("labels", no_labels) for their_batch, _ in pair.batches]
    our_labels = [our_batch.get("labels", no_labels) for _, our_batch in pair.batches]
    yield Comparison(
        "number of labels of batch",
        [int((batch != IGNORED).sum()) for batch in their_labels],
        [int((batch != IGNORED).sum()) for batch in our_labels],
    )
    yield Comparison(
        "label of batch",
        [batch.tolist() for batch in their_labels],
        [batch.tolist() for batch in our_labels],
    )


def batch(pair: Pair) -> Iterator[Comparison]:
    """Compares the collators' other tensors, such as ids, masks and decoder inputs."""
    for number, (their_batch, our_batch) in enumerate(pair.batches):
        for name in sorted({*their_batch, *our_batch} - {"labels"}):
            if name == "decoder_attention_mask" and name not in their_batch:
                continue  # a decoder may read anything after the end of a target
            missing = torch.zeros_like(their_batch.get(name, our_batch.get(name)))
            theirs = their_batch.get(name, missing)
            own = our_batch.get(name, missing)
            if name == "decoder_input_ids":
                is_padding = our_batch["labels"] == IGNORED
                theirs = theirs.masked_fill(is_padding, 0)
                own = own.masked_fill(is_padding, 0)
            yield Comparison(f"{name} of batch [{number}]", theirs.tolist(), own.tolist())


def order(pair: Pair) -> Iterator[Comparison]:
    """Compares the batch sizes of the first epoch, and the epoch's rows regardless of order."""
    their_batches = [each.batch for each in pair.trained[1].passes[: len(pair.batches)]]
    our_batches = [our_batch for _, our_batch in pair.batches]
    yield Comparison(
        "rows of batch",
        [len(batch["input_ids"]) for batch in their_batches],
        [len(batch["input_ids"]) for batch in our_batches],
    )
    yield Comparison("token of sorted row", sort_rows(their_batches), sort_rows(our_batches))


def sort_rows(batches: Iterable[Weights]) -> list[list[int]]:
    """The token ids of each row, without padding; the rows are in sorted order."""
    rows = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            rows.append(ids[mask == 1].tolist())
    return sorted(rows)


def loss(pair: Pair) -> Iterator[Comparison]:
    """Compares the loss of each update."""
    yield pair.trained_updates[0]


def gradient(pair: Pair) -> Iterator[Comparison]:
    """Compares the gradient norm of each update."""
    yield pair.trained_updates[1]


def optimizer(pair: Pair) -> Iterator[Comparison]:
    """Compares the optimizers' classes and their settings for each weight, such as decay.

    `test_equivalent.py` compares the learning rates.
    """
    trainer = pair.trained[0]
    their_optimizer = trainer.optimizer.optimizer
    model = pair.our_model()
    our_optimizer = pair.cell.method.make_optimizer(model, pair.cell)
    yield Comparison("class", optimizer_class(their_optimizer), optimizer_class(our_optimizer))
    their_settings = weight_settings(their_optimizer, trainer.model)
    our_settings = weight_settings(our_optimizer, model)
    shared_fields = {*their_optimizer.param_groups[0]} & {*our_optimizer.param_groups[0]}
    for settings in (*their_settings.values(), *our_settings.values()):
        for field in settings.keys() - shared_fields:
            del settings[field]
    if "biases_by_name" in pair.known:
        for name, settings in our_settings.items():
            if "bias" in name:
                settings["weight_decay"] = 0.0
    yield Comparison("setting of", their_settings, our_settings)


def optimizer_class(optimizer: Any) -> list[Any]:
    """The name of the optimizer's class, and the bit width of its moments.

    bitsandbytes offers 8-bit moments as an argument of AdamW or as a separate class.
    """
    bits = getattr(getattr(optimizer, "args", None), "optim_bits", 32)
    return [type(optimizer).__name__.removesuffix("8bit"), bits]


def weight_settings(optimizer: Any, model: nn.Module) -> dict[str, dict[str, Any]]:
    """The optimizer's settings for each weight except its learning rate, keyed by weight name."""
    names = {p: name for name, p in model.named_parameters()}
    settings = {}
    for group in optimizer.param_groups:
        fields = sorted(group.keys() - {"params", "lr", "initial_lr"})
        for p in group["params"]:
            settings[names[p]] = {field: group[field] for field in fields}
    return settings


def accumulation(pair: Pair) -> Iterator[Comparison]:
    """Compares losses and gradient norms in the run with accumulation."""
    yield from pair.updates(pair.whole, ACCUMULATED["gradient_accumulation_steps"])


def resume(pair: Pair) -> Iterator[Comparison]:
    """Compares a run that the libraries resumed midway with their uninterrupted run."""
    whole = pair.whole  # saves a checkpoint in the middle of training
    checkpoint = pair.folder / "accumulated" / "checkpoint-1"
    resumed = libraries.train(pair.trainer("resumed", **ACCUMULATED), str(checkpoint))
    for field in ("learning_rate", "loss", "grad_norm", "weights"):
        yield Comparison(f"resumed, {field}", getattr(resumed, field), getattr(whole, field))


def scores(pair: Pair) -> Iterator[Comparison]:
    """Compares what Trainer's `evaluate()` and `predict()` return with our loss and answers.

    With `batches_evaluated_alike`, our loss is the mean of the batches' means.
    """
    model = pair.trained[0].model
    our_model = pair.our_trained()
    losses = []
    counts = []
    for chunk in chunks(pair.codec.encode(pair.test, training=True), libraries.TEST_BATCH):
        batch = move_batch(pair.device, pair.codec.collate(chunk))
        with autocast(pair.precision, pair.device), torch.no_grad():
            losses.append(float(pair.codec.loss(our_model, batch)))
            counts.append(pair.codec.targets(batch))
    our_loss = sum(losses) / sum(counts)
    if "batches_evaluated_alike" in pair.known:
        our_loss = fmean(loss / count for loss, count in zip(losses, counts, strict=True))
    test = libraries.encoded(pair.cell, pair.tokenizer, pair.test)
    their_loss = pair.trainer("scored", model, **pair.ungrouped).evaluate(test)["eval_loss"]
    yield Comparison("eval_loss", their_loss, our_loss, LOSS)
    what = "text of row" if pair.codec.generates else "answer to row"
    yield Comparison(what, pair.answers(model), pair.our_answers(our_model))


def pipeline(pair: Pair) -> Iterator[Comparison]:
    """Compares our answers with those of the saved model, loaded by a pipeline or AutoModel."""
    folder = pair.folder / "saved"
    known_ids = set(pair.known)
    has_pipeline = "no_pipeline" not in known_ids
    tasks = hf.pipelines.PIPELINE_REGISTRY.supported_tasks
    yield Comparison(f"pipeline {pair.kit.pipeline!r}", pair.kit.pipeline in tasks, has_pipeline)
    pair.trained[0].save_model(str(folder))
    if has_pipeline:
        search = {"do_sample": False} if "pipeline_samples" in known_ids else {}
        their_answers = libraries.piped(
            pair.cell,
            pair.tokenizer,
            folder,
            pair.test,
            pair.device,
            **search,
        )
    else:
        options = libraries.quant_option(pair.cell)
        model = pair.kit.auto.from_pretrained(folder, **options, trust_remote_code=False)
        their_answers = pair.answers(model.to(pair.device), served=True)
    our_model = pair.our_trained()
    if "adapter_rounded_when_loaded" in known_ids:
        ours.round_adapters(our_model)
    if "segments_served" in known_ids:
        known_ids.discard("segments_lost")
    codec = ours.knowing_codec(pair.cell, pair.codec.tokenizer, known_ids)
    own_answers = pair.our_answers(our_model, codec, served=True)
    yield Comparison("answer to row", their_answers, own_answers)


STAGES: Mapping[str, Callable[[Pair], Iterator[Comparison]]] = {
    "windows": windows,
    "start": start,
    "labels": labels,
    "batch": batch,
    "order": order,
    "loss": loss,
    "gradient": gradient,
    "optimizer": optimizer,
    "accumulation": accumulation,
    "resume": resume,
    "scores": scores,
    "pipeline": pipeline,
}
