"""Both sides of a cell, and the stages at which they are compared, in the order of the flow. The first that differs ends it.

A stage takes a `Pair` and returns a sentence, as "the tokenizer returned 0 overflow windows, ours has 3 (row 17)"; empty if
both are equal.
"""

import math
from collections import Counter
from functools import cached_property

import torch
import transformers as hf

from benchmarks.stock import libraries, ours
from benchmarks.stock.known import generates, is_separated, known_of
from tunegrid.codecs.base import IGNORED
from tunegrid.codecs.features import chunks
from tunegrid.errors import InputError
from tunegrid.run.build import build, load_tokenizer

UPDATES = 6  # an epoch of five batches, the last of which is half as large, and one more
ACCUMULATED = 3  # batches an update; an epoch is an update of three and one of two
ACCUMULATED_UPDATES = 3
CHECKPOINT = 1  # update after which the accumulating run is saved, in the middle of an epoch
TEST_ROWS = 10
# A loss or norm of the same weights, rows and random numbers, in units of itself if that is above 1. Theirs is a mean, ours a
# sum that is divided: last digits of fp32, which are 6e-8 each, and of gradients the sums of some hundred products.
LOSS, NORM = 2e-6, 2e-5
# Gradients through a packed base are products in bf16, whose last digit is 4e-3: scaled by the mean's divisor before them or
# behind, each number of them may round otherwise, and a norm takes the mean of thousands.
PACKED_NORM = 5e-4
RATE = 1e-9  # the same formula in doubles


