"""Both sides of a cell, and the stages at which they are compared, in the order of the flow. The first that differs ends it.

A stage takes a `Pair` and yields what it compares: what it is, the libraries' value, ours, and how far numbers may lie apart.
"""

import math
from functools import cached_property
from statistics import fmean

import bitsandbytes as bnb
import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.proof.stock import libraries, ours
from benchmarks.proof.stock.known import KNOWN, cell_kind, is_separated
from benchmarks.proof.test_equivalent import leaves
from tunegrid.codecs.base import IGNORED, move_batch
from tunegrid.codecs.features import chunks
from tunegrid.run.build import build, load_tokenizer
from tunegrid.run.device import autocast, resolve_precision, set_random_states

UPDATES = 6  # an epoch of five batches, the last of which is half as large, and one more
# An epoch is an update of three batches and one of two; the run is saved after the first, in the middle of an epoch.
ACCUMULATED = {"max_steps": 3, "gradient_accumulation_steps": 3, "save_strategy": "steps", "save_steps": 1}
TEST_ROWS = 10
# Both sides run the same kernels on the same weights, rows and random numbers. What differs by definition is a mean beside a
# sum that is divided. That rounds each of up to a thousand losses by 2^-24, independently: 32 x 2^-24, whatever the CPU; 3e-7
# at most with AVX-512, with AVX2 and without either. Gradients are sums that largely cancel: ten times as much (1e-7).
LOSS = 32 * 2**-24
# In bf16 or fp16, a last digit of fp32 may round a gradient to another number, 4e-3 apart; a norm takes the mean of thousands.
NORM = {"fp32": 10 * LOSS, "bf16": 5e-4, "fp16": 5e-4}


