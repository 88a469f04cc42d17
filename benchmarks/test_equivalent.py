"""Settings that must be equal: two ways to compute the same, on which cells, how nearly, and why.

From top to bottom: how two results are compared, what a setting runs, the table `ROWS`, and the test. A setting takes a `Bench`
and returns fields. `benchmarks/plants/equal.py` breaks each row on purpose: a row that nothing breaks proves nothing.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from fixtures.session import session_of
from tunegrid.audits.before import NF4_LEVELS
from tunegrid.codecs.features import chunks
from tunegrid.run.build import build
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.ranks import ALONE, Ranks, fsdp_refusal
from tunegrid.run.serving import Serving
from tunegrid.run.train import make_schedule
from tunegrid.tests.small import silent, still, trainer_for

FIRST, SECOND = "default", "second"  # adapters: PEFT's name for one without a name, and another
TIE = 1e-6  # a value so near to the middle of two levels may be either, in units of itself
STEP = 2.0**-15  # on a CPU bitsandbytes looks 8-bit codes up in a table of such steps: "codes-of-8-bits" has what that costs
doubles = partial(torch.tensor, dtype=torch.float64)

# How two results are compared


@dataclass(frozen=True)
class Tolerance:
    """How far apart a field may be: the norm of the difference, in units of the norm; 0 asks for equal bits."""

    most: float = 0.0
    least: float = -1.0  # something must differ by more than this
    drift: float = math.inf  # the mean difference with its sign, in units of the mean size
    whole: bool = False  # in units of the whole field: some gradients are but rounding, as of a bias that is added to all keys


def difference(name, one, other, tolerance):
    """What is wrong with a field, in a sentence; None if nothing is."""
    ours, theirs = leaves(one), leaves(other)
    if not ours or not theirs:
        return f"{name}: there is nothing to compare"
    unit = math.sqrt(sum(float(leaf.double().square().sum()) for leaf in ours.values())) if tolerance.whole else None
    gaps = {place: apart(ours.get(place), theirs.get(place), unit) for place in {**ours, **theirs}}
    worst = max(gaps, key=gaps.__getitem__)
    if gaps[worst] > tolerance.most:
        return f"{name}{worst}: {gaps[worst]:.1e} apart, allowed {tolerance.most:.0e}"
    if gaps[worst] <= tolerance.least:
        return f"{name}: nothing differs by more than {tolerance.least:.0e}, and something should"
    if tolerance.drift < math.inf:
        drifts = [abs(float((theirs[place] - ours[place]).mean() / ours[place].abs().mean())) for place in ours]
        return f"{name}: the mean difference is {max(drifts):.1e} of the mean size" if max(drifts) > tolerance.drift else None
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


def trainer_of(bench, *, dropout=True, ranks=ALONE, **recipe):
    """Three updates of four rows in their order, of which the last one has two, however they are cut into micro-batches."""
    recipe = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 3} | recipe
    cell = replace(bench.cell, recipe=replace(bench.cell.recipe, **recipe))
    trainer = trainer_for(cell, bench.splits.train[:10], ranks=ranks)
    trainer.features = trainer.features[:10]
    trainer.updates = lambda epoch: ([[*rows]] for rows in chunks(trainer.features, cell.recipe.rows_per_update))
    return trainer if dropout else still(trainer)  # cuts of a batch would drop differently


@setting
def trained(bench, *, resumed=0, together="", **changes):
    """A training; `resumed` by another trainer, from a file, after so many updates; `together`: what ranks have of weights."""
    if together == "parts" and (refusal := fsdp_refusal(bench.cell, bench.model(), "fp32")):
        pytest.skip(refusal)
    changes["ranks"] = Ranks(bench.ranks.rank, bench.ranks.count, fsdp=together == "parts") if together else ALONE
    trainer = trainer_of(bench, **changes)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    if resumed:
        trainer.run(silent(), first_updates=resumed)
        file = Checkpoints(path=bench.folder / "training.pt", every_seconds=0.0, resume=True)
        file.save_if_due(trainer)
        file.restore(trainer := trainer_of(bench, **changes))
        assert trainer.log.updates == resumed, "it goes on where it stopped"
    trainer.run(silent())
    names = {p: name for name, p in trainer.stepped.items()}
    return {
        "losses": doubles(trainer.log.losses),
        "norms": doubles([norm for norm in trainer.log.gradient_norms if norm is not None]),
        "clipped": doubles([trainer.log.clipped_norm or 0.0]),
        "rates": doubles([rate for rates in trainer.log.group_rates for rate in rates]),
        "decays": {names[p]: group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]},
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
        return self.ours.codec.loss(model, self.ours.codec.placed(inputs, self.args.device)) / num_items_in_batch


class MicroBatches:
    """A data loader for Trainer, no `DataLoader`, which would draw random numbers."""

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


@setting
def looped(bench, *, by_trainer=False, **recipe):
    """Twelve updates by our loop, or by transformers' `Trainer` with its own accumulation and clipping."""
    cell = replace(bench.cell, recipe=replace(bench.cell.recipe, max_steps=12, **recipe))
    trainer = trainer_for(cell, bench.splits.train[:200])
    model = trainer.model
    if by_trainer:
        arguments = hf.TrainingArguments(
            output_dir=str(bench.folder / "trainer"),
            max_steps=trainer.total,
            per_device_train_batch_size=cell.recipe.per_device_train_batch_size,
            gradient_accumulation_steps=cell.recipe.gradient_accumulation_steps,
            max_grad_norm=cell.recipe.max_grad_norm or 0.0,
            bf16=trainer.log.precision == "bf16",
            **{"use_cpu": True, "logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True},
        )
        optimizer = cell.method.make_optimizer(model, cell)
        steps = optimizer, make_schedule(optimizer, cell, trainer.total)
        theirs = TheirTrainer(model=model, args=arguments, train_dataset=trainer.features, optimizers=steps)
        theirs.remove_callback(hf.PrinterCallback)
        theirs.ours = trainer
        theirs.add_callback(type("Seed", (hf.TrainerCallback,), {"on_train_begin": lambda *_, **__: hf.set_seed(0)})())
        theirs.train()
        logs = [entry for entry in theirs.state.log_history if "loss" in entry]
        losses, norms = ([entry[name] for entry in logs] for name in ("loss", "grad_norm"))
    else:
        trainer.run(silent())
        losses, norms = trainer.log.losses, trainer.log.gradient_norms
    moved = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {"losses": doubles(losses), "norms": doubles(norms), "weights": moved}


@setting
def by_formula(bench, **options):
    """What options ask of an optimizer: rates by update, of body and head; decays, of matrices alone; a norm after clipping."""
    recipe = replace(bench.cell.recipe, **options)
    warmup, rates = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * 3), []
    peaks = [rate for rate in (recipe.learning_rate, recipe.head_learning_rate) if rate for _ in range(2)]  # decayed and not
    for update in range(3):
        done = (update - warmup) / max(1, 3 - warmup)
        falling = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[recipe.lr_scheduler_type]
        rates += [peak * (update / warmup if update < warmup else falling) for peak in peaks]
    decays = {n: recipe.weight_decay * (p.ndim > 1) for n, p in bench.model().named_parameters() if p.requires_grad}
    return {"rates": doubles(rates), "decays": decays, "clipped": doubles([recipe.max_grad_norm or 0.0])}


