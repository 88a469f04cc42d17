"""Plants in the libraries' own path, each with the start of the sentence that must report it."""

import copy

import peft
import torch
import transformers as hf

from benchmarks.proof.plants.plant import Table, around

STOCK = Table()
plant = STOCK.plant


@plant(
    "P01",
    "no window but the first, as tokenizers 0.23.1",
    "classic",
    "bert_qa_sft",
    "windows: number of windows of row[",
)
@around(hf.PreTrainedTokenizerFast, "_convert_encoding")
def no_overflow(planting, convert, self, encoding, *args, **options):
    return convert(self, encoding, *args, **options | {"return_overflowing_tokens": False})


@plant(
    "P03",
    "PEFT's helper rounds norms to bf16",
    "classic",
    "gpt2_sa_qlora",
    "start: [base_model.",
)
@around(peft, "prepare_model_for_kbit_training")
def norms_are_rounded(planting, prepare, model, **options):
    model = prepare(model, **options)
    for name, p in model.named_parameters():
        if "ln_" in name:
            p.data = p.data.bfloat16()
    return model


@plant("P04", "padding is a label", "classic", "t5_sum_sft", "labels: number")
@around(hf.DataCollatorForSeq2Seq, "__call__")
def padding_is_a_label(planting, collate, self, *args, **options):
    self.label_pad_token_id = self.tokenizer.pad_token_id
    return collate(self, *args, **options)


@plant("P05", "padding is attended to", "classic", "bert_sa_sft", "batch: attention_mask")
@around(hf.DataCollatorWithPadding, "__call__")
def mask_of_ones(planting, collate, *args, **options):
    batch = collate(*args, **options)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch


@plant(
    "P06",
    "an epoch's short last batch is dropped",
    "classic",
    "gpt2_sa_sft",
    "order: rows of batch",
)
@around(hf.Trainer, "get_train_dataloader")
def last_batch_is_dropped(planting, loader, self):
    self.args.dataloader_drop_last = True
    return loader(self)


@plant(
    "P07",
    "the loss is 1e-5 of itself too large",
    "classic",
    "bert_sa_lora",
    "loss: loss of update",
)
@around(hf.Trainer, "compute_loss")
def loss_is_too_large(planting, compute, *args, **options):
    return compute(*args, **options) * 1.00001


def gradients_times(factor):
    """Makes a plant that multiplies gradients by `factor(batches per update)` after each batch."""

    @around(hf.Trainer, "training_step")
    def scaled(planting, step, self, model, *args, **options):
        loss = step(self, model, *args, **options)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(factor(self.args.gradient_accumulation_steps))
        return loss

    return scaled


plant(
    "P10",
    "gradients are 1e-4 of themselves too large",
    "classic",
    "gpt2_sa_sft",
    "gradient: gradient norm",
)(gradients_times(lambda count: 1.0001))


@plant(
    "P11",
    "the second moment forgets ten times as fast",
    "classic",
    "gpt2_sa_sft",
    "optimizer: setting of",
)
@around(hf.Trainer, "create_optimizer")
def second_moment_is_off(planting, create, self, *args):
    optimizer = create(self, *args)
    for group in optimizer.param_groups:
        group["betas"] = (0.9, 0.99)
    return optimizer


@plant(
    "P12",
    "a weight is not given to the optimizer",
    "classic",
    "gpt2_sa_sft",
    "optimizer: setting of",
)
@around(hf.Trainer, "create_optimizer")
def a_weight_is_left_out(planting, create, self, *args):
    optimizer = create(self, *args)
    optimizer.param_groups[0]["params"].pop()
    return optimizer


plant(
    "P15",
    "an update's gradients are divided by the number of its batches again",
    "classic",
    "gpt2_sa_sft",
    "accumulation: gradient norm",
)(gradients_times(lambda count: 1 / count))


@plant(
    "P17",
    "a resumed training has its moments, and its schedule starts anew",
    "classic",
    "gpt2_sa_lora",
    "resume: resumed, learning_rate",
)
@around(hf.Trainer, "_load_optimizer_and_scheduler")
def schedule_starts_anew(planting, load, self, checkpoint):
    state = copy.deepcopy(self.lr_scheduler.state_dict())
    load(self, checkpoint)
    self.lr_scheduler.load_state_dict(state)


@plant(
    "A82",
    "the loss of an evaluation is averaged per batch, not per target",
    "pytorch/torchtitan#4167",
    "bert_sa_sft",
    "scores: eval_loss",
)
def loss_per_batch(planting):
    step = hf.Trainer.prediction_step
    evaluate = hf.Trainer.evaluation_loop
    losses = []

    def noted(self, *args, **options):
        loss, logits, labels = step(self, *args, **options)
        losses.append(loss.mean())
        return loss, logits, labels

    def averaged(self, *args, **options):
        output = evaluate(self, *args, **options)
        output.metrics["eval_loss"] = float(torch.stack(losses).mean())
        return output

    planting.setattr(hf.Trainer, "prediction_step", noted)
    planting.setattr(hf.Trainer, "evaluation_loop", averaged)


@around(hf.Seq2SeqTrainer, "predict")
def length_penalty_is_lost(planting, predict, *args, **options):
    return predict(*args, **options | {"length_penalty": 1.0})


for id, cell in (("P20", "t5_sum_sft"), ("P21", "gpt2_sum_lora"), ("P22", "bert_sum_lora")):
    add = plant(id, "a search forgets its length penalty", "classic", cell, "scores: text of row[")
    add(length_penalty_is_lost)


@plant(
    "P23",
    "a saved classifier's labels are in another order",
    "classic",
    "bert_sa_sft",
    "pipeline: answer",
)
@around(hf.TextClassificationPipeline, "__init__")
def labels_are_swapped(planting, init, self, *args, **options):
    init(self, *args, **options)
    label = self.model.config.id2label
    self.model.config.id2label = {index: label[len(label) - 1 - index] for index in label}