class Pair:
    """A cell's two sides, over the library's head and the folder that both start from."""

    def __init__(self, cell, train, test, folder, device, without=""):
        """A few rows of each split; `without` is the id of a known difference that ours is not to reckon with."""
        hf.logging.set_verbosity_error()
        hf.logging.disable_progress_bar()
        libraries.datasets.disable_progress_bars()
        self.folder, self.device, self.test = folder, device, test[:TEST_ROWS]
        self.cell = libraries.write_start(cell, folder / "start")
        self.kit, self.precision = libraries.KITS[cell_kind(self.cell)], resolve_precision(self.cell, device)[0]
        self.known = {one.id for one in KNOWN if one.concerns(self.cell)} - {without}
        self.ungrouped = {"train_sampling_strategy": "random"} if "grouped_predictions" in self.known else {}
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder / "start", trust_remote_code=False)
        self.codec = ours.knowing_codec(self.cell, load_tokenizer(self.cell), self.known)
        self.size = self.cell.recipe.per_device_train_batch_size
        count = math.ceil(4.5 * self.size)
        while count > 1 and self.size > 1 and not len(self.codec.encode(train[:count], training=True)) % self.size:
            count -= 1  # several windows of a row may fill the last batch
        self.rows = train[:count]
        self.features = self.codec.encode(self.rows, training=True)
        self.table = libraries.encoded(self.cell, self.tokenizer, self.rows)
        self.start_weights = libraries.trained(self.our_model())

    def our_model(self):
        """Ours, untrained."""
        return build(self.cell, load_tokenizer(self.cell), self.device)

    def model(self):
        """The libraries', untrained, with the weights of ours."""
        hf.set_seed(self.cell.profile.seed)
        return ours.put(libraries.make_model(self.cell, self.tokenizer, self.device), self.start_weights)

    def trainer(self, name, model=None, **changes):
        """The libraries' trainer, of a model of its own if none is given."""
        model, folder = model or self.model(), self.folder / name
        return libraries.get_trainer(self.cell, model, self.tokenizer, self.table, folder, self.device, **changes)

    @cached_property
    def batches(self):
        """The rows in order, in batches of both sides, under our names."""
        table = self.table.remove_columns([name for name in ("example", "offset_mapping") if name in self.table.column_names])
        collate = libraries.make_collator(self.cell, self.tokenizer, self.model())
        pairs = zip(chunks(range(len(table)), self.size), chunks(self.features, self.size), strict=True)
        return [(libraries.make_batch(collate([table[i] for i in rows])), self.codec.collate(part)) for rows, part in pairs]

    @cached_property
    def trained(self):
        """The libraries' trainer after a training without accumulation, and its course."""
        trainer = self.trainer("trained", max_steps=UPDATES)
        return trainer, libraries.train(trainer)

    @cached_property
    def whole(self):
        """The course of a training with accumulation."""
        return libraries.train(self.trainer("accumulated", **ACCUMULATED))

    def updates(self, course, accumulation=1):
        """Losses, and norms of gradients before they are clipped, of each update; ours begins with the libraries' weights.

        `batches_add_up`, `batches_weigh_alike`: of the batches' own means, ours takes the sum or the mean.
        """
        model, losses, norms = self.our_model().train(), [], []
        for passes in (group for epoch in chunks(course["passes"], len(self.batches)) for group in chunks(epoch, accumulation)):
            ours.put(model, passes[0][1]).zero_grad()
            counts, loss = [self.codec.targets(batch) for batch, _, _ in passes], 0.0
            for (batch, _, states), count in zip(passes, counts, strict=True):
                divisor = count if self.known & {"batches_add_up", "batches_weigh_alike"} else sum(counts)
                divisor *= len(passes) if "batches_weigh_alike" in self.known else 1
                set_random_states(self.device, states)
                with autocast(self.precision, self.device):
                    part = self.codec.loss(model, self.codec.to_device(batch, self.device)) / divisor
                part.backward()
                loss += float(part.detach())
            losses.append(loss)
            norms.append(float(nn.utils.get_total_norm([p.grad.float() for p in model.parameters() if p.grad is not None])))
        shares = [one / two for one, two in zip(course["grad_norm"], norms, strict=True)]  # small ones are held as tightly
        yield "loss of update", course["loss"], losses, LOSS
        yield "gradient norm over ours of update", shares, [1.0] * len(norms), NORM[self.precision]

    @cached_property
    def trained_updates(self):
        """Those without accumulation."""
        return [*self.updates(self.trained[1])]

    def answers(self, model):
        """The libraries' answers of a model: a label, or the text of a span or of what it wrote."""
        test = libraries.encoded(self.cell, self.tokenizer, self.test, training=not is_separated(self.cell))
        if self.codec.generates:
            settings = {"predict_with_generate": True, "per_device_eval_batch_size": TEST_ROWS}
            return libraries.texts(self.cell, self.trainer("scored", model, **self.ungrouped, **settings), test)
        return libraries.predictions(self.cell, self.trainer("scored", model, **self.ungrouped), self.test, test)

    def our_trained(self):
        """Our model with the weights that the libraries' training ended with."""
        model = ours.put(self.our_model(), self.trained[1]["weights"])
        for module in model.modules() if "repacked_for_evaluation" in self.known else ():
            if isinstance(module, bnb.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = True  # as it is unless `keep_packed_layers` switches it off
        return model.eval()

    @torch.inference_mode()
    def our_answers(self, model, codec=None, size=None):
        """Our model's, in batches as the libraries' unless a size is given."""
        codec = codec or self.codec
        size = size or (TEST_ROWS if codec.generates else libraries.TEST_BATCH)
        features = codec.encode(self.test, training=False)
        with autocast("fp32" if codec.generates else self.precision, self.device):
            outputs = [one for part in chunks(features, size) for one in codec.predict(model, part, self.device)]
        return [one.value for one in codec.decode(self.test, features, outputs)]


def first_difference(pair, last="pipeline"):
    """Compare stage by stage up to a last one; the first that differs and how, or nothing."""
    for name in [*STAGES][: [*STAGES].index(last) + 1]:
        for comparison in STAGES[name](pair):
            if sentence := unequal(*comparison):
                return f"{name}: {sentence}"
    return ""


def unequal(what, their_values, our_values, tolerance=0.0):
    """Where two values differ first, in a sentence; numbers may by a tolerance, in units of themselves if above 1."""
    their_values, our_values = leaves(their_values), leaves(our_values)
    for place in {**our_values, **their_values}:
        values = one, two = their_values.get(place, "missing"), our_values.get(place, "missing")
        if all(isinstance(value, float) for value in values):
            is_equal = math.isclose(one, two, rel_tol=tolerance, abs_tol=tolerance)
        elif all(isinstance(value, Tensor) for value in values):
            is_equal = one.dtype == two.dtype and torch.equal(one, two)
        else:
            is_equal = type(one) is type(two) and one == two
        if not is_equal:
            return f"{what}{place} is {shown(one)}, ours is {shown(two)}"
    return ""


def shown(value):
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} of norm {float(value.double().norm()):.7g}"
    return f"{value:.7g}" if isinstance(value, float) else repr(value)