class Pair:
    """A cell's two sides, each made when a stage first asks for it.

    Attributes:
        cell: with the library's head, over the folder that both start from.
        known: ids of the differences that ours reckons with.
        rows, test: to train on, and to answer.
    """

    def __init__(self, cell, train, test, folder, device, without=""):
        """A few rows of each split; `without` is the id of a known difference that ours is not to reckon with."""
        if reason := libraries.refused(cell):
            raise InputError(f"{cell.id} has no stock path: {reason}")
        hf.logging.set_verbosity_error()
        hf.logging.disable_progress_bar()
        libraries.datasets.disable_progress_bars()
        self.cell = libraries.write_start(cell, folder / "start")
        self.folder, self.device, self.test = folder, device, test[:TEST_ROWS]
        self.known = known_of(self.cell) - {without}
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder / "start", trust_remote_code=False)
        self.codec = ours.knowing_codec(self.cell, load_tokenizer(self.cell), self.known)
        self.size = self.cell.recipe.per_device_train_batch_size
        count = math.ceil(4.5 * self.size)
        while count > 1 and self.size > 1 and not len(self.codec.encode(train[:count], training=True)) % self.size:
            count -= 1  # several windows of a row may fill the last batch
        self.rows = train[:count]
        self.features = self.codec.encode(self.rows, training=True)

    def our_model(self):
        """Ours, untrained."""
        return build(self.cell, load_tokenizer(self.cell), self.device)

    @cached_property
    def start_weights(self):
        """What trains, before it does, by name."""
        return libraries.trained(self.our_model())

    def model(self):
        """The libraries', untrained, with the weights of ours."""
        hf.set_seed(self.cell.profile.seed)
        return ours.put(libraries.model_of(self.cell, self.tokenizer, self.device), self.start_weights)

    @cached_property
    def table(self):
        """The rows in tokens, by the libraries."""
        return libraries.encoded(self.cell, self.tokenizer, self.rows)

    def inputs(self, feature):
        """All ids that a model reads of a feature."""
        return [*feature.input_ids, *feature.target] if is_separated(self.cell) else feature.input_ids

    @cached_property
    def batches(self):
        """The rows in order, in batches of both sides, under our names."""
        table = self.table.select_columns([name for name in self.table.column_names if name not in libraries.BESIDE])
        collate = libraries.collator_of(self.cell, self.tokenizer, self.model())
        pairs = zip(chunks(range(len(table)), self.size), chunks(self.features, self.size), strict=True)
        return [(libraries.batch_of(collate([table[i] for i in rows])), self.codec.collate(some)) for rows, some in pairs]

    def trainer(self, name, model=None, **changes):
        """The libraries' trainer, of a model of its own if none is given."""
        model, folder = model or self.model(), self.folder / name
        return libraries.trainer_of(self.cell, model, self.tokenizer, self.table, folder, self.device, **changes)

    @cached_property
    def plain(self):
        """The trainer after a training without accumulation, and its course."""
        trainer = self.trainer("plain", max_steps=UPDATES)
        return trainer, libraries.train(trainer)

    def accumulating(self, name, resume_from=None):
        """A training with accumulation, which is saved in its middle."""
        settings = {"max_steps": ACCUMULATED_UPDATES, "gradient_accumulation_steps": ACCUMULATED}
        trainer = self.trainer(name, save_strategy="steps", save_steps=CHECKPOINT, **settings)
        return libraries.train(trainer, resume_from)

    @cached_property
    def accumulated(self):
        """Its course."""
        return self.accumulating("accumulated")

    def updates(self, course, accumulation):
        """Losses and gradient norms of ours, of each update of a course; an epoch's last one may have fewer batches."""
        epochs = chunks(course.passes, len(self.batches))
        groups = [group for epoch in epochs for group in chunks(epoch, accumulation)]
        model = self.our_model()
        return [*zip(*ours.updates(self.cell, self.codec, model, groups, self.device, self.known), strict=True)]

    @cached_property
    def our_updates(self):
        """Those of the plain course."""
        return self.updates(self.plain[1], 1)

    def evaluator(self, model, **changes):
        """The trainer of a model that answers."""
        order = {"train_sampling_strategy": "random"} if "grouped_predictions" in self.known else {}
        return self.trainer("scored", model, **order, **changes)

    def answers(self, model):
        """The libraries' answers of a model: a label, the text of a span, or ids."""
        if not generates(self.cell):
            test = libraries.encoded(self.cell, self.tokenizer, self.test)
            return libraries.predictions(self.cell, self.evaluator(model), self.test, test)
        test = libraries.encoded(self.cell, self.tokenizer, self.test, training=not is_separated(self.cell))
        side, self.tokenizer.padding_side = self.tokenizer.padding_side, "left" if is_separated(self.cell) else "right"
        try:  # a causal model's prompts are padded on the left, as guides say
            return libraries.texts(self.cell, self.evaluator(model, predict_with_generate=True), test)
        finally:
            self.tokenizer.padding_side = side

    def our_trained(self):
        """Our model with the weights that the libraries' training ended with."""
        model = ours.put(self.our_model(), self.plain[1].weights)
        if "repacked_for_evaluation" in self.known:
            ours.repack(model)
        return model.eval()


def first_difference(pair, last="pipeline"):
    """Compare stage by stage up to a last one; the first that differs and how, or nothing."""
    names = [*STAGES][: [*STAGES].index(last) + 1]
    for name in names:
        try:
            sentence = STAGES[name](pair)
        except Exception as error:  # an error of the libraries is a difference, too
            if type(error).__module__.startswith("tunegrid"):
                raise
            sentence = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if sentence:
            return f"{name}: {sentence}"
    return ""


def windows(pair):
    """Token ids of each row, and the windows of a long one."""
    for row in range(len(pair.rows)):
        other = [ids for example, ids in zip(pair.table["example"], pair.table["input_ids"], strict=True) if example == row]
        own = [pair.inputs(feature) for feature in pair.features if feature.example == row]
        if len(other) != len(own):
            return f"the tokenizer returned {overflow(other)}, ours has {overflow(own)} (row {row})"
        for number, (one, two) in enumerate(zip(other, own, strict=True), 1):
            if one != two:
                return f"{first_token(one, two)} (row {row}, window {number} of {len(own)})"
    return ""


def overflow(some):
    return "no window" if not some else f"{len(some) - 1} overflow window{'' if len(some) == 2 else 's'}"


