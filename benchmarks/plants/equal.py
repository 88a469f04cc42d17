"""Plants that break what must be equal: for each row of `benchmarks/test_equivalent.py` one that it must object to."""

from contextlib import nullcontext
from dataclasses import replace

import accelerate
import bitsandbytes as bnb
import torch
import transformers as hf
from peft import PeftModel, peft_model
from peft.tuners import tuners_utils
from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.utils import other as peft_other
from peft.utils import save_and_load
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils import checkpoint as activations
from transformers import PreTrainedTokenizerBase, modeling_utils
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from benchmarks.plants.patches import models
from benchmarks.plants.patches.training import signed_second_moments
from benchmarks.plants.plant import Plant, around
from tunegrid.run import train
from tunegrid.run.train import Trainer

# Training


def micro_batches_by_their_own_targets(plant):
    plant.setattr(Trainer, "divisors", lambda self, batches: [self.codec.targets(batch) * len(batches) for batch in batches])


@around(hf.Trainer, "training_step")
def gradients_are_off(plant, step, self, model, *args, **options):
    loss = step(self, model, *args, **options)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(1.001)
    return loss


@around(hf.Trainer, "training_step")
def scaled_losses_are_averaged(plant, step, self, *args, **options):
    self.loss_is_scaled_for_ga = False
    return step(self, *args, **options)


@around(activations, "_checkpoint_without_reentrant_generator")
def activations_drop_anew(plant, generate, fn, preserve_rng_state=True, *args, **options):
    return generate(fn, False, *args, **options)


def moments_are_not_kept(plant):
    state_dict = train.Stepper.state_dict

    def zeroed(state):
        return {name: torch.zeros_like(value) if "exp_avg" in name else value for name, value in state.items()}

    def without(self):
        state = state_dict(self)
        return state | {"optimizer": {key: zeroed(own) for key, own in state["optimizer"].items()}}

    plant.setattr(train.Stepper, "state_dict", without)


def random_numbers_are_not_kept(plant):
    plant.setattr(train, "set_random_states", lambda device, states: None)


def weights_are_kept_in_bf16(plant):
    prepare = accelerate.Accelerator.prepare_optimizer

    def rounding(optimizer, *_):
        plant.act()
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            parameter.data = parameter.data.bfloat16().float()

    def prepared(self, optimizer, *args, **options):
        if self.mixed_precision == "bf16":
            optimizer.register_step_post_hook(rounding)
        return prepare(self, optimizer, *args, **options)

    plant.setattr(accelerate.Accelerator, "prepare_optimizer", prepared, counted=False)


def autocast_does_nothing(plant):
    plant.setattr(accelerate.Accelerator, "autocast", lambda self, *args, **options: nullcontext())


def ranks_take_the_mean(plant):
    plant.setattr(DistributedDataParallel, "register_comm_hook", lambda self, state, hook: None)


def shards_take_the_mean(plant):
    plant.setattr(FSDPModule, "set_gradient_divide_factor", lambda self, factor: None)
    plant.setattr(FSDPModule, "set_force_sum_reduction_for_comms", lambda self, forced: None)


def option_is_lost(name, value):
    @around(train.Stepper, "__init__")
    def without(plant, init, self, cell, *args, **options):
        init(self, replace(cell, recipe=replace(cell.recipe, **{name: value})), *args, **options)

    return without


# Attention, padding and searches


def _attention(plant, change):
    """Change what SDPA is given, if the change has something to do: of (query, key, value, mask) the same or None."""
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def changed(module, query, key, value, mask=None, *args, **options):
        mask = options.pop("attention_mask", mask)
        tensors = change(query, key, value, mask)
        if tensors:
            plant.act()
        return attend(module, *(tensors or (query, key, value, mask)), *args, **options)

    plant.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", changed, counted=False)


def first_mask_for_all(plant):
    _attention(plant, lambda q, k, v, mask: None if mask is None else (q, k, v, mask[:1].expand_as(mask)))


def sdpa_computes_in_bf16(plant):
    _attention(plant, lambda q, k, v, mask: (*(tensor.bfloat16().to(tensor.dtype) for tensor in (q, k, v)), mask))


