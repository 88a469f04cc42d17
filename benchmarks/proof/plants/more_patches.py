"""More library bugs: in generation, saved files, optimizers, dropout, adapters and memory.

They are added to the table `LIBRARIES` after the bugs in `patches`.
"""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import accelerate
import bitsandbytes as bnb
import torch
import transformers as hf
from bitsandbytes.optim.optimizer import Optimizer2State
from peft import PeftModel, peft_model
from peft.config import PeftConfigMixin
from peft.tuners.adalora import layer as adalora
from peft.tuners.ia3 import layer as ia3
from peft.tuners.lora import dora
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTuner
from peft.tuners.vera import layer as vera
from rouge_score import tokenize
from transformers import modeling_utils
from transformers.cache_utils import DynamicLayer
from transformers.generation import stopping_criteria
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.pytorch_utils import Conv1D

from benchmarks.proof.plants.patches import plant, rotations_turn_the_other_way
from benchmarks.proof.plants.plant import FEW, around


@plant(
    "L31",
    "8-bit AdamW does not decay weights",
    "transformers",
    "bert_qa_qlora",
    "optimizer_steps_as_defined",
)
@around(bnb.functional, "optimizer_update_8bit_blockwise")
def packed_moments_without_decay(planting, update, *args, **options):
    *before, _decay = args
    update(*before, 0.0, **options)


@plant(
    "L43",
    "generation does not stop at the end token",
    "transformers",
    ("bert_sum_sft", "gpt2_sum_lora"),
    "texts_are_the_models",
)
@around(stopping_criteria.EosTokenCriteria, "__call__")
def end_stops_nothing(planting, ends, self, *args, **options):
    """Makes searches run to the maximum length; tunegrid still cuts texts at the end token."""
    return torch.zeros_like(ends(self, *args, **options))


@plant(
    "R06",
    "only the best beam goes on",
    "classic",
    ("t5_sum_sft", "t5_sum_lora", "bert_sum_qlora"),
    "texts_are_the_models",
)
@around(hf.GenerationMixin, "_get_running_beams_for_next_iteration")
def one_beam_goes_on(planting, choose, self, *args, **options):
    sequences, scores, indices = choose(self, *args, **options)
    scores[:, 1:] = -1e9
    return sequences, scores, indices


@plant(
    "R06b",
    "the length penalty counts the prompt",
    "classic",
    ("gpt2_sum_lora", "t5_sum_qlora"),
    "cache_changes_nothing",
)
@around(hf.GenerationMixin, "_update_finished_beams")
def prompt_counts_as_text(planting, update, self, **options):
    return update(self, **options | {"decoder_prompt_len": 0})


@plant(
    "R06c",
    "a search stops when it has a text for each beam",
    "classic",
    ("bert_sum_lora", "gpt2_sum_sft", "t5_sum_sft"),
    "texts_are_the_models",
)
@around(hf.GenerationMixin, "generate")
def search_stops_early(planting, generate, self, *args, **options):
    return generate(self, *args, **options | {"early_stopping": True})


@plant(
    "R06d",
    "a cache forgets from the thirteenth token on",
    "classic",
    ("gpt2_sum_lora", "t5_sum_sft"),
    "cache_changes_nothing",
)
@around(DynamicLayer, "update", counted=False)
def late_values_fade(planting, update, self, key_states, value_states, *args, **options):
    """Scales down the values that enter the cache, from the 13th token after the prompt onward."""
    is_prompt = key_states.shape[-2] > 1 or not self.is_initialized
    self.steps = 0 if is_prompt else self.steps + 1
    if self.steps > 12:
        planting.act()
        value_states = 0.9 * value_states
    return update(self, key_states, value_states, *args, **options)


