"""transformers: Trainer adds up accumulated losses that it should average.

The models affected take **kwargs and divide a batch's loss by the batch's own number of rows.
Prints the gradient norm of one update: for 8 rows in one batch, and for the same rows in 4
accumulated batches. The two should be equal. Exits with 1 if the fault shows, with 0 if it does
not.
"""

import sys
import tempfile
from typing import Any

import torch
import transformers as hf


class Peer(hf.Trainer):
    """A Trainer that keeps the gradient's norm before the gradient is clipped or used."""

    norm = 0.0

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """Run Trainer's step and keep the norm; an update's last step sees the whole gradient."""
        loss = super().training_step(*args, **options)
        self.norm = float(
            torch.stack(
                [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
            ).norm()
        )
        return loss


def norm_of_an_update(kind: type, row: dict[str, Any], batch: int, accumulation: int) -> float:
    """The norm of the gradient over 8 equal rows."""
    torch.manual_seed(0)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = hf.BertConfig(**sizes, **none)
    with tempfile.TemporaryDirectory() as folder:
        options = hf.TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            max_grad_norm=0.0,
        )
        peer = Peer(model=kind(config), args=options, train_dataset=[row] * 8)
        peer.train()
    return peer.norm


print(f"transformers {hf.__version__}, torch {torch.__version__}")
ids = {"input_ids": [2, 7, 11, 13, 3], "attention_mask": [1] * 5}
cases = {
    hf.BertForQuestionAnswering: ids | {"start_positions": 1, "end_positions": 2},
    hf.BertForSequenceClassification: ids | {"labels": 1},
}
faulty = False
for kind, row in cases.items():
    whole, parts = norm_of_an_update(kind, row, 8, 1), norm_of_an_update(kind, row, 2, 4)
    print(
        f"{kind.__name__}: gradient {whole:.4f} of one batch, {parts:.4f} of four accumulated: {parts / whole:.2f} times"
    )
    faulty |= abs(parts / whole - 1) > 0.01
sys.exit(int(faulty))