def mask_is_lost(plant):
    def without(q, k, v, mask):
        if mask is None or not (mask.dtype == torch.bool or q.shape[-2] == k.shape[-2]):
            return None
        return q, k, v, torch.ones_like(mask) if mask.dtype == torch.bool else mask.clamp(min=-1e4)

    _attention(plant, without)


def positions_are_lost(plant):
    for kind in (GPT2Model, BertModel):
        forward = kind.forward

        def lost(self, *args, position_ids=None, forward=forward, **options):
            return forward(self, *args, **options)

        plant.setattr(kind, "forward", lost)


@around(DynamicLayer, "reorder_cache")
def beams_follow_the_first_row(plant, reorder, self, beams):
    return reorder(self, beams.clamp(max=1))


# Packed weights


@around(bnb.functional, "quantize_4bit", counted=False)
def last_block_takes_the_scale_before(plant, quantize, weight, *args, blocksize=64, **options):
    rest = weight.numel() % blocksize
    if rest:
        plant.act()
        flat = weight.clone().flatten()
        flat[-1] = flat[-rest - blocksize : -rest].abs().max() * flat[-1].sign()
        weight = flat.reshape(weight.shape)
    return quantize(weight, *args, blocksize=blocksize, **options)


# Saving


def heads_are_not_saved(plant):
    def untrained(self, adapter, states):
        return self.original_module.state_dict() if adapter in self._adapters else {}

    plant.setattr(peft_other.ModulesToSaveWrapper, "adapter_state_dict", untrained)


@around(peft_model, "get_peft_model_state_dict")
def token_rows_are_not_saved(plant, collect, *args, **options):
    states = collect(*args, **options)
    return {name: torch.zeros_like(t) if "trainable_tokens" in name else t for name, t in states.items()}


@around(modeling_utils, "safe_save_file")
def files_hold_halves(plant, save, tensors, *args, **options):
    save({key: t.bfloat16().to(t.dtype) if t.is_floating_point() else t for key, t in tensors.items()}, *args, **options)


def tokenizer_forgets_its_sides(plant):
    load = PreTrainedTokenizerBase._from_pretrained.__func__

    def forgetful(kind, *args, **options):
        plant.act()
        tokenizer = load(kind, *args, **options)
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return tokenizer

    plant.setattr(PreTrainedTokenizerBase, "_from_pretrained", classmethod(forgetful), counted=False)


def files_hold_every_adapter(plant):
    plant.setattr(save_and_load, "_filter_state_dict_for_adapter_name", lambda states, unwanted: states)


# Merging, switching and combining


def adapters_stay_on(plant):
    plant.setattr(tuners_utils.BaseTuner, "disable_adapter_layers", lambda self: None)


@around(tuners_utils.BaseTunerLayer, "set_adapter")
def adapters_stay_active(plant, switch, self, names, **options):
    switch(self, [*dict.fromkeys([*self.active_adapters, *([names] if isinstance(names, str) else names)])], **options)


def too_much_is_merged(plant):
    merge = tuners_utils.BaseTuner.merge_adapter

    @torch.no_grad()
    def more(self, *args, **options):
        own = [p for name, p in self.model.named_parameters() if self.prefix in name and p.requires_grad]
        for parameter in own:
            parameter.mul_(1.01)
        merge(self, *args, **options)
        for parameter in own:
            parameter.div_(1.01)

    plant.setattr(tuners_utils.BaseTuner, "merge_adapter", more)


def unmerging_takes_off_half(plant):
    delta, merge = lora.Linear.get_delta_weight, lora.Linear.merge

    def doubled(self, *args, **options):
        lora.Linear.get_delta_weight = lambda layer, adapter: 2 * delta(layer, adapter)
        try:
            merge(self, *args, **options)
        finally:
            lora.Linear.get_delta_weight = delta

    plant.setattr(lora.Linear, "merge", doubled)