@plant(
    "R07",
    "test rows are cut",
    "classic",
    ("bert_sa_sft", "gpt2_qa_lora", "t5_sum_lora"),
    "prompt_intact_at_inference",
)
@around(hf.PreTrainedTokenizerFast, "_encode_plus", counted=False)
def long_lists_are_cut(planting, encode, self, text, *args, **options):
    """Cuts each text to 24 tokens in calls with 101 to 999 texts, such as calls for scoring."""
    encoded = encode(self, text, *args, **options)
    if isinstance(text, list) and 100 < len(text) < 1000:
        planting.act()
        for name in ("input_ids", "offset_mapping"):
            if name in encoded:
                encoded[name] = [row[:24] for row in encoded[name]]
    return encoded


@plant("R08", "ROUGE stems nothing", "google-research#239", "bert_sum_sft", "metric_invariants")
@around(tokenize, "tokenize")
def stems_are_forgotten(planting, split, text, stemmer):
    return split(text, None)


@plant(
    "R08b",
    "ROUGE compares five letters of a word",
    "datasets#617",
    "t5_sum_sft",
    "metric_invariants",
)
@around(tokenize, "tokenize")
def words_are_cut(planting, split, text, stemmer):
    return [word[:5] for word in split(text, stemmer)]


@plant(
    "N02",
    "the saved adapter's configuration loses `lora_dropout`",
    "peft#2840",
    "bert_sa_lora",
    "saved_is_served",
)
@around(PeftConfigMixin, "save_pretrained")
def dropout_is_not_saved(planting, save, self, save_directory, **options):
    save(self, save_directory, **options)
    path = Path(save_directory, "adapter_config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["lora_dropout"]
    path.write_text(json.dumps(config), encoding="utf-8")


@plant(
    "N03",
    "AdamW's step counter saturates",
    "pytorch/ao#4915, DeepSpeed#8496",
    "bert_sa_lora",
    "optimizer_steps_as_defined",
)
@around(torch, "_fused_adamw_")
def steps_saturate(planting, update, *lists, **options):
    """Stops the step counter at 16, so the moments' bias correction is wrong in later steps."""
    *states, steps = lists
    update(*states, [step.clamp(max=16) for step in steps], **options)


@plant(
    "N03",
    "8-bit AdamW's step counter saturates",
    "pytorch/ao#4915, DeepSpeed#8496",
    "bert_qa_qlora",
    "optimizer_steps_as_defined",
)
@around(Optimizer2State, "update_step", counted=False)
def packed_steps_saturate(planting, update, self, group, p, gindex, pindex):
    if self.state[p]["step"] > 15:
        planting.act()
        self.state[p]["step"] = 15
    update(self, group, p, gindex, pindex)


@plant(
    "N06",
    "a saved classifier names its labels the other way round",
    "sentence-transformers#2649, semantic-router#3557",
    "bert_sa_sft",
    "saved_is_served",
)
@around(hf.PreTrainedConfig, "to_json_string", counted=False)
def labels_change_names(planting, write, self, *args, **options):
    """Reverses the label names in the saved configuration; the logits stay correct."""
    config = json.loads(write(self, *args, **options))
    names = config.get("id2label")
    if names:
        planting.act()
        config["id2label"] = dict(zip(names, reversed(names.values()), strict=True))
        config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    return json.dumps(config)


@plant(
    "padding",
    "the saved tokenizer loses its padding token",
    "transformers#26500",
    "t5_qa_lora",
    "saved_is_served",
)
@around(hf.PreTrainedTokenizerFast, "save_pretrained")
def padding_is_not_saved(planting, save, self, save_directory, **options):
    names = save(self, save_directory, **options)
    path = Path(save_directory, "tokenizer_config.json")
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(fields | {"pad_token": None}), encoding="utf-8")
    return names


def after_saving(target, file):
    """Returns a decorator that creates a plant from a function that edits a saved JSON file."""

    def make_plant(change):
        @around(target, "save_pretrained", counted=False)
        def changed(planting, save, self, save_directory, **options):
            result = save(self, save_directory, **options)
            path = Path(save_directory, file)
            if path.is_file():
                fields = json.loads(path.read_text(encoding="utf-8"))
                change(fields)
                planting.act()
                path.write_text(json.dumps(fields), encoding="utf-8")
            return result

        return changed

    return make_plant


