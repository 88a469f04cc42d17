"""Plants that break what must be equal: rows of `test_equivalent.py`. Bugs of libraries break the others."""

from contextlib import nullcontext

import accelerate
import transformers as hf
from peft.tuners.lora import layer as lora
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils import checkpoint as activations
from transformers import modeling_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from benchmarks.proof.plants.plant import Plant, around
from tunegrid.run import train


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


@around(hf.TrainingArguments, "get_warmup_steps")
def warmup_is_shorter(plant, steps, self, *args):
    return steps(self, *args) - 1


def option_is_lost(name, value):
    @around(hf.TrainingArguments, "__init__")
    def without(plant, init, self, **options):
        init(self, **options | {name: value})

    return without


@around(activations, "_checkpoint_without_reentrant_generator")
def activations_drop_anew(plant, generate, fn, preserve_rng_state=True, *args, **options):
    return generate(fn, False, *args, **options)


def random_numbers_are_not_kept(plant):
    plant.setattr(train, "set_random_states", lambda device, states: None)


def autocast_does_nothing(plant):
    plant.setattr(accelerate.Accelerator, "autocast", lambda self, *args, **options: nullcontext())


def ranks_take_the_mean(plant):
    plant.setattr(DistributedDataParallel, "register_comm_hook", lambda self, state, hook: None)


def shards_take_the_mean(plant):
    plant.setattr(FSDPModule, "set_gradient_divide_factor", lambda self, factor: None)
    plant.setattr(FSDPModule, "set_force_sum_reduction_for_comms", lambda self, forced: None)


def sdpa_computes_in_bf16(plant):
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def rounded(module, *tensors, **options):
        return attend(module, *(tensor.bfloat16().to(tensor.dtype) for tensor in tensors[:3]), *tensors[3:], **options)

    plant.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", rounded)


def positions_are_lost(plant):
    for kind in (GPT2Model, BertModel):
        forward = kind.forward

        def lost(self, *args, position_ids=None, forward=forward, **options):
            return forward(self, *args, **options)

        plant.setattr(kind, "forward", lost)


@around(modeling_utils, "safe_save_file")
def files_hold_halves(plant, save, tensors, *args, **options):
    save({key: t.bfloat16().to(t.dtype) if t.is_floating_point() else t for key, t in tensors.items()}, *args, **options)


@around(lora.Linear, "get_delta_weight")
def too_much_is_merged(plant, delta, self, adapter):
    return 1.01 * delta(self, adapter)


# fmt: off
EQUAL = (
    Plant("E02", "activations are computed again with other random numbers: `preserve_rng_state` is lost", "classic",
          "gpt2_sum_lora", activations_drop_anew, "gradient-checkpointing"),
    Plant("E03", "the same, in T5", "classic", "t5_sum_lora", activations_drop_anew, "gradient-checkpointing-of-t5"),
    Plant("E06", "the positions that a caller gives are lost on their way: padding in front counts", "classic", "gpt2_sum_sft",
          positions_are_lost, "padded-in-front"),
    Plant("E12", "the fused kernel takes halves, and its inputs are cast to them", "classic", "bert_qa_sft",
          sdpa_computes_in_bf16, "eager-attention"),
    Plant("E15", "whatever precision is asked for, everything is computed in fp32", "classic", "t5_sum_sft",
          autocast_does_nothing, "bf16-autocast"),
    Plant("E17", "DDP takes the mean of the ranks' gradients, each divided by all ranks' targets", "DDP's default",
          "t5_sum_sft", ranks_take_the_mean, "three-ranks-of-which-one-idles", ranks=3),
    Plant("E18", "FSDP2 takes the mean of the ranks' gradients", "FSDP2's default", "gpt2_sum_lora", shards_take_the_mean,
          "shared-out", ranks=2),
    Plant("E20", "a resumed training drops as a fresh one does", "classic", "gpt2_sum_lora", random_numbers_are_not_kept,
          "resumed"),
    Plant("E33", "weights are rounded to bf16 on their way into a file", "classic", "t5_sum_sft", files_hold_halves, "saved"),
    Plant("E39", "what is merged is one percent too much of the adapter", "classic", "gpt2_sa_lora", too_much_is_merged,
          "merged"),
    Plant("E46", "Trainer's gradients are a thousandth too large", "classic", "bert_sa_sft", gradients_are_off, "trainer"),
    Plant("E47", "Trainer averages losses that are divided by all targets already",
          "B50: huggingface/transformers#34191, #35438", "bert_qa_lora", scaled_losses_are_averaged, "trainer-accumulates"),
    Plant("P14", "the warm-up is an update too short", "classic", "bert_qa_sft", warmup_is_shorter, "trainer-with-options"),
    *(Plant(id, f"{name} is {value}, whatever is asked for", "classic", "bert_qa_sft", option_is_lost(name, value),
            "trainer-with-options")
      for id, name, value in (("E25", "weight_decay", 0.0), ("E26", "lr_scheduler_type", "linear"))),
)
# fmt: on
