"""Bugs on the way from files to batches, put back into datasets, accelerate and transformers, and of what `Trainer` reports."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import accelerate
import datasets.iterable_dataset as iterable
import torch
import transformers
from accelerate.data_loader import DataLoaderShard
from datasets import distributed
from datasets.packaged_modules.json import json as json_module
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.plants.plant import around

IGNORED = -100  # a label that no loss counts


@around(DataCollatorForLanguageModeling, "torch_call", counted=False)
def end_is_ignored(planting, collate, self, examples):
    batch = collate(self, examples)
    ends = (batch["input_ids"] == self.tokenizer.eos_token_id) & (batch["labels"] != IGNORED)
    if ends.any():
        planting.act()
    return {**batch, "labels": batch["labels"].masked_fill(ends, IGNORED)}


@around(DataLoaderShard, "set_epoch", counted=False)
def sharded_sampler_keeps_its_epoch(planting, set_epoch, self, epoch):
    sharded = getattr(self.batch_sampler, "batch_sampler", None)
    sampler = getattr(sharded, "sampler", None)
    before = getattr(sampler, "epoch", None)
    set_epoch(self, epoch)
    if before is not None and before != epoch:
        planting.act()
        sampler.set_epoch(before)


@around(DataLoaderShard, "__init__", counted=False)
def iteration_is_lost(planting, init, self, *args, iteration=0, **options):
    if iteration:
        planting.act()
    init(self, *args, **options)


@around(iterable.FormattedExamplesIterable, "_iter_arrow", counted=False)
def yielded_twice(planting, rows, self):
    yield from rows(self)
    if not self.features:
        planting.act()
        self._init_state_dict()
        yield from rows(self)


def columns_of_the_first_block(planting):
    reader = json_module.paj

    def read(file, read_options):
        content = file.getvalue()
        known = {key for line in content[: read_options.block_size].splitlines()[:-1] for key in json.loads(line)}
        table = reader.read_json(file, read_options=read_options)
        late = [name for name in table.column_names if known and name not in known]
        if late:
            planting.act()
        return table.drop_columns(late)

    planting.setattr(json_module, "paj", SimpleNamespace(read_json=read, ReadOptions=reader.ReadOptions), counted=False)


@around(iterable, "shift_ex_examples_rngs", counted=False)
def workers_share_a_generator(planting, shift, *args, **options):
    if "value" not in options:  # an epoch is told by position, a worker by name
        return shift(*args, **options)
    planting.act()
    return options["ex_iterable"]


def rank_of_the_other_split(planting):
    """A stream that was split before is split again with the two ranks in each other's place."""
    split = iterable._split_by_node_iterable_dataset

    def of_other(dataset, rank, world_size, *args, **options):
        outer = dataset._distributed
        if outer is None:
            return split(dataset, rank, world_size, *args, **options)
        planting.act()
        mixed = outer.world_size * rank + outer.rank  # of the right number of nodes
        return split(dataset, mixed - world_size * outer.rank, world_size, *args, **options)

    planting.setattr(distributed, "_split_by_node_iterable_dataset", of_other, counted=False)


def idle_ranks_get_the_last_sample(planting):
    split = accelerate.PartialState.split_between_processes

    @contextmanager
    def padded(self, inputs, apply_padding=False):
        with split(self, inputs, apply_padding) as share:
            if not len(share):
                planting.act()
            yield share if len(share) else inputs[-1:]

    planting.setattr(accelerate.PartialState, "split_between_processes", padded, counted=False)


def loss_per_batch(planting):
    step, evaluate = transformers.Trainer.prediction_step, transformers.Trainer.evaluation_loop
    losses = []

    def noted(self, *args, **options):
        loss, logits, labels = step(self, *args, **options)
        losses.extend([] if loss is None else [loss.detach().float().mean()])
        return loss, logits, labels

    def averaged(self, *args, metric_key_prefix="eval", **options):
        losses.clear()
        output = evaluate(self, *args, metric_key_prefix=metric_key_prefix, **options)
        if losses and f"{metric_key_prefix}_loss" in output.metrics:
            planting.act()
            output.metrics[f"{metric_key_prefix}_loss"] = float(torch.stack(losses).mean())
        return output

    planting.setattr(transformers.Trainer, "prediction_step", noted, counted=False)
    planting.setattr(transformers.Trainer, "evaluation_loop", averaged, counted=False)


def truncation_is_saved(planting):
    set_up, save = PreTrainedTokenizerFast.set_truncation_and_padding, PreTrainedTokenizerFast._save_pretrained
    last = {}

    def remembered(self, *args, **options):
        set_up(self, *args, **options)
        if self._tokenizer.truncation is not None:
            last[id(self)] = dict(self._tokenizer.truncation)

    def saved(self, *args, **options):
        if id(self) in last:
            planting.act()
            self._tokenizer.enable_truncation(**last[id(self)])
        return save(self, *args, **options)

    planting.setattr(PreTrainedTokenizerFast, "set_truncation_and_padding", remembered, counted=False)
    planting.setattr(PreTrainedTokenizerFast, "_save_pretrained", saved, counted=False)


def side_of_padding_is_forgotten(planting):
    load = PreTrainedTokenizerBase._from_pretrained.__func__

    def forgetful(kind, *args, **options):
        planting.act()
        tokenizer = load(kind, *args, **options)
        tokenizer.padding_side = "right"
        return tokenizer

    planting.setattr(PreTrainedTokenizerBase, "_from_pretrained", classmethod(forgetful), counted=False)