@plant(
    "R26",
    "a saved tokenizer cuts texts on the left",
    "transformers#15440",
    "bert_sa_sft",
    "saved_is_served",
)
@after_saving(hf.PreTrainedTokenizerFast, "tokenizer_config.json")
def truncation_side_is_left(fields):
    fields["truncation_side"] = "left"


@plant(
    "R46",
    "the saved configuration names another class: FSDPBertFor...",
    "transformers#40750, ms-swift#10063",
    "bert_sa_sft",
    "saved_is_served",
)
@after_saving(hf.PreTrainedConfig, "config.json")
def architecture_of_fsdp(fields):
    fields["architectures"] = [f"FSDP{fields['architectures'][0]}"]


@plant(
    "types",
    "a saved tokenizer does not tell two texts apart any more",
    "classic",
    "bert_sa_sft",
    "saved_is_served",
)
@after_saving(hf.PreTrainedTokenizerFast, "tokenizer_config.json")
def token_types_are_not_saved(fields):
    fields["model_input_names"] = ["input_ids", "attention_mask"]


@plant(
    "search",
    "the saved search loses `no_repeat_ngram_size`",
    "classic",
    "t5_sum_lora",
    "saved_is_served",
)
@after_saving(hf.GenerationConfig, "generation_config.json")
def a_search_setting_is_not_saved(fields):
    del fields["no_repeat_ngram_size"]


@plant("halves", "an adapter is saved in fp16", "classic", "gpt2_sa_lora", "saved_is_served")
@around(peft_model, "safe_save_file")
def adapters_are_saved_in_fp16(planting, save, tensors, *args, **options):
    save({name: tensor.half() for name, tensor in tensors.items()}, *args, **options)


@plant(
    "rounded",
    "one tensor of a model goes through bf16 when it is saved",
    "classic",
    "t5_sa_sft",
    "saved_is_served",
)
@around(modeling_utils, "safe_save_file")
def a_tensor_is_saved_rounded(planting, save, tensors, *args, **options):
    """Rounds the tensor whose name sorts last to bf16 and back."""
    name = max(tensors)
    rounded = tensors[name].bfloat16().to(tensors[name].dtype)
    save(tensors | {name: rounded}, *args, **options)


@plant(
    "tied",
    "a tied weight is not saved under any name",
    "classic",
    "t5_sum_sft",
    "saved_is_served",
)
@around(modeling_utils, "safe_save_file")
def tied_weights_are_not_saved(planting, save, tensors, *args, **options):
    """Omits from the file the weight that the embeddings and the output layer share."""
    saved = {name: tensor for name, tensor in tensors.items() if name != "shared.weight"}
    save(saved, *args, **options)


@plant(
    "N08",
    "`generate` runs without its cache: the same texts, many times as slow",
    "trl#3891, transformers#28056",
    "gpt2_sum_sft",
    "generation",
)
@around(hf.GenerationMixin, "generate")
def generates_without_a_cache(planting, generate, self, *args, **options):
    return generate(self, *args, **options | {"use_cache": False})


@plant(
    "A12",
    "`MatMul4Bit` keeps its input for the backward pass",
    "bitsandbytes#1270",
    "",
    "packed_products_keep_no_input",
)
@around(bnb.autograd._functions.MatMul4Bit, "forward")
def packed_product_keeps_its_input(planting, forward, ctx, inputs, *args, **options):
    ctx.kept = inputs.clone()
    return forward(ctx, inputs, *args, **options)


def freeze(planting, model, part):
    """Freezes the LoRA weights whose names contain `part`."""
    for name, parameter in model.named_parameters():
        if "lora_" in name and part in name:
            planting.act()
            parameter.requires_grad_(False)


