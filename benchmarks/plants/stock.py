"""Plants in the libraries' own path, and one in ours: each is named with its stage, the first at which it shows."""

import copy
from functools import partial

import peft
import torch
import transformers as hf

from benchmarks.plants.plant import Plant, around
from benchmarks.stock import ours


def no_overflow(method, self, encoding, *args, **options):
    return method(self, encoding, *args, **options | {"return_overflowing_tokens": False})


def positions_are_scaled(method, *args, **options):
    model = method(*args, **options)
    model.transformer.wpe.weight.data.mul_(1.01)
    return model


def norms_are_rounded(method, model, **options):
    model = method(model, **options)
    for name, p in model.named_parameters():
        p.data = p.data.bfloat16() if "ln_" in name else p.data
    return model


def padding_counts(method, self, features, *args, **options):
    self.label_pad_token_id = self.tokenizer.pad_token_id
    return method(self, features, *args, **options)


def mask_of_ones(method, *args, **options):
    batch = method(*args, **options)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch


def last_batch_is_dropped(method, self):
    self.args.dataloader_drop_last = True
    return method(self)


def labels_are_smoothed(method, self, model, inputs, return_outputs=False, **options):
    loss, outputs = method(self, model, inputs, return_outputs=True, **options)
    loss = 0.99 * loss - 0.01 * outputs.logits.log_softmax(-1).mean()
    return (loss, outputs) if return_outputs else loss


def gradients_are_scaled(method, self, model, *args, factor=lambda count: 1.0001, **options):
    loss = method(self, model, *args, **options)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(factor(self.args.gradient_accumulation_steps))
    return loss


def batches_are_averaged_twice(method, self, *args, **options):
    loss = gradients_are_scaled(method, self, *args, factor=lambda count: 1 / count, **options)
    return loss / self.args.gradient_accumulation_steps


def second_moment_is_off(method, self, *args):
    optimizer = method(self, *args)
    for group in optimizer.param_groups:
        group["betas"] = (0.9, 0.99)
    return optimizer


def a_weight_is_left_out(method, self, *args):
    optimizer = method(self, *args)
    optimizer.param_groups[0]["params"].pop()
    return optimizer


def all_names(method, self, model):
    return [name for name, _ in model.named_parameters()]


def schedule_starts_anew(method, self, checkpoint):
    state = copy.deepcopy(self.lr_scheduler.state_dict())
    method(self, checkpoint)
    self.lr_scheduler.load_state_dict(state)


def losses_are_scaled(method, *args, **options):
    loss, logits, labels = method(*args, **options)
    return loss * 1.0001, logits, labels


def option_is_lost(method, *args, lost, **options):
    return method(*args, **options | lost)


def labels_are_swapped(method, self, *args, **options):
    method(self, *args, **options)
    label = self.model.config.id2label
    self.model.config.id2label = {index: label[len(label) - 1 - index] for index in label}


def loss_per_batch(planting):
    step, evaluate = hf.Trainer.prediction_step, hf.Trainer.evaluation_loop
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

    planting.setattr(hf.Trainer, "prediction_step", noted, counted=False)
    planting.setattr(hf.Trainer, "evaluation_loop", averaged, counted=False)


def stock(id, what, cell, method, change, caught_by):
    """A plant around a method: `change` takes its place, with it and its arguments; `caught_by` is how the sentence begins."""
    broken_by = around(*method)(lambda planting, original, *args, **options: change(original, *args, **options))
    return Plant(id, what, "classic", cell, broken_by, caught_by)


