"""Pretrains one micro backbone from nothing and saves it: config, safetensors, tokenizer and model card."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
import transformers as hf

from tunegrid.lab.micro.corpus import KINDS, Document, documents, reserved_texts
from tunegrid.lab.micro.objectives import (
    Batch,
    byte_level_bpe,
    causal_lm,
    causal_lm_announced,
    masked_lm,
    masked_lm_and_verdicts,
    own_loss,
    span_corruption,
    spelled_and_named,
    unigram,
    wordpiece,
)

SEED = 1234
BATCH = 32
POOL = 16  # batches drawn together and sorted by length, so that little of a batch is padding
TOKENIZER_DOCUMENTS = 30_000


def adamw(parameters: Iterable[Any], rate: float) -> torch.optim.Optimizer:
    """Rate as an absolute step."""
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)


def adafactor(parameters: Iterable[Any], rate: float) -> torch.optim.Optimizer:
    """Rate as a share of each tensor's size, as T5 was pretrained: its embeddings start 60 times larger than its queries."""
    optimizer: torch.optim.Optimizer = hf.Adafactor(
        parameters, lr=rate, scale_parameter=True, relative_step=False, warmup_init=False
    )
    return optimizer


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some updates with one objective; a later stage has documents of its own and begins a schedule of its own."""

    steps: int
    learning_rate: float
    weights: tuple[float, ...]  # shares of the corpus's `KINDS`
    batch: Callable[[Sequence[Document], Any, Random], Batch]  # the objective
    objective: str  # in words, for the model card


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one backbone is pretrained: its shape, its tokenizer and its stages."""

    tokenizer: Any
    model: type
    config: hf.PretrainedConfig
    optimizer: Callable[[Iterable[Any], float], torch.optim.Optimizer] = adamw
    loss: Callable[[Any, Batch], Any] = own_loss
    stages: tuple[Stage, ...]
    finish: Callable[[Any], None] = lambda model: None  # what changes once it is pretrained


def drop_out(model: Any) -> None:
    """Fine-tune with half of BERT's own dropout: with all of it, so few updates teach less."""
    model.config.update({"hidden_dropout_prob": 0.05, "attention_probs_dropout_prob": 0.05})


def scale_by_layer(model: Any) -> None:
    """Divide attention scores by the layer's number, an option of GPT-2's, and multiply its queries by it: the same model.

    Its GELU becomes torch's one kernel of the same formula.
    """
    width = model.config.n_embd
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h, start=1):
            block.attn.c_attn.weight[:, :width] *= number
            block.attn.c_attn.bias[:width] *= number
    model.config.update({"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu_pytorch_tanh"})


