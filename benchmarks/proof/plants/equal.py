"""Plants that break equalities of `test_equivalent.py`; bugs in `patches` break the rest."""

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

from benchmarks.proof.plants.plant import Table, around
from tunegrid.run import train

EQUAL = Table()
plant = EQUAL.plant


@plant("E03", "the same, in T5", "classic", "t5_sum_lora", "gradient-checkpointing-of-t5")
@plant(
    "E02",
    "activations are computed again with other random numbers: `preserve_rng_state` is lost",
    "classic",
    "gpt2_sum_lora",
    "gradient-checkpointing",
)
@around(activations, "_checkpoint_without_reentrant_generator")
def activations_drop_anew(planting, generate, fn, preserve_rng_state=True, *args, **options):
    return generate(fn, False, *args, **options)


@plant(
    "E06",
    "the positions that a caller gives are lost on their way: padding in front counts",
    "classic",
    "gpt2_sum_sft",
    "padded-in-front",
)
def positions_are_lost(planting):
    for kind in (GPT2Model, BertModel):
        forward = kind.forward

        def lost(self, *args, position_ids=None, forward=forward, **options):
            return forward(self, *args, **options)

        planting.setattr(kind, "forward", lost)


@plant(
    "E12",
    "the fused kernel takes halves, and its inputs are cast to them",
    "classic",
    "bert_qa_sft",
    "eager-attention",
)
def sdpa_computes_in_bf16(planting):
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def rounded(module, *tensors, **options):
        inputs = [tensor.bfloat16().to(tensor.dtype) for tensor in tensors[:3]]
        return attend(module, *inputs, *tensors[3:], **options)

    planting.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", rounded)


@plant(
    "E15",
    "whatever precision is asked for, everything is computed in fp32",
    "classic",
    "t5_sum_sft",
    "bf16-autocast",
)
def autocast_does_nothing(planting):
    def no_autocast(self, *args, **options):
        return nullcontext()

    planting.setattr(accelerate.Accelerator, "autocast", no_autocast)


@plant(
    "E17",
    "DDP takes the mean of the ranks' gradients, each divided by all ranks' targets",
    "DDP's default",
    "t5_sum_sft",
    "three-ranks-of-which-one-idles",
    ranks=3,
)
def ranks_take_the_mean(planting):
    def no_hook(self, state, hook):
        return None

    planting.setattr(DistributedDataParallel, "register_comm_hook", no_hook)


@plant(
    "E18",
    "FSDP2 takes the mean of the ranks' gradients",
    "FSDP2's default",
    "gpt2_sum_lora",
    "shared-out",
    ranks=2,
)
def shards_take_the_mean(planting):
    for name in ("set_gradient_divide_factor", "set_force_sum_reduction_for_comms"):
        planting.setattr(FSDPModule, name, lambda self, value: None)


@plant(
    "E20",
    "a resumed training drops as a fresh one does",
    "classic",
    "gpt2_sum_lora",
    "resumed",
)
def random_numbers_are_not_kept(planting):
    planting.setattr(train, "set_random_states", lambda device, states: None)


@plant(
    "E33",
    "weights are rounded to bf16 on their way into a file",
    "classic",
    "t5_sum_sft",
    "saved",
)
@around(modeling_utils, "safe_save_file")
def files_hold_halves(planting, save, tensors, *args, **options):
    halves = {}
    for name, tensor in tensors.items():
        is_float = tensor.is_floating_point()
        halves[name] = tensor.bfloat16().to(tensor.dtype) if is_float else tensor
    save(halves, *args, **options)


@plant(
    "E39",
    "what is merged is one percent too much of the adapter",
    "classic",
    "gpt2_sa_lora",
    "merged",
)
@around(lora.Linear, "get_delta_weight")
def too_much_is_merged(planting, delta, self, adapter):
    return 1.01 * delta(self, adapter)


@plant("E46", "Trainer's gradients are a thousandth too large", "classic", "bert_sa_sft", "trainer")
@around(hf.Trainer, "training_step")
def gradients_are_off(planting, step, self, model, *args, **options):
    loss = step(self, model, *args, **options)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(1.001)
    return loss


@plant(
    "E47",
    "Trainer averages losses that are divided by all targets already",
    "B50: huggingface/transformers#34191, #35438",
    "bert_qa_lora",
    "trainer-accumulates",
)
@around(hf.Trainer, "training_step")
def scaled_losses_are_averaged(planting, step, self, *args, **options):
    self.loss_is_scaled_for_ga = False
    return step(self, *args, **options)


@plant(
    "P14",
    "the warm-up is an update too short",
    "classic",
    "bert_qa_sft",
    "trainer-with-options",
)
@around(hf.TrainingArguments, "get_warmup_steps")
def warmup_is_shorter(planting, steps, self, *args):
    return steps(self, *args) - 1


def option_is_lost(name, value):
    """Creates a plant that overrides the field `name` of TrainingArguments with `value`."""

    @around(hf.TrainingArguments, "__init__")
    def without(planting, init, self, **options):
        init(self, **options | {name: value})

    return without


plant(
    "E25",
    "weight_decay is 0.0, whatever is asked for",
    "classic",
    "bert_qa_sft",
    "trainer-with-options",
)(option_is_lost("weight_decay", 0.0))
plant(
    "E26",
    "lr_scheduler_type is linear, whatever is asked for",
    "classic",
    "bert_qa_sft",
    "trainer-with-options",
)(option_is_lost("lr_scheduler_type", "linear"))