def first_token(theirs, own):
    """The first token that differs, or two lengths."""
    if len(theirs) != len(own):
        return f"{len(theirs)} tokens, ours has {len(own)}"
    place = next(i for i, (one, two) in enumerate(zip(theirs, own, strict=True)) if one != two)
    return f"token {place + 1} is {theirs[place]}, ours is {own[place]}"


def start(pair):
    """Which weights train, how all are stored, and what the frozen ones hold."""
    theirs, own = (dict(model.named_parameters()) for model in (pair.model(), pair.our_model()))
    if alone := sorted(own.keys() ^ theirs.keys()):
        return f"{alone[0]} is a weight of {'theirs' if alone[0] in theirs else 'ours'} alone"
    for name, p in theirs.items():
        if p.requires_grad != own[name].requires_grad:
            return f"{name} {'trains' if p.requires_grad else 'is frozen'}, not so in ours"
        one, two = (f"{some.dtype} {tuple(some.shape)}".removeprefix("torch.") for some in (p, own[name]))
        if one != two and not ("biases_rounded_late" in pair.known and name.endswith("bias")):
            return f"{name} is {one}, ours is {two}"
        if not torch.equal(p.detach().to(own[name].dtype), own[name].detach()):
            return f"{name} holds other numbers than ours"
    return ""


def labels(pair):
    """The labels of each row as collated, and which of them are counted."""
    for number, (theirs, own) in enumerate(pair.batches, 1):
        if "labels" not in theirs:
            return f"the collator gives no labels (batch {number})"
        counts = [int((some["labels"] != IGNORED).sum()) for some in (theirs, own)]
        if counts[0] != counts[1]:
            return f"the collator counts {counts[0]} labels, ours {counts[1]} (batch {number})"
        if sentence := other_tensor("labels", theirs["labels"], own["labels"]):
            return f"{sentence} (batch {number})"
    return ""


def batch(pair):
    """Everything else that the collator gives: ids, masks, kinds of token, the decoder's inputs."""
    for number, (theirs, own) in enumerate(pair.batches, 1):
        for name in sorted({*theirs, *own} - {"labels"}):
            tensors = [some.get(name) for some in (theirs, own)]
            if name == "decoder_input_ids":  # behind the end of a target, it does not matter what a decoder reads
                tensors = [tensor.masked_fill(own["labels"] == IGNORED, 0) for tensor in tensors]
            if sentence := other_tensor(name, *tensors):
                return f"{sentence} (batch {number})"
    return ""


def other_tensor(name, theirs, own):
    """What of a tensor differs. One that is lacking is what a model takes in its place: zeros, or no mask."""
    if theirs is None or own is None:
        implied = name == "decoder_attention_mask" or not bool((own if theirs is None else theirs).any())
        return "" if implied else f"{name} is given by {'ours' if theirs is None else 'the collator'} alone"
    if theirs.shape != own.shape:
        return f"{name} is {tuple(theirs.shape)}, ours is {tuple(own.shape)}"
    if torch.equal(theirs, own):
        return ""
    place = tuple((theirs != own).nonzero()[0].tolist())
    return f"{name} {[*place]} is {int(theirs[place])}, ours is {int(own[place])}"


def order(pair):
    """The first epoch holds every row once, in batches of the recipe's size, but for the last."""
    theirs, own = [one for one, *_ in pair.plain[1].passes[: len(pair.batches)]], [one for one, _ in pair.batches]
    their_sizes, our_sizes = ([len(one["input_ids"]) for one in batches] for batches in (theirs, own))
    if their_sizes != our_sizes:
        return f"batches hold {their_sizes} rows, ours {our_sizes}"
    their_rows, our_rows = row_counts(theirs), row_counts(own)
    return f"{sum((our_rows - their_rows).values())} rows do not come in the first epoch" if their_rows != our_rows else ""