def answers(bench, model, batch, **options):
    """A model's logits of a batch; of an extractor both."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    output = model(**inputs, **({"use_cache": False} if bench.codec.generates else {}), **options)
    return [output[name] for name in ("logits", "start_logits", "end_logits") if name in output]


def groups(bench, alone):
    """Four rows, from the shortest to the longest of forty: each `alone`, or in one batch, which is padded then."""
    features = sorted(bench.features(40), key=lambda feature: len(feature.input_ids))
    rows = [features[i * (len(features) - 1) // 3] for i in range(4)]
    return [[row] for row in rows] if alone else [rows]


@setting
def read(bench, *, alone=False, turned=False, left=False, attention="sdpa"):
    """Logits of four rows at their real tokens, and the sum of their gradients; from the last row, or padded on the left."""
    model, logits, order = bench.model(attention), [], -1 if turned else 1
    for rows in groups(bench, alone):
        batch = bench.codec.collate(rows[::order])
        if left:
            mask = batch["attention_mask"]
            source = [n for n, t in batch.items() if not n.startswith("decoder") and t.shape[1:] == mask.shape[1:]]
            pads = (mask == 0).sum(-1).tolist()
            batch |= {n: torch.stack([row.roll(pad) for row, pad in zip(batch[n], pads, strict=True)]) for n in source}
        if left and not bench.cell.id.startswith("t5"):  # which knows distances only
            batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        real, found = batch.get("decoder_attention_mask", batch["attention_mask"]).bool(), answers(bench, model, batch)
        own = [[one[i][mask] if one[i].shape[:1] == mask.shape else one[i] for one in found] for i, mask in enumerate(real)]
        loss = sum((one.flatten() * torch.arange(one.numel()).cos()).sum() for row in own for one in row)
        loss.backward()  # unlike that of a usual loss, its gradient does not vanish where a model is sure
        logits += own
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    return {"logits": logits[::order], "gradients": gradients}


@setting
def packed(bench, *, alone=False, **options):
    """Logits of three texts, each by itself, or in one row whose positions start anew with each text, without a mask."""
    model, logits = bench.model(), []
    texts = [torch.tensor([*feature.input_ids, *feature.target]) for feature in bench.features(3)]
    for group in [[text] for text in texts] if alone else [texts]:
        positions = torch.cat([torch.arange(len(text)) for text in group])
        output = model(input_ids=torch.cat(group)[None], position_ids=positions[None], **options)
        logits += output.logits[0].split([len(text) for text in group])
    return {"logits": logits}


@setting
@torch.inference_mode()
def searched(bench, *, alone=False, **options):
    """Token ids that the recipe's search finds, as many as it may, so that a fault of a late step shows."""
    model, options = bench.model(), {"max_new_tokens": 12, "min_new_tokens": 12, "min_length": None} | options
    texts = [bench.codec.generate(model, rows, bench.device, **options) for rows in groups(bench, alone)]
    return {"token ids": [ids for text in texts for ids in text.tolist()]}