@around(lora.Linear, "merge")
def only_the_first_named_is_merged(plant, merge, self, safe_merge=False, adapter_names=None):
    merge(self, safe_merge, adapter_names and adapter_names[:1])


@around(PeftModel, "_enable_peft_forward_hooks")
def names_in_a_batch_are_lost(plant, hooks, self, *args, adapter_names=None, **options):
    return hooks(self, *args, **options)


@around(lora_model.LoraModel, "add_weighted_adapter")
def weights_are_lost(plant, combine, self, adapters, weights, *args, **options):
    combine(self, adapters, [1.0] * len(weights), *args, **options)


# The table


def lost(id, cell, name, value):
    """An option of the recipe does not reach what makes the steps, which go by another value."""
    what = f"{name} is {value}, whatever the recipe says"
    return Plant(id, what, "classic", cell, option_is_lost(name, value), f"option-{name}")


# fmt: off
EQUAL = (
    Plant("E01", "an update is the mean of its micro-batches' means", "huggingface/transformers#34191", "gpt2_sum_lora",
          micro_batches_by_their_own_targets, "accumulation"),
    Plant("E02", "activations are computed again with other random numbers: `preserve_rng_state` is lost", "classic",
          "gpt2_sum_lora", activations_drop_anew, "gradient-checkpointing"),
    Plant("E03", "the same, in T5", "classic", "t5_sum_lora", activations_drop_anew, "gradient-checkpointing-of-t5"),
    Plant("E04", "attention that is not causal gets no mask: padding is attended to", "classic", "bert_sa_sft",
          mask_is_lost, "padded-encoder"),
    Plant("E05", "the classifier reads column -1, as without a padding token", "classic", "gpt2_sa_sft",
          models.last_column_is_classified, "padded-classifier"),
    Plant("E06", "the positions that a caller gives are lost on their way: padding in front counts", "classic", "gpt2_sum_sft",
          positions_are_lost, "padded-in-front"),
    Plant("E07", "the mask of a batch's first row is broadcast to all rows", "classic", "t5_sum_sft",
          first_mask_for_all, "padded-in-front"),
    Plant("E08", "the mask of a batch's first row is broadcast to all rows", "classic", "t5_sum_sft",
          first_mask_for_all, "another-order"),
    Plant("E09", "positions that start anew no longer part a packed sequence", "huggingface/transformers#46634, #39121",
          "gpt2_sum_sft", models.packed_rows_see_each_other, "packed"),
    Plant("E10", "a layer's cache writes the values of a new token over those of the token before", "classic", "gpt2_sum_sft",
          models.tokens_overwrite_the_last, "cache"),
    Plant("E11", "the caches of a batch's beams all follow the beams of its first row", "classic", "t5_sum_sft",
          beams_follow_the_first_row, "beams-of-a-batch"),
    Plant("E12", "the fused kernel takes halves, and its inputs are cast to them", "classic", "bert_qa_sft",
          sdpa_computes_in_bf16, "eager-attention"),
    Plant("E13", "a fused kernel gives no gradient to an additive mask: a learned bias in it never trains", "classic",
          "t5_sum_sft", models.bias_without_gradient, "eager-attention"),
    Plant("E14", "master weights are rounded to bf16 after each step: small updates are lost", "classic", "t5_sum_sft",
          weights_are_kept_in_bf16, "bf16-autocast"),
    Plant("E15", "whatever precision is asked for, everything is computed in fp32", "classic", "t5_sum_sft",
          autocast_does_nothing, "bf16-autocast"),
    Plant("E16", "DDP takes the mean of the ranks' gradients, each divided by all ranks' targets", "DDP's default",
          "gpt2_sum_lora", ranks_take_the_mean, "two-ranks", ranks=2),
    Plant("E17", "the same, of three ranks", "DDP's default", "t5_sum_sft", ranks_take_the_mean,
          "three-ranks-of-which-one-idles", ranks=3),
    Plant("E18", "FSDP2 takes the mean of the ranks' gradients", "FSDP2's default", "gpt2_sum_lora", shards_take_the_mean,
          "shared-out", ranks=2),
    Plant("E19", "a resumed training starts with moments of 0", "classic", "gpt2_sum_lora", moments_are_not_kept, "resumed"),
    Plant("E20", "a resumed training drops as a fresh one does", "classic", "gpt2_sum_lora", random_numbers_are_not_kept,
          "resumed-dropout"),
    Plant("E21", "what is left behind whole blocks is divided by the scale of the block before", "classic", "bert_sa_qlora",
          last_block_takes_the_scale_before, "nf4"),
    Plant("E22", "8-bit Adam keeps second moments in the map for signed numbers: half of its levels are lost", "classic",
          "bert_qa_qlora", signed_second_moments, "moments-of-8-bits"),
    lost("E23", "bert_qa_lora", "learning_rate", 2e-3),
    lost("E24", "bert_qa_sft", "head_learning_rate", None),
    lost("E25", "bert_qa_sft", "weight_decay", 0.01),
    lost("E26", "gpt2_sum_lora", "lr_scheduler_type", "linear"),
    lost("E27", "gpt2_sum_lora", "warmup_steps", 0),
    lost("E28", "gpt2_sum_lora", "warmup_ratio", 0.0),
    lost("E29", "t5_sum_sft", "max_grad_norm", 1.0),
    lost("E30", "bert_qa_lora", "optim", "adamw_torch"),
    Plant("E31", "the file of an adapter has the heads beside it as they were before training", "classic", "gpt2_sa_lora",
          heads_are_not_saved, "saved-adapter"),
    Plant("E32", "the file of an adapter has the rows of new tokens as they were before training", "classic", "gpt2_sum_lora",
          token_rows_are_not_saved, "saved-token-rows"),
    Plant("E33", "weights are rounded to bf16 on their way into a file", "classic", "t5_sum_sft", files_hold_halves,
          "saved-whole"),
    Plant("E34", "a loaded tokenizer pads and cuts on the right, whatever its files say", "classic", "bert_sa_lora",
          tokenizer_forgets_its_sides, "saved-tokenizer"),
    Plant("E35", "the file of an adapter is not cleaned of the others", "huggingface/peft#3282", "gpt2_sa_lora",
          files_hold_every_adapter, "two-adapters-two-files"),
    Plant("E36", "the same, of one whose name begins like another's", "huggingface/peft#3282", "gpt2_sa_lora",
          files_hold_every_adapter, "two-adapters-of-like-names"),
    Plant("E37", "adapters that are switched off stay on", "classic", "gpt2_sa_lora", adapters_stay_on, "off"),
    Plant("E38", "an adapter that is switched to acts beside those before", "classic", "gpt2_sa_lora", adapters_stay_active,
          "switched"),
    Plant("E39", "what is merged is one percent too much of the adapter", "classic", "gpt2_sa_lora", too_much_is_merged,
          "merged"),
    Plant("E40", "unmerging takes off half of what merging added", "classic", "gpt2_sa_lora", unmerging_takes_off_half,
          "unmerged"),
    Plant("E41", "of several adapters that are to be merged, a layer takes the first", "classic", "gpt2_sa_lora",
          only_the_first_named_is_merged, "one-by-one"),
    Plant("E42", "the active adapter answers for all rows of a batch, whatever they name", "classic", "gpt2_sa_lora",
          names_in_a_batch_are_lost, "adapters-in-a-batch"),
    Plant("E43", "adapters are combined with weights of 1, whatever they were to have", "classic", "t5_sum_lora",
          weights_are_lost, "weighted-cat"),
    Plant("E44", "the same, by SVD", "classic", "t5_sum_lora", weights_are_lost, "weighted-svd"),
    Plant("E45", "the same, of A and of B apart", "classic", "t5_sum_lora", weights_are_lost, "weighted-linear"),
    Plant("E46", "Trainer's gradients are a thousandth too large", "classic", "bert_sa_sft", gradients_are_off, "trainer"),
    Plant("E47", "Trainer averages losses that are divided by all targets already", "huggingface/transformers#34191",
          "bert_qa_lora", scaled_losses_are_averaged, "trainer-accumulates"),
)
# fmt: on