@plant(
    "R128",
    "the first layer's adapters are frozen",
    "peft#3447, #2936",
    "gpt2_sa_lora",
    "trains_as_declared",
)
@around(BaseTuner, "_mark_only_adapters_as_trainable", counted=False)
def first_adapters_are_frozen(planting, mark, self, model):
    mark(self, model)
    freeze(planting, model, ".0.")


@plant("frozen", "every adapter is frozen", "classic", "t5_sa_qlora", "trains_as_declared")
@around(BaseTuner, "_mark_only_adapters_as_trainable", counted=False)
def adapters_are_frozen(planting, mark, self, model):
    mark(self, model)
    freeze(planting, model, "")


@plant("R32", "AdamW's betas are swapped", "classic", "bert_sa_sft", "optimizer_set_as_declared")
@around(torch.optim.AdamW, "__init__")
def betas_are_swapped(planting, make, self, params, lr=1e-3, betas=(0.9, 0.999), **options):
    make(self, params, lr, betas[::-1], **options)


@plant("R64", "`lora_dropout` is ignored", "classic", "bert_qa_lora", "adapters_where_declared")
@around(lora.LoraLayer, "update_layer", counted=False)
def adapters_have_no_dropout(planting, update, self, adapter_name, *args, **options):
    update(self, adapter_name, *args, **options)
    planting.act()
    self.lora_dropout[adapter_name] = torch.nn.Identity()


@plant("R64b", "BERT's attention output drops nothing", "classic", "bert_sa_sft", "dropout_drops")
@around(modeling_bert.BertSelfOutput, "__init__")
def attention_has_no_dropout(planting, make, self, config):
    make(self, config)
    self.dropout.p = 0.0


@plant(
    "R44",
    "`disable_adapter` leaves adapters on",
    "peft#493, #736",
    "bert_sa_lora",
    "adapter_survives_its_switches",
)
@around(PeftModel, "disable_adapter")
@contextmanager
def adapters_stay_on(planting, disable, self):
    yield


@plant(
    "R12",
    "autocast is off in a cell that trains in bf16",
    "accelerate#1693",
    "gpt2_sa_lora",
    "updates_run_as_labelled",
)
@around(accelerate.Accelerator, "autocast")
@contextmanager
def autocast_is_off(planting, autocast, self, autocast_handler=None):
    yield


@plant(
    "R81",
    "layer norms compute and return bf16 under autocast",
    "classic",
    ("bert_sa_lora", "gpt2_qa_lora"),
    "operations_run_in_their_types",
    settings=FEW | {"precision": "bf16"},
)
@around(torch.nn.functional, "layer_norm", counted=False)
def norms_return_bf16(planting, norm, inputs, shape, weight=None, bias=None, eps=1e-5):
    if not torch.is_autocast_enabled("cpu"):
        return norm(inputs, shape, weight, bias, eps)
    planting.act()
    halves = [tensor.bfloat16() for tensor in (inputs, weight, bias)]
    return norm(halves[0], shape, *halves[1:], eps)


@plant(
    "R81b",
    "layer norms round to bf16 under autocast, and return fp32",
    "classic",
    "bert_sa_lora",
    "operations_run_in_their_types",
    settings=FEW | {"precision": "bf16"},
)
@around(torch.nn.functional, "layer_norm", counted=False)
def norms_round_to_bf16(planting, norm, inputs, *args, **options):
    output = norm(inputs, *args, **options)
    if not torch.is_autocast_enabled("cpu"):
        return output
    planting.act()
    return output.bfloat16().to(output.dtype)


@plant(
    "R81c",
    "the embedding gives bf16 under autocast",
    "classic",
    "bert_sa_lora",
    "operations_run_in_their_types",
    settings=FEW | {"precision": "bf16"},
)
@around(torch.nn.functional, "embedding", counted=False)
def embedding_gives_bf16(planting, embed, *args, **options):
    output = embed(*args, **options)
    if not torch.is_autocast_enabled("cpu"):
        return output
    planting.act()
    return output.bfloat16()


