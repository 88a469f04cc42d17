"""Pretrains one micro backbone from nothing and saves it: config, safetensors and tokenizer."""

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

from tunegrid.lab.micro.corpus import Document, documents, reserved_texts
from tunegrid.lab.micro.objectives import (
    Batch,
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
BATCH = 32
POOL = 16  # batches drawn together and sorted by length, so that little of a batch is padding
TOKENIZER_DOCUMENTS = 30_000


def adamw(parameters: Iterable[Any], rate: float) -> torch.optim.Optimizer:
    """Rate as an absolute step."""
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)


def adafactor(parameters: Iterable[Any], rate: float) -> torch.optim.Optimizer:
    """Rate as a share of each tensor's size, as T5 was pretrained: its embeddings start 60 times larger than its queries."""
    options = {"scale_parameter": True, "relative_step": False, "warmup_init": False}
    optimizer: torch.optim.Optimizer = hf.Adafactor(parameters, lr=rate, **options)
    return optimizer


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some updates with one objective; a later stage has documents of its own and begins a schedule of its own."""

    steps: int
    learning_rate: float
    weights: tuple[float, ...]  # shares of the corpus's `KINDS`
    batch: Callable[[Sequence[Document], Any, Random], Batch]  # the objective


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
    """Divide attention scores by the layer's number, an option of GPT-2's, and multiply its queries by it: the same model."""
    width = model.config.n_embd
    with torch.no_grad():
        for number, block in enumerate(model.transformer.h, start=1):
            block.attn.c_attn.weight[:, :width] *= number
            block.attn.c_attn.bias[:width] *= number
    model.config.update({"scale_attn_by_inverse_layer_idx": True})


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
            Stage(steps=8000, learning_rate=1.5e-3, weights=(0.3, 0.12, 0.38, 0.2), batch=masked_lm),
            # Verdicts last: a model that named them from the start had not learned to find answers after as many updates.
            Stage(steps=2000, learning_rate=1e-3, weights=(0.35, 0.2, 0.28, 0.17), batch=partial(masked_lm, judged=True)),
        ),
        finish=drop_out,
    ),
    "gpt2": Plan(
        tokenizer=byte_level_bpe,
        model=hf.GPT2LMHeadModel,
        config=hf.GPT2Config(n_embd=128, n_layer=3, n_head=4, n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        stages=(
            Stage(steps=6000, learning_rate=2e-3, weights=(0.35, 0.0, 0.4, 0.25), batch=causal_lm),
            # With the digest right behind a review, the review's last token holds the verdict ready, and a new head reads it
            # off without any adapter. So it is announced.
            Stage(steps=2500, learning_rate=1e-3, weights=(0.35, 0.0, 0.4, 0.25), batch=partial(causal_lm, announced=True)),
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
        stages=(Stage(steps=9000, learning_rate=2e-2, weights=(0.2, 0.0, 0.45, 0.35), batch=span_corruption),),
    ),
}


def pretrain(plan_id: str, out: Path, *, steps: int | None = None, log: Callable[[str], None] = print) -> None:
    """Train and save; a line of progress every 250 updates. `steps` are of each stage; none leave random weights."""
    plan = PLANS[plan_id]
    torch.manual_seed(SEED)
    first_stream = documents(SEED, reserved_texts(), plan.stages[0].weights)
    tokenizer = plan.tokenizer(
        [text for document in islice(first_stream, TOKENIZER_DOCUMENTS) for text in (document.first, document.second)]
    )
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    plan.config.update({"vocab_size": len(tokenizer)} | {name: value for name, value in ids.items() if value is not None})
    model = plan.model(plan.config)
    for number, stage in enumerate(plan.stages):
        stream = documents(SEED + number, reserved_texts(), stage.weights) if number else first_stream
        batches = batches_of_like_length(stream, stage, tokenizer, Random(SEED + number))
        count, losses, start = stage.steps if steps is None else steps, list[float](), time.monotonic()
        for loss in train_steps(model, plan, stage.learning_rate, islice(batches, count), count):
            losses.append(loss)
            if len(losses) % 250 == 0 or len(losses) == count:
                mean, seconds = fmean(losses[-250:]), time.monotonic() - start
                log(f"{plan_id}-micro  step {len(losses)}/{count}  loss {mean:.4f}  {seconds:.0f} s")
    plan.finish(model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def batches_of_like_length(stream: Iterator[Document], stage: Stage, tokenizer: Any, rng: Random) -> Iterator[Batch]:
    """Endless."""
    while True:
        pool = sorted(islice(stream, BATCH * POOL), key=lambda document: len(document.first) + len(document.second))
        groups = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            yield stage.batch(group, tokenizer, rng)


def train_steps(model: Any, plan: Plan, learning_rate: float, batches: Iterable[Batch], steps: int) -> Iterator[float]:
    """One update a batch, warmed up and then linearly down to 0; yields each loss in nats."""
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