# fmt: off
STOCK = (
    stock("P01", "no window but the first, as tokenizers 0.23.1", "bert_qa_sft",
          (hf.PreTrainedTokenizerFast, "_convert_encoding"), no_overflow, "windows: number of windows of row["),
    stock("P02", "positions are loaded a hundredth too large", "gpt2_sa_lora",
          (hf.AutoModelForSequenceClassification, "from_pretrained"), positions_are_scaled, "start: [base_model."),
    stock("P03", "PEFT's helper rounds norms to bf16", "gpt2_sa_qlora", (peft, "prepare_model_for_kbit_training"),
          norms_are_rounded, "start: [base_model."),
    stock("P04", "padding is a label", "t5_sum_sft", (hf.DataCollatorForSeq2Seq, "__call__"), padding_counts, "labels: number"),
    stock("P05", "padding is attended to", "bert_sa_sft", (hf.DataCollatorWithPadding, "__call__"), mask_of_ones,
          "batch: attention_mask"),
    stock("P06", "an epoch's short last batch is dropped", "gpt2_sa_sft", (hf.Trainer, "get_train_dataloader"),
          last_batch_is_dropped, "order: rows of batch"),
    stock("P07", "the loss is 1e-5 of itself too large", "bert_sa_lora", (hf.Trainer, "compute_loss"),
          lambda method, *args, **options: method(*args, **options) * 1.00001, "loss: loss of update"),
    stock("P08", "labels are smoothed, though nothing asks for it", "bert_sa_sft", (hf.Trainer, "compute_loss"),
          labels_are_smoothed, "loss: loss of update"),
    stock("P09", "our loss is divided by twice its targets", "bert_sa_lora", (ours.ClassifyCodec, "targets"),
          lambda method, *args: 2 * method(*args), "loss: loss of update[0]"),
    stock("P10", "gradients are 1e-4 of themselves too large", "gpt2_sa_sft", (hf.Trainer, "training_step"),
          gradients_are_scaled, "gradient: gradient norm"),
    stock("P11", "the second moment forgets ten times as fast", "gpt2_sa_sft", (hf.Trainer, "create_optimizer"),
          second_moment_is_off, "optimizer: setting of"),
    stock("P12", "a weight is not given to the optimizer", "gpt2_sa_sft", (hf.Trainer, "create_optimizer"),
          a_weight_is_left_out, "optimizer: setting of"),
    stock("P13", "biases and norms decay, too", "gpt2_sa_sft", (hf.Trainer, "get_decay_parameter_names"), all_names,
          "optimizer: setting of[transformer."),
    stock("P15", "an update is the mean of its batches' means, divided by their number again", "gpt2_sa_sft",
          (hf.Trainer, "training_step"), batches_are_averaged_twice, "accumulation: loss of update"),
    stock("P16", "a resumed training has neither moments nor schedule", "gpt2_sa_lora",
          (hf.Trainer, "_load_optimizer_and_scheduler"), lambda method, *args: None, "resume: resumed, "),
    stock("P17", "a resumed training has its moments, and its schedule starts anew", "gpt2_sa_lora",
          (hf.Trainer, "_load_optimizer_and_scheduler"), schedule_starts_anew, "resume: resumed, learning_rate"),
    stock("P18", "an evaluation's loss is 1e-4 of itself too large", "bert_sa_lora", (hf.Trainer, "prediction_step"),
          losses_are_scaled, "scores: eval_loss"),
    Plant("A82", "the loss of an evaluation is averaged per batch, not per target", "pytorch/torchtitan#4167", "bert_sa_sft",
          loss_per_batch, "scores: eval_loss"),
    stock("P19", "a search has one beam", "t5_sum_sft", (hf.Seq2SeqTrainer, "predict"),
          partial(option_is_lost, lost={"num_beams": 1}), "scores: text of row["),
    *(stock(id, "a search forgets its length penalty", cell, (hf.Seq2SeqTrainer, "predict"),
            partial(option_is_lost, lost={"length_penalty": 1.0}), "scores: text of row[")
      for id, cell in (("P20", "t5_sum_sft"), ("P21", "gpt2_sum_lora"), ("P22", "bert_sum_lora"))),
    stock("P23", "a saved classifier's labels are in another order", "bert_sa_sft", (hf.TextClassificationPipeline, "__init__"),
          labels_are_swapped, "pipeline: answer"),
)
# fmt: on