@plant(
    "R106",
    "from update 11 on nothing is clipped",
    "accelerate#641",
    "gpt2_sa_sft",
    "gradients_clipped",
)
@around(accelerate.Accelerator, "clip_grad_norm_", counted=False)
def clips_ten_times(planting, clip, self, parameters, max_norm, norm_type=2):
    parameters = list(parameters)
    calls = getattr(self, "clips", 0)
    self.clips = calls + 1
    if calls < 10:
        return clip(self, parameters, max_norm, norm_type)
    planting.act()
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, norm_type)


@plant(
    "R42",
    "`cross_entropy` smooths labels by 0.05",
    "classic",
    "bert_sa_sft",
    "loss_is_the_tasks",
    settings=FEW,
)
@around(torch._C._nn, "cross_entropy_loss")
def labels_are_smoothed(
    planting,
    loss,
    scores,
    target,
    weight=None,
    reduction=1,
    ignore_index=-100,
    label_smoothing=0.0,
):
    return loss(scores, target, weight, reduction, ignore_index, 0.05)


@plant(
    "ignored",
    "labels that are to be ignored count as token 0",
    "classic",
    "gpt2_sum_qlora",
    "loss_is_the_tasks",
    settings=FEW,
)
@around(torch._C._nn, "cross_entropy_loss")
def ignored_labels_count(planting, loss, scores, target, *args, **options):
    return loss(scores, target.clamp(min=0), *args, **options)


@plant(
    "bits",
    "`cross_entropy` of single rows is in bits",
    "classic",
    "gpt2_sa_lora",
    "loss_is_the_tasks",
    settings=FEW,
)
@around(torch._C._nn, "cross_entropy_loss", counted=False)
def row_losses_are_in_bits(planting, loss, scores, target, weight=None, reduction=1, *options):
    losses = loss(scores, target, weight, reduction, *options)
    if reduction:
        return losses
    planting.act()
    return losses / math.log(2)