def row_counts(batches):
    """How often the ids of a row come, without padding."""
    pairs = [(ids, real) for one in batches for ids, real in zip(one["input_ids"], one["attention_mask"].bool(), strict=True)]
    return Counter(tuple(ids[real].tolist()) for ids, real in pairs)


def loss(pair):
    """The loss of each update, on the weights that the libraries' training had before it."""
    losses, _ = pair.our_updates
    return other_numbers(pair.plain[1].losses, losses, LOSS, "the loss of update {}")


def gradient(pair):
    """The norm of its gradients, before they are clipped."""
    return other_norms(pair, pair.plain[1], pair.our_updates[1])


def other_norms(pair, course, norms):
    shares = [theirs / own for theirs, own in zip(course.norms, norms, strict=True)]
    tolerance = PACKED_NORM if pair.cell.quantization else NORM
    return other_numbers(shares, [1.0] * len(shares), tolerance, "the gradient norm of update {} over ours")


def other_numbers(theirs, own, tolerance, what):
    """The first number that differs by more than a tolerance; in units of itself if that is above 1."""
    if len(theirs) != len(own):
        return f"{len(theirs)} updates, ours has {len(own)}"
    for number, (one, two) in enumerate(zip(theirs, own, strict=True), 1):
        if not abs(one - two) <= tolerance * max(1.0, abs(two)):
            return f"{what.format(number)} is {one:.7g}, ours is {two:.7g}"
    return ""


def optimizer(pair):
    """Its class, and what it does to each weight: decay, betas, epsilon."""
    trainer, model = pair.plain[0], pair.our_model()
    theirs, own = trainer.optimizer, pair.cell.method.make_optimizer(model, pair.cell)
    kinds = [kind_of(getattr(one, "optimizer", one)) for one in (theirs, own)]
    if kinds[0] != kinds[1]:
        return f"it is {kinds[0]}, ours is {kinds[1]}"
    settings = settings_of(own, model)
    if "biases_by_name" in pair.known:
        settings = {name: one | ({"weight_decay": 0.0} if "bias" in name else {}) for name, one in settings.items()}
    their_settings = settings_of(theirs, trainer.model)
    if alone := sorted(their_settings.keys() ^ settings.keys()):
        return f"{alone[0]} is stepped by {'the libraries' if alone[0] in their_settings else 'ours'} alone"
    for name, group in their_settings.items():
        for field in sorted(group.keys() & settings[name].keys()):
            if group[field] != settings[name][field]:
                return f"{field} of {name} is {group[field]}, ours is {settings[name][field]}"
    return ""


def kind_of(optimizer):
    """The class, and how many bits bitsandbytes' AdamW keeps moments in, which has a class of its own with 8."""
    bits = getattr(getattr(optimizer, "args", None), "optim_bits", 32)
    return f"{type(optimizer).__name__.removesuffix('8bit')} of {bits} bits"