def eight_bit_levels(*, signed):
    """256: zero, one, and the middles of even steps in each of seven powers of ten (Dettmers et al. 2022)."""
    levels = [torch.tensor([0.0, 1.0]).double()]
    for power in range(7):
        edges = torch.linspace(0.1, 1.0, 2**power * (1 if signed else 2) + 1, dtype=torch.float64) * 10.0 ** (power - 6)
        levels += [sign * (edges[:-1] + edges[1:]) / 2 for sign in ([1, -1] if signed else [1])]
    return torch.cat(levels).sort().values


def coded(known, values, levels, block, step):
    """Codes of the levels nearest to value / largest size in its block, or those known if they are as near; and these sizes."""
    scales = torch.stack([part.abs().max() for part in values.double().split(block)])
    sizes = scales.repeat_interleave(block)[: len(values)]
    gaps = (values.double()[:, None] - sizes[:, None] * levels).abs()
    worse = gaps.gather(1, known.long()[:, None])[:, 0] - gaps.amin(1)
    return torch.where(worse <= TIE * values.abs() + step * sizes, known, gaps.argmin(1).to(known.dtype)), scales


@setting
def quantized(bench, *, by_definition, step=STEP):
    """Weights in NF4, their scales in 8 bits and AdamW's moments in 8 bits, by bitsandbytes or in double precision."""
    weight, gradient = torch.randn(2, 257 * 64 + 37, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[64:128] = 0.0  # a whole block; the last one is short, and scales fill more than one of theirs, too
    packed, state = bnb.functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    halves = torch.cat([packed >> 4, packed & 15], dim=1).flatten()[: len(weight)]  # the high half of a byte first
    (parameter := nn.Parameter(weight.clone())).grad = gradient.clone()
    (optimizer := bnb.optim.AdamW8bit([parameter])).step()
    kept, signed, scales = optimizer.state[parameter], eight_bit_levels(signed=True), [b.abs().max() for b in weight.split(64)]
    fields = {}
    for name, codes, sizes, *parts in (
        ("codes", halves, state.absmax, weight, torch.tensor(NF4_LEVELS).double(), 64, 0.0),
        ("scales", state.absmax, state.state2.absmax, torch.stack(scales) - state.offset, signed, 256, STEP),
        ("first moments", kept["state1"], kept["absmax1"], 0.1 * gradient, signed, 256, step),
        ("second moments", kept["state2"], kept["absmax2"], 0.001 * gradient**2, eight_bit_levels(signed=False), 256, step),
    ):
        codes, sizes = coded(codes, *parts) if by_definition else (codes, sizes)
        fields |= {name: codes, f"sizes of {name}": sizes.float()}
    return fields


def model_of(bench, second=None, size=0.05):
    """A model with one adapter or two, and noise on all that trains, so that an adapter that starts as nothing is something."""
    model = bench.model()
    if second:
        model.add_adapter(second, model.peft_config[FIRST])
    for name, p in model.named_parameters():
        if p.requires_grad or second in name.split("."):
            generator = torch.Generator().manual_seed(sum(name.encode()))  # the same beside another adapter
            p.data.add_(torch.randn(p.shape, generator=generator) * size)
    return model.eval()


@setting
def served(bench, *, saved):
    """What a model has learned and answers, and its tokenizer, which has settings of its own; `saved` and loaded again."""
    model, tokenizer = model_of(bench), copy.deepcopy(bench.codec.tokenizer)
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
    model_of(bench, second).save_pretrained(bench.folder / str(second))
    return {"tensors": load_file(bench.folder / str(second) / "adapter_model.safetensors")}


@setting
@torch.no_grad()
def adapted(bench, *, act=lambda model: None, two=False, size=0.05, **options):
    """What layers with an adapter, or `two`, make of random numbers, the model's logits, and the weights below, after `act`."""
    act(model := model_of(bench, SECOND if two else None, size))
    layers = {name: m for name, m in model.eval().named_modules() if isinstance(m, BaseTunerLayer) and hasattr(m, "merge")}
    bases = {name: m.get_base_layer() for name, m in layers.items() if not isinstance(m.get_base_layer(), nn.Embedding)}
    logits, outputs = answers(bench, model, bench.codec.collate(bench.features(4)), **options), {}
    for name, base in bases.items():
        width = getattr(base, "in_features", base.weight.shape[0])
        outputs[name] = layers[name](torch.randn(3, 5, width, generator=torch.Generator().manual_seed(width)))
    weights = {name: dict(base.named_parameters()) for name, base in bases.items()}
    return {"layers": outputs, "logits": logits, "even rows": [one[::2] for one in logits], "weights": weights}


def in_turn(*steps):
    """One step after the other on a model, each a method's name and its arguments."""
    return lambda model: [getattr(model, name)(*arguments) for name, *arguments in steps]


# The table


@dataclass(frozen=True)
class Row:
    """Two settings that are equal on some cells, how nearly by field, and why; or that a library is known to keep apart."""

    id: str
    cells: tuple[str, ...]
    one: Callable[[Bench], Mapping[str, Any]]
    other: Callable[[Bench], Mapping[str, Any]]
    equal: Mapping[str, Tolerance]
    why: str = ""
    known: str = ""  # library: what differs, and where it was reported; the test then asks for a difference
    ranks: int = 1  # processes that run both together


SAME_BITS = Tolerance()
# fp32 has 24 bits: one rounding is 6e-8. Sums of some hundred products in another order come out 1e-7 to 2e-6 apart.
ROUNDING = Tolerance(2e-5)
READ = {"logits": ROUNDING, "gradients": Tolerance(2e-5, whole=True)}
# AdamW divides a gradient by its own size: where that is next to zero, rounding turns the direction of a whole step.
TRAINED = {"losses": ROUNDING, "norms": Tolerance(1e-4), "moves": Tolerance(2e-2, whole=True)}
EXACTLY_TRAINED = dict.fromkeys(("losses", "norms", "rates", "moves", "order"), SAME_BITS)
SERVED = dict.fromkeys(("learned", "logits", "token ids"), SAME_BITS)
ADAPTERS = (  # every method of the zoo that has an adapter, on a cell that every one of its kind can train
    *("gpt2_sa_lora", "gpt2_sa_rslora", "gpt2_sa_dora", "gpt2_sa_pissa", "gpt2_sa_loraplus"),
    *("gpt2_sa_adalora", "gpt2_sa_ia3", "gpt2_sa_vera", "bert_sa_oft", "gpt2_sa_ln"),
)
OVER_NF4 = ("gpt2_sa_qlora", "gpt2_sa_qdora", "bert_sa_qoft", "gpt2_sa_qia3")
still_trained, both, MERGE = partial(trained, dropout=False), partial(adapted, two=True), "merge_adapter"
SAVED, MERGED = (served(saved=False), served(saved=True)), (adapted(), adapted(act=in_turn((MERGE,))))
PACKED = quantized(by_definition=True), quantized(by_definition=False)
NAMED = both(), both(act=in_turn(("set_adapter", SECOND)), adapter_names=[FIRST, SECOND, FIRST, "__base__"])
RECOMPUTED = trained(gradient_checkpointing=False), trained(gradient_checkpointing=True)
SIXES = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 5, "max_grad_norm": 1.0}
COMBINED = {  # of the first adapter whole, and of the second nothing
    kind: in_turn(("add_weighted_adapter", [FIRST, SECOND], [1.0, 0.0], "both", kind, 64), ("set_adapter", "both"))
    for kind in ("cat", "svd", "linear")
}

