"""Plants in the libraries' own path: each is named with its stage, the first at which it shows, and how its sentence begins."""

import copy

import peft
import torch
import transformers as hf

from benchmarks.proof.plants.plant import Plant, around


@around(hf.PreTrainedTokenizerFast, "_convert_encoding")
def no_overflow(plant, convert, self, encoding, *args, **options):
    return convert(self, encoding, *args, **options | {"return_overflowing_tokens": False})


@around(peft, "prepare_model_for_kbit_training")
def norms_are_rounded(plant, prepare, model, **options):
    model = prepare(model, **options)
    for name, p in model.named_parameters():
        p.data = p.data.bfloat16() if "ln_" in name else p.data
    return model


@around(hf.DataCollatorForSeq2Seq, "__call__")
def padding_counts(plant, collate, self, *args, **options):
    self.label_pad_token_id = self.tokenizer.pad_token_id
    return collate(self, *args, **options)


@around(hf.DataCollatorWithPadding, "__call__")
def mask_of_ones(plant, collate, *args, **options):
    batch = collate(*args, **options)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch


@around(hf.Trainer, "get_train_dataloader")
def last_batch_is_dropped(plant, loader, self):
    self.args.dataloader_drop_last = True
    return loader(self)


@around(hf.Trainer, "compute_loss")
def loss_is_too_large(plant, compute, *args, **options):
    return compute(*args, **options) * 1.00001


def gradients_times(factor):
    """A training step's gradients are this many times as large, by the number of batches of an update."""

    @around(hf.Trainer, "training_step")
    def scaled(plant, step, self, model, *args, **options):
        loss = step(self, model, *args, **options)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(factor(self.args.gradient_accumulation_steps))
        return loss

    return scaled


@around(hf.Trainer, "create_optimizer")
def second_moment_is_off(plant, create, self, *args):
    optimizer = create(self, *args)
    for group in optimizer.param_groups:
        group["betas"] = (0.9, 0.99)
    return optimizer


@around(hf.Trainer, "create_optimizer")
def a_weight_is_left_out(plant, create, self, *args):
    optimizer = create(self, *args)
    optimizer.param_groups[0]["params"].pop()
    return optimizer


@around(hf.Trainer, "_load_optimizer_and_scheduler")
def schedule_starts_anew(plant, load, self, checkpoint):
    state = copy.deepcopy(self.lr_scheduler.state_dict())
    load(self, checkpoint)
    self.lr_scheduler.load_state_dict(state)


@around(hf.Seq2SeqTrainer, "predict")
def length_penalty_is_lost(plant, predict, *args, **options):
    return predict(*args, **options | {"length_penalty": 1.0})


@around(hf.TextClassificationPipeline, "__init__")
def labels_are_swapped(plant, init, self, *args, **options):
    init(self, *args, **options)
    label = self.model.config.id2label
    self.model.config.id2label = {index: label[len(label) - 1 - index] for index in label}


def loss_per_batch(plant):
    step, evaluate = hf.Trainer.prediction_step, hf.Trainer.evaluation_loop
    losses = []

    def noted(self, *args, **options):
        loss, logits, labels = step(self, *args, **options)
        losses.append(loss.mean())
        return loss, logits, labels

    def averaged(self, *args, **options):
        output = evaluate(self, *args, **options)
        output.metrics["eval_loss"] = float(torch.stack(losses).mean())
        return output

    plant.setattr(hf.Trainer, "prediction_step", noted)
    plant.setattr(hf.Trainer, "evaluation_loop", averaged)


# fmt: off
STOCK = (
    Plant("P01", "no window but the first, as tokenizers 0.23.1", "classic", "bert_qa_sft", no_overflow,
          "windows: number of windows of row["),
    Plant("P03", "PEFT's helper rounds norms to bf16", "classic", "gpt2_sa_qlora", norms_are_rounded, "start: [base_model."),
    Plant("P04", "padding is a label", "classic", "t5_sum_sft", padding_counts, "labels: number"),
    Plant("P05", "padding is attended to", "classic", "bert_sa_sft", mask_of_ones, "batch: attention_mask"),
    Plant("P06", "an epoch's short last batch is dropped", "classic", "gpt2_sa_sft", last_batch_is_dropped,
          "order: rows of batch"),
    Plant("P07", "the loss is 1e-5 of itself too large", "classic", "bert_sa_lora", loss_is_too_large, "loss: loss of update"),
    Plant("P10", "gradients are 1e-4 of themselves too large", "classic", "gpt2_sa_sft", gradients_times(lambda count: 1.0001),
          "gradient: gradient norm"),
    Plant("P11", "the second moment forgets ten times as fast", "classic", "gpt2_sa_sft", second_moment_is_off,
          "optimizer: setting of"),
    Plant("P12", "a weight is not given to the optimizer", "classic", "gpt2_sa_sft", a_weight_is_left_out,
          "optimizer: setting of"),
    Plant("P15", "an update's gradients are divided by the number of its batches again", "classic", "gpt2_sa_sft",
          gradients_times(lambda count: 1 / count), "accumulation: gradient norm"),
    Plant("P17", "a resumed training has its moments, and its schedule starts anew", "classic", "gpt2_sa_lora",
          schedule_starts_anew, "resume: resumed, learning_rate"),
    Plant("A82", "the loss of an evaluation is averaged per batch, not per target", "pytorch/torchtitan#4167", "bert_sa_sft",
          loss_per_batch, "scores: eval_loss"),
    *(Plant(id, "a search forgets its length penalty", "classic", cell, length_penalty_is_lost, "scores: text of row[")
      for id, cell in (("P20", "t5_sum_sft"), ("P21", "gpt2_sum_lora"), ("P22", "bert_sum_lora"))),
    Plant("P23", "a saved classifier's labels are in another order", "classic", "bert_sa_sft", labels_are_swapped,
          "pipeline: answer"),
)
# fmt: on