def settings_of(optimizer, model):
    """A group's settings, by the names of its weights; rates are compared at a stage of their own."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: {field: value for field, value in group.items() if field not in ("params", "lr", "initial_lr")}
        for group in optimizer.param_groups
        for p in group["params"]
    }


def rates(pair):
    """The rate of each update, as a share of the highest, by the formula of the schedule."""
    recipe = pair.cell.recipe
    warmup, own = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * UPDATES), []
    for update in range(UPDATES):
        done = (update - warmup) / max(1, UPDATES - warmup)
        falling = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
        own.append(update / warmup if update < warmup else falling[recipe.lr_scheduler_type])
    theirs = [rate / recipe.learning_rate for rate in pair.plain[1].rates]
    return other_numbers(theirs, own, RATE, "the rate of update {} over the highest")


def accumulation(pair):
    """Losses and gradients of updates of several batches, the last of an epoch of fewer."""
    losses, norms = pair.updates(pair.accumulated, ACCUMULATED)
    what = f"the loss of {ACCUMULATED} batches in update {{}}"
    return other_numbers(pair.accumulated.losses, losses, LOSS, what) or other_norms(pair, pair.accumulated, norms)


def resume(pair):
    """A training taken up in its middle repeats the same arithmetic on the same numbers as the one that was not interrupted."""
    whole = pair.accumulated
    rest = pair.accumulating("resumed", pair.folder / "accumulated" / f"checkpoint-{CHECKPOINT}")
    head = f"resumed after update {CHECKPOINT}, "
    for field, what in (("rates", "rate"), ("losses", "loss"), ("norms", "gradient norm")):
        if sentence := other_numbers(getattr(rest, field), getattr(whole, field), 0.0, f"the {what} of update {{}}"):
            return head + sentence.replace("ours is", "uninterrupted it is")
    other = [name for name, p in whole.weights.items() if not torch.equal(p, rest.weights[name])]
    return f"{head}{other[0]} ends with other numbers" if other else ""


def scores(pair):
    """`evaluate()` and answers of `predict()` on the same weights."""
    model, own = pair.plain[0].model, pair.our_trained()
    test = libraries.encoded(pair.cell, pair.tokenizer, pair.test)
    theirs = float(pair.evaluator(model).evaluate(test)["eval_loss"])
    our_loss = ours.evaluation_loss(pair.cell, pair.codec, own, pair.test, pair.device, pair.known)
    if (sentence := other_numbers([theirs], [our_loss], LOSS, "eval_loss")) or generates(pair.cell):
        return sentence
    return other_answers(pair.answers(model), ours.answers(pair.cell, pair.codec, own, pair.test, pair.device))


def other_answers(theirs, own):
    other = [row for row, (one, two) in enumerate(zip(theirs, own, strict=True)) if one != two]
    if not other:
        return ""
    return f"{len(other)} of {len(own)} answers are others; row {other[0]}: {theirs[other[0]]!r}, ours {own[other[0]]!r}"


def generation(pair):
    """Ids that `predict_with_generate` gives on the same weights."""
    if not generates(pair.cell):
        return ""
    _, written = ours.outputs(pair.cell, pair.codec, pair.our_trained(), pair.test, pair.device)
    pairs = zip(pair.answers(pair.plain[0].model), map(list, written), strict=True)
    other = [(row, first_token(one, two)) for row, (one, two) in enumerate(pairs) if one != two]
    return f"{len(other)} of {len(written)} texts are others; row {other[0][0]}: {other[0][1]}" if other else ""


def pipeline(pair):
    """Answers from what `save_model` wrote, by the pipeline of the problem; by AutoModel if there is known to be none."""
    cell, saved, lacking = pair.cell, pair.folder / "saved", "no_pipeline" in pair.known
    name = libraries.pipeline_name(cell)
    if (name in hf.pipelines.PIPELINE_REGISTRY.supported_tasks) == lacking:
        return f"transformers has {'a' if lacking else 'no'} pipeline {name!r}"
    pair.plain[0].save_model(str(saved))
    if lacking:
        options = libraries.quantization_of(cell)
        model = libraries.auto_of(cell).from_pretrained(saved, **options, trust_remote_code=False).to(pair.device)
        theirs = pair.answers(model)
        if generates(cell):
            theirs = [text.strip() for text in pair.tokenizer.batch_decode(theirs, skip_special_tokens=True)]
    else:
        search = {"do_sample": False} if "pipeline_samples" in pair.known else {}
        theirs = libraries.piped(cell, pair.tokenizer, saved, pair.test, pair.device, **search)
    model, known = pair.our_trained(), pair.known
    if "adapter_rounded_when_loaded" in known:
        ours.round_adapters(model)
    if "segments_served" in known:
        known = known - {"segments_lost"}
    codec, size = ours.knowing_codec(cell, pair.codec.tokenizer, known), libraries.TEST_BATCH if lacking else 1
    return other_answers(theirs, ours.answers(cell, codec, model, pair.test, pair.device, size))


STAGES = {
    stage.__name__: stage
    for stage in (
        *(windows, start, labels, batch, order, loss, gradient, optimizer, rates),
        *(accumulation, resume, scores, generation, pipeline),
    )
}