def windows(pair):
    """Token ids of each row, and the windows of a long one."""
    our_windows = [(f.example, [*f.input_ids, *f.target] if is_separated(pair.cell) else f.input_ids) for f in pair.features]
    sides = ([*zip(pair.table["example"], pair.table["input_ids"], strict=True)], our_windows)
    rows = [{row: [ids for example, ids in side if example == row] for row in range(len(pair.rows))} for side in sides]
    yield "number of windows of row", *({row: len(row_windows) for row, row_windows in side.items()} for side in rows)
    yield "token of row", *rows


def start(pair):
    their_weights, our_weights = (dict(model.named_parameters()) for model in (pair.model(), pair.our_model()))
    yield "training of", *({name: p.requires_grad for name, p in side.items()} for side in (their_weights, our_weights))
    if "biases_rounded_late" in pair.known:
        their_weights |= {name: p.to(our_weights[name].dtype) for name, p in their_weights.items() if name.endswith("bias")}
    yield "", their_weights, our_weights


def labels(pair):
    sides = [[batch.get("labels", torch.empty(0)) for batch in side] for side in zip(*pair.batches, strict=True)]
    yield "number of labels of batch", *([int((one != IGNORED).sum()) for one in side] for side in sides)
    yield "label of batch", *([one.tolist() for one in side] for side in sides)


def batch(pair):
    """Everything else that the collator gives: ids, masks, kinds of token, the decoder's inputs."""
    for number, (their_batch, our_batch) in enumerate(pair.batches):
        for name in sorted({*their_batch, *our_batch} - {"labels"}):
            if name == "decoder_attention_mask" and name not in their_batch:
                continue  # behind the end of a target, it does not matter what a decoder reads
            tensor = their_batch.get(name, our_batch.get(name))
            values = [side.get(name, torch.zeros_like(tensor)) for side in (their_batch, our_batch)]
            if name == "decoder_input_ids":
                values = [value.masked_fill(our_batch["labels"] == IGNORED, 0) for value in values]
            yield f"{name} of batch [{number}]", *(value.tolist() for value in values)


def order(pair):
    """Trainer's loader gives every row once an epoch, in batches of the recipe's size, but for the last."""
    sides = [one for one, *_ in pair.trained[1]["passes"][: len(pair.batches)]], [our_batch for _, our_batch in pair.batches]
    yield "rows of batch", *([len(one["input_ids"]) for one in side] for side in sides)
    pairs = ([pair for one in side for pair in zip(one["input_ids"], one["attention_mask"], strict=True)] for side in sides)
    yield "token of sorted row", *(sorted(ids[mask == 1].tolist() for ids, mask in side) for side in pairs)


def loss(pair):
    yield pair.trained_updates[0]


def gradient(pair):
    yield pair.trained_updates[1]


