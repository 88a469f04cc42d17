"""Our loop against transformers' own: ten updates on the same batches give the same losses, one cell for each codec.

transformers computes the loss inside the model here, from labels that it makes; it shares nothing with our heads' losses.
"""

import pytest
import transformers as hf
from torch.utils.data import DataLoader

from tunegrid.tests.small import silent, still, train_rows, trainer_of

UPDATES = 10


def theirs(batch):
    """Our batch under the names that transformers' models use, with the labels for their loss."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "decoder_attention_mask")}
    if batch["labels"].ndim == 2 and batch["labels"].shape[1] == 2:
        starts, ends = batch["labels"].unbind(1)
        return {**inputs, "start_positions": starts, "end_positions": ends}
    return {**inputs, "labels": batch["labels"]}


class Recording(hf.Trainer):
    """transformers' trainer over given batches; keeps the loss of each update before it is rounded for the log."""

    def __init__(self, batches, **options):
        super().__init__(**options)
        self.batches, self.losses = batches, []

    def get_train_dataloader(self):
        return self.accelerator.prepare(DataLoader(self.batches, batch_size=None, shuffle=False))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.losses.append(float(loss.detach()))
        return loss


def ours_and_theirs(cell_id, tmp_path, batch, accumulation):
    rows = train_rows(cell_id)[: batch * accumulation * UPDATES + 8]
    settings = {
        "max_steps": UPDATES,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-3,
        "head_learning_rate": None,  # Trainer has one rate
        "warmup_ratio": 0.2,
        "precision": "fp32",
    }
    ours, reference = (still(trainer_of(cell_id, rows, **settings)) for _ in range(2))
    recipe = ours.cell.recipe
    groups = list(ours.updates(0))[:UPDATES]
    batches = [theirs(ours.codec.collate(features)) for group in groups for features in group]
    options = hf.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=UPDATES,
        gradient_accumulation_steps=accumulation,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=2,
        max_grad_norm=recipe.max_grad_norm or 0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    peer = Recording(batches, model=reference.model, args=options, train_dataset=batches)
    peer.train()
    parts = [peer.losses[i : i + accumulation] for i in range(0, len(peer.losses), accumulation)]
    # The trainer passes the number of targets in the update. Language models divide by it; models that classify average over
    # their own rows, though the trainer expects it of them, too: with accumulation it trains on the sum (reports/upstream).
    return ours.run(silent()).losses, [sum(part) for part in parts]


# Question answering goes row by row: transformers lets padding be an answer and we do not, so batches must have none.
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")  # transformers on its own encoder-decoder
@pytest.mark.parametrize(
    ("cell_id", "batch", "accumulation"),
    [
        ("bert_sa_sft", 4, 1),
        ("bert_sa_qlora", 4, 1),
        ("gpt2_sa_lora", 4, 1),
        ("bert_qa_sft", 1, 1),
        ("gpt2_qa_lora", 1, 1),
        ("bert_sum_sft", 4, 1),
        ("t5_sum_sft", 4, 1),
        ("gpt2_sum_sft", 4, 1),
        ("gpt2_sum_sft", 2, 2),
    ],
)
def test_ten_updates_have_the_losses_of_transformers_trainer(cell_id, batch, accumulation, tmp_path):
    ours, theirs = ours_and_theirs(cell_id, tmp_path, batch, accumulation)
    assert len(ours) == len(theirs) == UPDATES
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours[0] != pytest.approx(ours[-1], abs=1e-3)  # both moved, and alike