# fmt: off
ROWS = (
    Row("accumulation", ("gpt2_sum_lora", "t5_sum_sft", "bert_qa_sft", "bert_sa_lora"),
        still_trained(), still_trained(per_device_train_batch_size=1, gradient_accumulation_steps=4), TRAINED,
        "the same sums in another order; the last update has two rows of four, and texts differ in length"),
    Row("gradient-checkpointing", ("gpt2_sum_lora", "bert_sa_sft", "gpt2_sa_qlora", "t5_sa_lora", "bert_sum_lora"), *RECOMPUTED,
        EXACTLY_TRAINED, "the backward pass repeats the same operations on the same numbers, dropout's included"),
    Row("gradient-checkpointing-of-t5", ("t5_sum_lora", "t5_sum_sft"), *RECOMPUTED, TRAINED,
        "the bias of T5's cross-attention then asks for a gradient, for which SDPA takes another kernel"),
    Row("padded-encoder", ("bert_sa_sft", "bert_qa_lora", "t5_sa_sft", "t5_qa_lora", "t5_sum_lora", "bert_sum_sft"),
        read(alone=True), read(), READ, "masked tokens have weight 0; kernels sum rows of another width in another order"),
    Row("padded-classifier", ("gpt2_sa_sft", "gpt2_qa_sft"),
        read(alone=True), read(), READ, "a causal model never sees what stands behind a token"),
    Row("padded-in-front", ("gpt2_sum_sft", "gpt2_qa_lora", "gpt2_sa_sft", "bert_qa_sft", "t5_sum_sft", "t5_sa_lora"),
        read(alone=True), read(left=True), READ, "as padded behind, where positions count from the first real token"),
    Row("another-order", ("t5_sum_sft", "bert_qa_lora", "gpt2_sum_sft", "gpt2_sa_qlora"), read(), read(turned=True), READ,
        "rows of a batch do not know of each other; gradients are summed in another order"),
    Row("packed", ("gpt2_sum_sft", "gpt2_sum_lora"), packed(alone=True), packed(use_cache=False), {"logits": ROUNDING},
        "positions that start anew part the rows; a wider attention sums zeros, too"),
    Row("packed-beside-a-cache", ("gpt2_sum_sft",), packed(alone=True), packed(), {"logits": ROUNDING},
        known="transformers: rows of a packed sequence see each other unless `use_cache=False` is given, in training, too, "
        "huggingface/transformers#39194, which parts them for training without a cache"),
    Row("cache", ("gpt2_sum_sft", "t5_sum_sft", "bert_sum_lora", "t5_sum_qlora"), searched(), searched(use_cache=False),
        {"token ids": SAME_BITS}, "the best tokens are apart by far more than rounding"),
    Row("beams-of-a-batch", ("t5_sum_sft", "gpt2_sum_lora", "bert_sum_sft"), searched(alone=True), searched(),
        {"token ids": SAME_BITS}, "each row keeps beams, cache and padding of its own"),
    Row("eager-attention", ("bert_qa_sft", "gpt2_sum_lora", "t5_sum_sft", "bert_sum_sft", "t5_sa_sft"), read(),
        read(attention="eager"), READ, "one softmax, fused or not; T5 learns its bias through the mask that SDPA is given"),
    Row("bf16-autocast", ("t5_sum_sft", "bert_sa_sft", "gpt2_sum_lora"), still_trained(precision="fp32", learning_rate=1e-5),
        still_trained(precision="bf16", learning_rate=1e-5), {"losses": Tolerance(4e-3, drift=2e-3, least=1e-6), "moves":
        Tolerance(0.1, whole=True)}, "bf16 has 8 bits, 2e-3 a rounding, which sums over many products even out; master weights "
        "stay fp32; a run in bf16 that gives fp32's losses was not one"),
    Row("two-ranks", ("gpt2_sum_lora",), still_trained(), still_trained(together="whole"), TRAINED,
        "the same sums in another order, over ranks whose rows have unequal numbers of targets", ranks=2),
    Row("three-ranks-of-which-one-idles", ("t5_sum_sft",), still_trained(), still_trained(together="whole"), TRAINED,
        "as with two; the last update has two rows for three ranks", ranks=3),
    Row("shared-out", ("gpt2_sum_lora",), still_trained(), still_trained(together="parts"), TRAINED,
        "FSDP2 sums the same gradients, in parts", ranks=2),
    Row("resumed", ("gpt2_sum_lora", "bert_qa_qlora", "t5_sum_sft", "bert_sa_lora"), trained(), trained(resumed=2),
        EXACTLY_TRAINED, "a file holds all that the next update depends on, bit by bit"),
    Row("resumed-dropout", ("gpt2_sum_lora", *ADAPTERS, *OVER_NF4, "gpt2_sa_bitfit", "t5_sum_prompt"), trained(),
        trained(resumed=1), EXACTLY_TRAINED,
        "random numbers go on where they were, as does what a method keeps between updates: every one of the zoo"),
    Row("trainer", ("bert_sa_sft", "gpt2_qa_lora", "t5_sum_sft", "gpt2_sum_qlora"), looped(), looped(by_trainer=True),
        dict.fromkeys(("losses", "norms", "weights"), SAME_BITS),
        "our loop is Trainer's: the same operations in the same order, an epoch's short last batch and clipping included"),
    Row("trainer-accumulates", ("bert_qa_lora",), looped(**SIXES), looped(by_trainer=True, **SIXES),
        dict.fromkeys(("losses", "norms", "weights"), SAME_BITS), "an update divides by all its targets, as ours does"),
    Row("nf4", ("bert_sa_qlora",), *PACKED, {"codes": SAME_BITS, "scales": SAME_BITS, "sizes of scales": Tolerance(1e-6)},
        "packing rounds nothing but what its definition rounds"),
    Row("moments-of-8-bits", ("bert_qa_qlora",), *PACKED,
        {"first moments": SAME_BITS, "second moments": SAME_BITS, "sizes of second moments": Tolerance(1e-6)},
        "codes are the nearest ones, as near as a CPU's table can tell; sums are a rounding apart"),
    Row("codes-of-8-bits", ("bert_qa_qlora",), quantized(by_definition=True, step=0.0), PACKED[1],
        {"second moments": SAME_BITS}, known="bitsandbytes: on a CPU, 8-bit codes are looked up in steps of 2^-15: 3 % of "
        "second moments get another level than the nearest, bitsandbytes-foundation/bitsandbytes#1901"),
    *(Row(f"option-{next(iter(option))}", (cell,), by_formula(**option), still_trained(**option), {field: Tolerance(most)},
          "what the recipe asks is what the optimizer has; that it moves weights by that is an audit of each cell")
      for field, most, cell, option in (
        ("rates", 1e-9, "bert_qa_lora", {"learning_rate": 7e-4}), ("rates", 1e-9, "bert_qa_sft", {"head_learning_rate": 2e-2}),
        ("rates", 1e-9, "gpt2_sum_lora", {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0}),
        ("rates", 1e-9, "gpt2_sum_lora", {"warmup_steps": 2}), ("rates", 1e-9, "gpt2_sum_lora", {"warmup_ratio": 0.5}),
        ("decays", 0.0, "bert_qa_sft", {"weight_decay": 5.0}), ("clipped", 1e-4, "t5_sum_sft", {"max_grad_norm": 1e-9}))),
    Row("option-optim", ("bert_qa_lora",), still_trained(optim="adamw_torch"), still_trained(optim="adamw_bnb_8bit"),
        {"losses": Tolerance(1e-2), "moves": Tolerance(0.2, least=1e-6, whole=True)},
        "moments of 8 bits are within some percent of whole ones, and are not they"),
    Row("saved-adapter", (*ADAPTERS, *OVER_NF4, "bert_sum_lora"), *SAVED, SERVED,
        "a file holds fp32, bit by bit: the adapter and the head beside it"),
    Row("saved-token-rows", ("gpt2_sum_lora", "gpt2_sum_qlora"), *SAVED, SERVED,
        "the row of a new token is trained, saved and loaded like an adapter"),
    Row("saved-whole", ("t5_sum_sft", "bert_sa_sft", "gpt2_sa_bitfit", "bert_sum_sft", "gpt2_sum_sft", "t5_sum_prompt"),
        *SAVED, SERVED, "a file holds fp32, bit by bit"),
    Row("saved-tokenizer", ("bert_sa_lora", "gpt2_sum_lora", "t5_sum_lora"), *SAVED,
        dict.fromkeys(("settings", "token ids"), SAME_BITS), "a tokenizer is its files"),
    Row("two-adapters-two-files", ("gpt2_sa_lora", "gpt2_sa_dora", "gpt2_sa_ia3", "bert_sa_oft", "gpt2_sa_vera",
        "gpt2_sum_lora", "gpt2_sa_qlora"), filed(), filed(second=SECOND), {"tensors": SAME_BITS},
        "a file holds one adapter's tensors, all of them, and nobody else's"),
    Row("two-adapters-of-like-names", ("gpt2_sa_lora",), filed(), filed(second="default_2"), {"tensors": SAME_BITS},
        "a name that begins like another is another"),
    Row("an-adapter-named-like-a-module", ("gpt2_sa_lora",), filed(), filed(second="attn"), {"tensors": SAME_BITS},
        known="PEFT: an adapter beside one that is named like a module on the way to its layers loses them in its file, "
        "huggingface/peft#3584"),
    Row("off", ("gpt2_sa_lora", "t5_sum_lora"), adapted(size=0.0), adapted(act=in_turn(("disable_adapter_layers",))),
        {"logits": SAME_BITS, "layers": SAME_BITS}, "what is switched off adds nothing, and what is zero adds zeros"),
    Row("switched", ("gpt2_sa_lora", "t5_sum_lora"), both(), both(act=in_turn(("set_adapter", SECOND), ("set_adapter", FIRST))),
        {"logits": SAME_BITS, "layers": SAME_BITS}, "an adapter that was put aside for another is as it was"),
    Row("merged", ADAPTERS, *MERGED, {"layers": ROUNDING, "logits": Tolerance(1e-4)},
        "x W + x D is x (W + D), but for rounding, which later layers carry on"),
    Row("merged-nf4", ("gpt2_sa_qlora", "bert_sa_qoft", "gpt2_sa_qdora"), *MERGED, {"layers": Tolerance(1e-2)}, known="PEFT: "
        "a merged layer is packed anew, which rounds most of an adapter away; bf16 alone would be 4e-3 apart"),
    Row("unmerged", ADAPTERS, adapted(), adapted(act=in_turn((MERGE,), ("unmerge_adapter",))), {"weights": Tolerance(2e-6)},
        "W + D - D loses what fell off the end of W + D; IA3 divides by what it multiplied by, plus 1e-8"),
    Row("one-by-one", ("gpt2_sa_lora", "gpt2_sa_rslora", "gpt2_sa_ia3", "t5_sum_lora"),
        both(act=in_turn((MERGE, [FIRST, SECOND]))), both(act=in_turn((MERGE, [FIRST]), (MERGE, [SECOND]))),
        {"weights": Tolerance(1e-6)}, "two adapters are added in the same order, at once or one after the other"),
    Row("adapters-in-a-batch", ("gpt2_sa_lora", "t5_sum_lora", "bert_sa_lora", "gpt2_sa_qlora"), *NAMED,
        {"even rows": ROUNDING}, "a row goes through the adapter and the head that it names"),
    Row("adapters-in-a-batch-of-others", ("gpt2_sa_vera", "gpt2_sa_ia3", "bert_sa_oft"), *NAMED, {"even rows": ROUNDING},
        known="PEFT: all methods but LoRA drop `adapter_names` without a word: each row gets the active adapter"),
    *(Row(f"weighted-{kind}", ("t5_sum_lora",), both(), both(act=COMBINED[kind]), {"logits": ROUNDING},
          "weights of 1 and 0 leave the first adapter") for kind in COMBINED),
    Row("weighted-token-rows", ("gpt2_sum_lora",), both(), both(act=COMBINED["cat"]), {"logits": ROUNDING},
        known="PEFT: `add_weighted_adapter` leaves the trained rows of new tokens behind, and refuses nothing"),
)
# fmt: on