def optimizer(pair):
    """Its class, and what it does to each weight: decay, betas, epsilon. Equal settings hold rates to Trainer's."""
    trainer, model = pair.trained[0], pair.our_model()
    sides = (trainer.optimizer.optimizer, trainer.model), (pair.cell.method.make_optimizer(model, pair.cell), model)
    # Of bitsandbytes' AdamW, one with moments of 8 bits has a class of its own, or is told by its arguments.
    bits = [getattr(getattr(one, "args", None), "optim_bits", 32) for one, _ in sides]
    yield "class", *([type(one).__name__.removesuffix("8bit"), count] for (one, _), count in zip(sides, bits, strict=True))
    fields = set.intersection(*({*one.param_groups[0]} for one, _ in sides)) - {"params", "lr", "initial_lr"}
    names = [{p: name for name, p in model.named_parameters()} for _, model in sides]
    their_settings, our_settings = (
        {names[p]: {field: group[field] for field in sorted(fields)} for group in one.param_groups for p in group["params"]}
        for (one, _), names in zip(sides, names, strict=True)
    )
    if "biases_by_name" in pair.known:
        our_settings = {name: one | ({"weight_decay": 0.0} if "bias" in name else {}) for name, one in our_settings.items()}
    yield "setting of", their_settings, our_settings


def accumulation(pair):
    yield from pair.updates(pair.whole, ACCUMULATED["gradient_accumulation_steps"])


def resume(pair):
    """A training taken up in its middle repeats the same arithmetic on the same numbers as the whole one, in place of ours."""
    course = pair.whole  # it saves in its middle
    rest = libraries.train(pair.trainer("resumed", **ACCUMULATED), str(pair.folder / "accumulated" / "checkpoint-1"))
    for field in ("learning_rate", "loss", "grad_norm", "weights"):
        yield f"resumed, {field}", rest[field], course[field]


def scores(pair):
    """`evaluate()` and answers of `predict()` on the same weights. `batches_evaluated_alike`: a mean of the batches' means."""
    model, our_model, pairs = pair.trained[0].model, pair.our_trained(), []
    for part in chunks(pair.codec.encode(pair.test, training=True), libraries.TEST_BATCH):
        batch = move_batch(pair.device, pair.codec.collate(part))
        with autocast(pair.precision, pair.device), torch.no_grad():
            pairs.append((float(pair.codec.loss(our_model, batch)), pair.codec.targets(batch)))
    losses, counts = zip(*pairs, strict=True)
    our_loss = sum(losses) / sum(counts)
    if "batches_evaluated_alike" in pair.known:
        our_loss = fmean(a / b for a, b in pairs)
    test = libraries.encoded(pair.cell, pair.tokenizer, pair.test)
    yield "eval_loss", pair.trainer("scored", model, **pair.ungrouped).evaluate(test)["eval_loss"], our_loss, LOSS
    yield "text of row" if pair.codec.generates else "answer to row", pair.answers(model), pair.our_answers(our_model)


def pipeline(pair):
    """Answers from what `save_model` wrote, by the pipeline of the problem; by AutoModel if there is known to be none."""
    cell, folder, known_ids, no_support = pair.cell, pair.folder / "saved", pair.known, "no_pipeline" in pair.known
    yield f"pipeline {pair.kit.pipeline!r}", pair.kit.pipeline in hf.pipelines.PIPELINE_REGISTRY.supported_tasks, not no_support
    pair.trained[0].save_model(str(folder))
    if no_support:
        options = libraries.quant_option(cell)
        their_answers = pair.answers(pair.kit.auto.from_pretrained(folder, **options, trust_remote_code=False).to(pair.device))
    else:
        search = {"do_sample": False} if "pipeline_samples" in known_ids else {}
        their_answers = libraries.piped(cell, pair.tokenizer, folder, pair.test, pair.device, **search)
    model = pair.our_trained()
    if "adapter_rounded_when_loaded" in known_ids:
        ours.round_adapters(model)
    known_ids = known_ids - {"segments_lost"} if "segments_served" in known_ids else known_ids
    codec = ours.knowing_codec(cell, pair.codec.tokenizer, known_ids)
    yield "answer to row", their_answers, pair.our_answers(model, codec, size=None if no_support else 1)


_ALL = (windows, start, labels, batch, order, loss, gradient, optimizer, accumulation, resume, scores, pipeline)
STAGES = {stage.__name__: stage for stage in _ALL}
