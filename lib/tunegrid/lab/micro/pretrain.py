"""Pretrains a micro backbone from scratch and saves its config, weights and tokenizer."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
import transformers as hf

from tunegrid.codecs.base import Batch
from tunegrid.lab.micro.corpus import Document, documents, reserved_texts
from tunegrid.lab.micro.objectives import (
    byte_level_bpe,
    causal_lm,
    masked_lm,
    own_loss,
    span_corruption,
    t5_loss,
    unigram,
    wordpiece,
)

SEED = 1234
BATCH_SIZE = 32
POOL = 16  # batches that are drawn together and sorted by length, to reduce padding
TOKENIZER_DOCUMENTS = 30_000


def adamw(parameters: Iterable[Any], rate: float) -> torch.optim.Optimizer:
    """AdamW, whose learning rate is an absolute step size."""
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)


def adafactor(parameters: Iterable[Any], rate: float) -> torch.optim.Optimizer:
    """Adafactor with updates scaled to each tensor's magnitude, as in T5's pretraining.

    A single absolute step size would not suit T5: in the micro model, embeddings are initialized
    about 60 times larger than query weights.
    """
    optimizer: torch.optim.Optimizer = hf.Adafactor(
        parameters,
        lr=rate,
        scale_parameter=True,
        relative_step=False,
        warmup_init=False,
    )
    return optimizer


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of pretraining with its own objective, documents and schedule."""

    steps: int
    learning_rate: float
    weights: tuple[float, ...]  # shares of the corpus's `DOCUMENT_KINDS`
    batch: Callable[[Sequence[Document], Any, Random], Batch]  # the objective


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The recipe for one backbone: its shape, tokenizer and stages."""

    tokenizer: Any
    model: type
    config: hf.PretrainedConfig
    optimizer: Callable[[Iterable[Any], float], torch.optim.Optimizer] = adamw
    loss: Callable[[Any, Batch], Any] = own_loss
    stages: tuple[Stage, ...]
    finish: Callable[[Any], None] = lambda model: None  # changes made after pretraining


def drop_out(model: Any) -> None:
    """For fine-tuning, set half of BERT's usual dropout, since full dropout slows learning."""
    model.config.update({"hidden_dropout_prob": 0.05, "attention_probs_dropout_prob": 0.05})


def scale_by_layer(model: Any) -> None:
    """Multiply queries by the layer's number; set GPT-2's option to divide scores by that number.

    The model's outputs do not change.
    """
    width = model.config.n_embd
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h, start=1):
            block.attn.c_attn.weight[:, :width] *= number
            block.attn.c_attn.bias[:width] *= number
    model.config.update({"scale_attn_by_inverse_layer_idx": True})


# Three layers of width 128: one to bind words to their subject, one to match, one to carry the
# result. There is no dropout in pretraining, since no text is seen twice.
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
            ),
            # Verdicts come last. A model that learned them from the start could not find answers
            # after the same number of updates.
            Stage(
                steps=2000,
                learning_rate=1e-3,
                weights=(0.35, 0.2, 0.28, 0.17),
                batch=partial(masked_lm, judged=True),
            ),
        ),
        finish=drop_out,
    ),
    "gpt2": Plan(
        tokenizer=byte_level_bpe,
        model=hf.GPT2LMHeadModel,
        config=hf.GPT2Config(
            n_embd=128,
            n_layer=3,
            n_head=4,
            n_positions=256,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
        stages=(
            Stage(
                steps=6000,
                learning_rate=2e-3,
                weights=(0.35, 0.0, 0.4, 0.25),
                batch=causal_lm,
            ),
            # If the digest followed a review immediately, the review's last token would predict the
            # verdict, and a new head could read it off without any adapter. So the digest is
            # announced.
            Stage(
                steps=2500,
                learning_rate=1e-3,
                weights=(0.35, 0.0, 0.4, 0.25),
                batch=partial(causal_lm, announced=True),
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
        loss=t5_loss,
        stages=(
            Stage(
                steps=9000,
                learning_rate=2e-2,
                weights=(0.2, 0.0, 0.45, 0.35),
                batch=span_corruption,
            ),
        ),
    ),
}


def pretrain(
    plan_id: str,
    out: Path,
    *,
    steps: int | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train and save a backbone, logging a line every 250 updates and after each stage.

    `steps` replaces the number of updates in each stage; 0 leaves random weights.
    """
    plan = PLANS[plan_id]
    torch.manual_seed(SEED)
    reserved = reserved_texts()
    stream = documents(SEED, reserved, plan.stages[0].weights)
    texts = []
    for document in islice(stream, TOKENIZER_DOCUMENTS):
        texts += [document.first, document.second]
    tokenizer = plan.tokenizer(texts)
    plan.config.vocab_size = len(tokenizer)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        token_id = getattr(tokenizer, name)
        if token_id is not None:
            setattr(plan.config, name, token_id)
    model = plan.model(plan.config)
    for number, stage in enumerate(plan.stages):
        if number:
            stream = documents(SEED + number, reserved, stage.weights)
        batches = batches_of_like_length(stream, stage, tokenizer, Random(SEED + number))
        count = stage.steps if steps is None else steps
        losses = []
        start = time.monotonic()
        for loss in train_steps(model, plan, stage.learning_rate, islice(batches, count), count):
            losses.append(loss)
            if len(losses) % 250 == 0 or len(losses) == count:
                progress = f"{plan_id}-micro  step {len(losses)}/{count}"
                seconds = time.monotonic() - start
                log(f"{progress}  loss {fmean(losses[-250:]):.4f}  {seconds:.0f} s")
    plan.finish(model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def batches_of_like_length(
    stream: Iterator[Document],
    stage: Stage,
    tokenizer: Any,
    rng: Random,
) -> Iterator[Batch]:
    """Yield batches of documents of similar length, endlessly."""
    while True:
        pool = sorted(
            islice(stream, BATCH_SIZE * POOL),
            key=lambda document: len(document.first) + len(document.second),
        )
        groups = [pool[start : start + BATCH_SIZE] for start in range(0, len(pool), BATCH_SIZE)]
        rng.shuffle(groups)
        for group in groups:
            yield stage.batch(group, tokenizer, rng)


def train_steps(
    model: Any,
    plan: Plan,
    learning_rate: float,
    batches: Iterable[Batch],
    steps: int,
) -> Iterator[float]:
    """Update once per batch, with warm-up and then linear decay to 0; yield each loss in nats."""
    optimizer = plan.optimizer(model.parameters(), learning_rate)
    schedule = hf.get_linear_schedule_with_warmup(optimizer, min(500, steps // 10), steps)
    for batch in batches:
        loss = plan.loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()