def unequal(row, bench):
    """A sentence for each field of a row that is not as it should be."""
    one, other = row.one(bench), row.other(bench)
    return [text for name, tolerance in row.equal.items() if (text := difference(name, one[name], other[name], tolerance))]


@pytest.fixture
def cell(request, row, cell_id):
    session = session_of(request.config)
    if row.ranks > 1 and session.child.ranks == 1:
        pytest.skip(f"{row.id} needs {row.ranks} processes, which --engine=ray does not start: leave it out")
    profile = replace(session.profile("quick" if cell_id in session.grid.recipes else "zoo"), ranks=row.ranks)
    return session.grid_of(profile).cell(cell_id, profile)


@pytest.fixture
def bench(cell, codec, splits, device, ranks, tmp_path):
    return Bench(cell, codec, splits, device, ranks, tmp_path)


@pytest.mark.equivalent
@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # on what a row does to adapters on purpose
@pytest.mark.parametrize(
    ("row", "cell_id"), [pytest.param(row, cell_id, id=f"{row.id}-{cell_id}") for row in ROWS for cell_id in row.cells]
)
def test_equal(row, bench):
    if row.known:
        assert unequal(row, bench), f"mended: make it a row, with a plant ({row.known})"
    else:
        assert unequal(row, bench) == [], row.why