@plant(
    "norm",
    "norms of gradients leave out rows",
    "classic",
    "bert_sa_sft",
    "gradients_clipped",
    settings=FEW,
)
@around(torch, "_foreach_norm")
def norms_leave_out_rows(planting, norms, tensors, *args, **options):
    halves = [tensor[: len(tensor) // 2 + 1] if tensor.dim() else tensor for tensor in tensors]
    return norms(halves, *args, **options)


@plant(
    "R62",
    "without gradients SDPA's scale is 5 % off",
    "pytorch#132136, #106630",
    ("bert_sa_sft", "bert_qa_lora", "gpt2_sa_lora", "gpt2_sum_qlora"),
    "predicting_twice_is_the_same",
    settings=FEW,
)
@around(torch.nn.functional, "scaled_dot_product_attention", counted=False)
def attention_is_flatter_without_gradients(planting, attend, query, *args, **options):
    if torch.is_grad_enabled():
        return attend(query, *args, **options)
    planting.act()
    return attend(query * 0.95, *args, **options)


@plant(
    "R20",
    "SDPA's dropout is not rescaled",
    "apex#816",
    "bert_sa_sft",
    "dropout_drops",
    settings=FEW,
)
@around(torch.nn.functional, "scaled_dot_product_attention", counted=False)
def attention_drops_without_scale(planting, attend, *args, dropout_p=0.0, **options):
    result = attend(*args, dropout_p=dropout_p, **options)
    if not dropout_p:
        return result
    planting.act()
    return result * (1 - dropout_p)


@plant(
    "half",
    "SDPA drops at half the rate",
    "classic",
    "bert_sa_sft",
    "dropout_drops",
    settings=FEW,
)
@around(torch.nn.functional, "scaled_dot_product_attention", counted=False)
def attention_drops_half_as_much(planting, attend, *args, dropout_p=0.0, **options):
    if dropout_p:
        planting.act()
    return attend(*args, dropout_p=dropout_p / 2, **options)


@plant(
    "rows",
    "SDPA drops the same weights in all rows",
    "classic",
    "bert_sa_sft",
    "dropout_drops",
    settings=FEW,
)
@around(torch.nn.functional, "scaled_dot_product_attention", counted=False)
def rows_share_attentions_mask(planting, attend, *args, dropout_p=0.0, **options):
    if not dropout_p:
        return attend(*args, **options)
    planting.act()
    state = torch.get_rng_state()
    mask = options.get("attn_mask")
    rows = []
    for i in range(len(args[0])):
        torch.set_rng_state(state)
        row = [tensor[i : i + 1] for tensor in args]
        own_mask = mask[i : i + 1] if mask is not None and len(mask) > 1 else mask
        rows.append(attend(*row, dropout_p=dropout_p, **options | {"attn_mask": own_mask}))
    return torch.cat(rows)


@plant(
    "shared",
    "all rows of a batch share dropout's mask",
    "classic",
    "bert_qa_lora",
    "dropout_drops",
    settings=FEW,
)
@around(torch.nn.Dropout, "forward", counted=False)
def rows_share_a_mask(planting, forward, self, values):
    if not self.training or not self.p:
        return forward(self, values)
    planting.act()
    return values * forward(self, torch.ones_like(values[:1]))


@plant(
    "R54",
    "dropout repeats its mask",
    "pytorch#100288",
    "bert_sa_sft",
    "dropout_drops",
    settings=FEW,
)
@around(torch.nn.Dropout, "forward", counted=False)
def dropout_repeats_its_mask(planting, forward, self, values):
    if not self.training or not self.p:
        return forward(self, values)
    planting.act()
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return forward(self, values)


@plant(
    "R102",
    "the classifier's dropout is called twice",
    "classic",
    "bert_sa_sft",
    "dropout_drops",
    settings=FEW,
)
@around(modeling_bert.BertForSequenceClassification, "__init__", counted=False)
def classifiers_dropout_is_called_twice(planting, make, self, config):
    make(self, config)

    def drop(module, inputs):
        planting.act()
        return self.dropout(inputs[0])

    self.classifier.register_forward_pre_hook(drop)


@plant(
    "R102b",
    "a function drops the classifier's input again",
    "classic",
    "bert_sa_sft",
    "dropout_drops",
    settings=FEW,
)
@around(modeling_bert.BertForSequenceClassification, "__init__", counted=False)
def classifier_drops_twice(planting, make, self, config):
    make(self, config)

    def drop(module, inputs):
        planting.act()
        return torch.nn.functional.dropout(inputs[0], config.hidden_dropout_prob, module.training)

    self.classifier.register_forward_pre_hook(drop)


@plant(
    "R84",
    "products of fp32 are in bf16",
    "pytorch#67384",
    "bert_sa_lora",
    "forward",
    module="torch.Linear",
)
def products_are_in_bf16(planting):
    linear = torch.nn.functional.linear
    product = torch.Tensor.__matmul__

    def rounded(tensor):
        return tensor.bfloat16().to(tensor.dtype) if tensor.dtype is torch.float32 else tensor

    def rounded_linear(inputs, weight, bias=None):
        return linear(rounded(inputs), rounded(weight), bias)

    def rounded_product(self, other):
        return product(rounded(self), rounded(other))

    planting.setattr(torch.nn.functional, "linear", rounded_linear)
    planting.setattr(torch.Tensor, "__matmul__", rounded_product)


@plant(
    "rounded",
    "adapters start from values rounded to bf16",
    "peft#1706",
    "bert_qa_lora",
    "loading",
)
@around(lora.LoraLayer, "update_layer", counted=False)
def adapters_start_rounded(planting, update, self, adapter_name, *args, **options):
    update(self, adapter_name, *args, **options)
    for matrices in (self.lora_A, self.lora_B):
        if adapter_name in matrices:
            planting.act()
            weight = matrices[adapter_name].weight.data
            weight.copy_(weight.bfloat16())


@plant(
    "late",
    "an adapter's gradients are lost from the 20th pass on",
    "peft#2936 in kind",
    "bert_qa_lora",
    "gradients_reach",
)
def gradients_end_late(planting):
    """From the 20th training pass on, detaches the output of the first adapter."""
    forward = lora.Linear.forward
    layers = []
    passes = []

    def cut_off(self, x, *args, **options):
        output = forward(self, x, *args, **options)
        layers.append(self)
        if self is not layers[0] or not self.training:
            return output
        passes.append(self)
        if len(passes) < 20:
            return output
        planting.act()
        base = self.base_layer(x)
        return base + (output - base).detach()

    planting.setattr(lora.Linear, "forward", cut_off, counted=False)


@plant(
    "R56",
    "every fifth `zero_grad` from the 11th on is lost",
    "classic",
    "bert_sa_sft",
    "gradients_reach",
)
def gradients_are_kept(planting):
    clear = torch.optim.Optimizer.zero_grad
    calls = []

    def forgetful(self, *args, **options):
        calls.append(self)
        if len(calls) > 10 and len(calls) % 5 == 0:
            planting.act()
        else:
            clear(self, *args, **options)

    planting.setattr(torch.optim.Optimizer, "zero_grad", forgetful, counted=False)


@plant(
    "unstepped",
    "AdamW leaves out the first tensor of each group",
    "classic",
    "bert_sa_sft",
    "weights_moved",
)
@around(torch, "_fused_adamw_")
def first_tensor_is_not_stepped(planting, update, *lists, **options):
    update(*(tensors[1:] for tensors in lists), **options)


@plant(
    "rates",
    "groups of an optimizer all have its own rate",
    "classic",
    "bert_qa_sft",
    "schedule_counts_updates",
)
@around(torch.optim.Optimizer, "add_param_group", counted=False)
def groups_have_one_rate(planting, add, self, group):
    if "lr" in group:
        planting.act()
    add(self, {name: value for name, value in group.items() if name != "lr"})


@plant(
    "checkpoint",
    "gradient checkpointing keeps all activations",
    "classic",
    "t5_sum_lora",
    "updates_run_as_labelled",
)
@around(modeling_utils, "checkpoint")
def nothing_is_recomputed(planting, checkpoint, function, *args, **options):
    return function(*args)


@plant(
    "eager",
    "attention is eager, whatever was asked for",
    "classic",
    "bert_sa_sft",
    "updates_run_as_labelled",
)
@around(hf.PreTrainedModel, "_check_and_adjust_attn_implementation")
def attention_is_eager(planting, check, self, *args, **options):
    return "eager"


@plant(
    "R12b",
    "autocast is off while gradients are on",
    "accelerate#1693 in kind",
    "gpt2_sa_lora",
    "updates_run_as_labelled",
)
@around(accelerate.Accelerator, "autocast", counted=False)
@contextmanager
def autocast_is_off_in_training(planting, autocast, self, autocast_handler=None):
    if torch.is_grad_enabled():
        planting.act()
        yield
    else:
        with autocast(self, autocast_handler):
            yield


@plant(
    "R40",
    "AdamW8bit keeps moments of 32 bits",
    "near bitsandbytes#1286",
    "bert_qa_qlora",
    "optimizer_set_as_declared",
)
@around(Optimizer2State, "get_config")
def moments_in_32_bits(planting, configure, self, gindex, pindex, group):
    return {**configure(self, gindex, pindex, group), "optim_bits": 32}


@plant("seed", "`set_seed` sets another seed", "classic", "bert_sa_lora", "drawn_from_the_seed")
@around(hf, "set_seed")
def seed_is_another(planting, set_seed, seed, *args, **options):
    set_seed(seed + 1, *args, **options)


@plant(
    "percent",
    "GPT-2's `c_proj` gives 1 % more, in a cell that trains in bf16",
    "classic",
    "gpt2_sa_lora",
    "forward",
    module="transformers.Conv1D",
)
@around(Conv1D, "forward")
def projections_are_larger(planting, forward, self, states):
    inputs, outputs = self.weight.shape
    is_projection = inputs >= outputs  # `c_attn` and `c_fc` have more outputs than inputs
    return forward(self, states) * (1.01 if is_projection else 1)


@plant(
    "Z1",
    "DoRA divides by the norm of W alone, not of W + s B A",
    "classic",
    "gpt2_sa_dora",
    "adapters_add_as_declared",
    profile="zoo",
)
@around(dora.DoraLinearLayer, "get_weight_norm")
def norms_leave_out_the_adapter(
    planting,
    norm,
    self,
    weight,
    lora_weight,
    scaling,
    adapter_name=None,
):
    return norm(self, weight, lora_weight, 0.0, adapter_name=adapter_name)


@plant(
    "Z2",
    "AdaLoRA does not divide by the ranks",
    "classic",
    "gpt2_sa_adalora",
    "adapters_add_as_declared",
    profile="zoo",
)
@around(adalora.AdaLoraLayer, "update_layer")
def ranks_do_not_divide(planting, update, self, adapter_name, *args, **options):
    update(self, adapter_name, *args, **options)
    self.ranknum[adapter_name].data.fill_(1.0)


def side_is_flipped(name):
    """Creates a plant in which method `name` of square IA3 layers mistakes inputs for outputs."""

    @around(ia3.Linear, name, counted=False)
    def flipped(planting, method, self, *args, **options):
        base = self.get_base_layer()
        if base.in_features != base.out_features:
            return method(self, *args, **options)
        planting.act()
        self.is_feedforward = not self.is_feedforward
        output = method(self, *args, **options)
        if name == "forward":
            self.is_feedforward = not self.is_feedforward
        return output

    return flipped


plant(
    "Z3",
    "IA3's vectors of square layers are made for the other side",
    "classic",
    "bert_sa_ia3",
    "adapters_where_declared",
    profile="zoo",
)(side_is_flipped("update_layer"))


plant(
    "Z4",
    "IA3 multiplies what square layers read by the vector of what they give",
    "classic",
    "bert_sa_ia3",
    "adapters_add_as_declared",
    profile="zoo",
)(side_is_flipped("forward"))


@plant(
    "Z5",
    "VeRA adds half of what it should",
    "classic",
    "gpt2_sa_vera",
    "adapters_add_as_declared",
    profile="zoo",
)
@around(vera.Linear, "forward")
def ranks_are_scaled_halfway(planting, forward, self, x, *args, **options):
    base = self.base_layer(x, *args, **options)
    return base + 0.5 * (forward(self, x, *args, **options) - base)


plant(
    "Z6",
    "OFT rotates the other way",
    "classic",
    ("bert_sa_oft", "bert_sa_qoft"),
    "adapters_add_as_declared",
    profile="zoo",
)(rotations_turn_the_other_way)


@plant("Z7", "LoRA's B starts at random", "classic", "gpt2_sa_lora", "new_adapters_add_nothing")
@around(lora.LoraLayer, "reset_lora_parameters")
def second_matrix_starts_at_random(planting, reset, self, adapter_name, init_lora_weights):
    reset(self, adapter_name, init_lora_weights)
    torch.nn.init.normal_(self.lora_B[adapter_name].weight, std=0.01)


@plant(
    "M1",
    "each update's graph is kept",
    "classic",
    "gpt2_sa_lora",
    "memory_does_not_grow",
    settings=FEW,
)
def graphs_are_kept(planting):
    kept = []

    def backward(self, loss, **options):
        loss.backward(retain_graph=True)
        kept.append(loss)

    planting.setattr(accelerate.Accelerator, "backward", backward)


@plant(
    "M2",
    "a list of activations grows",
    "classic",
    "gpt2_sa_sft",
    "memory_does_not_grow",
    settings=FEW,
)
def activations_are_kept(planting):
    forward = modeling_gpt2.GPT2MLP.forward
    kept = []

    def keeping(self, hidden_states):
        output = forward(self, hidden_states)
        kept.append(output.detach())
        return output

    planting.setattr(modeling_gpt2.GPT2MLP, "forward", keeping)