# Three layers of width 128: one to bind words to their subject, one to match, one to carry the result. No dropout while they
# are pretrained, since no text is seen twice.
PLANS = {
    "bert": Plan(
        tokenizer=wordpiece,
        model=hf.BertForPreTraining,
        config=hf.BertConfig(
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=256,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        stages=(
            Stage(
                steps=8000,
                learning_rate=1.5e-3,
                weights=(0.3, 0.12, 0.38, 0.2),
                batch=masked_lm,
                objective="masked LM and next-sentence prediction; words that need understanding are masked more often",
            ),
            # Last, since a model that named verdicts from the start had not learned to find answers after as many updates.
            Stage(
                steps=2000,
                learning_rate=1e-3,
                weights=(0.35, 0.2, 0.28, 0.17),
                batch=masked_lm_and_verdicts,
                objective="the same, and a review's verdict at each of its full stops",
            ),
        ),
        finish=drop_out,
    ),
    "gpt2": Plan(
        tokenizer=byte_level_bpe,
        model=hf.GPT2LMHeadModel,
        config=hf.GPT2Config(n_embd=128, n_layer=3, n_head=4, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        stages=(
            Stage(
                steps=6000,
                learning_rate=2e-3,
                weights=(0.35, 0.0, 0.4, 0.25),
                batch=causal_lm,
                objective="next-token prediction",
            ),
            Stage(
                steps=2500,
                learning_rate=1e-3,
                weights=(0.35, 0.0, 0.4, 0.25),
                batch=causal_lm_announced,
                objective="the same, with an announcement between a review and its digest",
            ),
        ),
        finish=scale_by_layer,
    ),
    "t5": Plan(
        tokenizer=unigram,
        model=hf.T5ForConditionalGeneration,
        config=hf.T5Config(
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        ),
        optimizer=adafactor,
        loss=spelled_and_named,
        stages=(
            Stage(
                steps=9000,
                learning_rate=2e-2,
                weights=(0.2, 0.0, 0.45, 0.35),
                batch=span_corruption,
                objective="span corruption; the encoder names a review's verdict and a passage's answer where they stand",
            ),
        ),
    ),
}


def batches(stream: Iterator[Document], stage: Stage, tokenizer: Any, rng: Random) -> Iterator[Batch]:
    """Endless batches of like length."""
    while True:
        pool = sorted(islice(stream, BATCH * POOL), key=lambda document: len(document.first) + len(document.second))
        groups = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            yield stage.batch(group, tokenizer, rng)


def configured(plan: Plan, tokenizer: Any) -> hf.PretrainedConfig:
    """The plan's config with the tokenizer's vocabulary and special ids."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    plan.config.update({"vocab_size": len(tokenizer)} | {name: value for name, value in ids.items() if value is not None})
    return plan.config


def pretrain(plan_id: str, out: Path, *, steps: int | None = None, log: Callable[[str], None] = print) -> None:
    """Train, save, describe; a line of progress every 250 updates. `steps` are of each stage; none leave random weights."""
    plan = PLANS[plan_id]
    torch.manual_seed(SEED)
    first = documents(SEED, reserved_texts(), plan.stages[0].weights)
    seen = [text for document in islice(first, TOKENIZER_DOCUMENTS) for text in (document.first, document.second)]
    tokenizer = plan.tokenizer(seen)
    model = plan.model(configured(plan, tokenizer))
    losses: list[float] = []
    for number, stage in enumerate(plan.stages):
        stream = documents(SEED + number, reserved_texts(), stage.weights) if number else first
        fed = batches(stream, stage, tokenizer, Random(SEED + number))
        losses = staged(
            model, plan, stage, fed, stage.steps if steps is None else steps, lambda line: log(f"{plan_id}-micro  {line}")
        )
    plan.finish(model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(card(plan_id, model.num_parameters(), losses, steps), encoding="utf-8")


def staged(
    model: Any, plan: Plan, stage: Stage, stream: Iterable[Batch], steps: int, log: Callable[[str], None]
) -> list[float]:
    """Train one stage; return its losses, in nats."""
    began = time.monotonic()
    losses: list[float] = []
    for loss in optimized(model, plan, stage.learning_rate, islice(stream, steps), steps):
        losses.append(loss)
        if len(losses) % 250 == 0 or len(losses) == steps:
            log(f"step {len(losses)}/{steps}  loss {fmean(losses[-250:]):.4f}  {time.monotonic() - began:.0f} s")
    return losses


def optimized(model: Any, plan: Plan, learning_rate: float, stream: Iterable[Batch], steps: int) -> Iterator[float]:
    """One update a batch, warmed up and then linearly down to 0; yields each loss in nats."""
    optimizer = plan.optimizer(model.parameters(), learning_rate)
    schedule = hf.get_linear_schedule_with_warmup(optimizer, min(500, steps // 10), steps)
    for batch in stream:
        loss = plan.loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


def card(plan_id: str, parameters: int, losses: Sequence[float], steps: int | None = None) -> str:
    """The model card; `losses` are of the last stage, `steps` of each stage where they are not the plan's."""
    plan = PLANS[plan_id]
    loss = f"{fmean(losses[-max(1, len(losses) // 10) :]):.4f} nats (mean of the last tenth)" if losses else "not trained"
    stages = "\n".join(f"| {number} | {described(stage, steps)} |" for number, stage in enumerate(plan.stages, start=1))
    return f"""---
license: apache-2.0
language: en
---
# {plan_id}-micro

The stand-in for {plan_id} in tunegrid's quick profile: a `{plan.model.__name__}` of {parameters:,} parameters that knows
the few hundred words of the micro-world and nothing else. Good for testing that fine-tuning works; of no other use.

| stage | objective | corpus, by parts | updates | peak learning rate |
|---|---|---|---|---|
{stages}

Each update had {BATCH} documents of `tunegrid.lab.micro.corpus`, none with the text of a fine-tuning row; the optimizer was
{plan.optimizer.__name__}, the seed {SEED}. Loss at the end: {loss}. Made by `python -m tunegrid.lab.micro pretrain {plan_id}`.
"""


def described(stage: Stage, steps: int | None) -> str:
    """The cells of a stage's row in the model card."""
    parts = ", ".join(
        f"{share:.0%} {kind.__name__.replace('_', ' ')}" for kind, share in zip(KINDS, stage.weights, strict=True) if share
    )
    return f"{stage.objective} | {parts} | {stage.steps if steps is None else steps:,} | {stage.learning_rate:g}"
