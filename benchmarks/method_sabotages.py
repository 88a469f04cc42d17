"""How methods go wrong without a word: another method under a label.

All but the last two are what peft 0.21.2 does when it is asked.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from tunegrid.codecs.base import Codec
from tunegrid.grid.cells import Cell
from tunegrid.grid.methods import NF4, Adapting, Lora
from tunegrid.grid.variants import AdaLora, Pissa


def kasa_over_nf4(cell: Cell, folder: Path) -> Cell:
    """KaSA's singular values are never made for packed layers: what trains is plain LoRA."""
    options = {"kasa_config": asdict(peft.KasaConfig())}
    return replace(cell, method=Lora(id="qkasa", name="KaSA over NF4", options=options, quantization=NF4))


def monteclora_over_nf4(cell: Cell, folder: Path) -> Cell:
    """MonteCLoRA's sampler is never made for packed layers, either."""
    options = {"monteclora_config": asdict(peft.MontecloraConfig())}
    return replace(cell, method=Lora(id="qmonteclora", name="MonteCLoRA over NF4", options=options, quantization=NF4))


@dataclass(frozen=True, kw_only=True)
class OSF(Adapting):
    """Orthogonal subspace fine-tuning."""

    def targets(self, cell: Any) -> tuple[str, ...]:
        """GPT-2's attention."""
        return ("c_attn",)

    def peft_config(self, cell: Any, base: Any) -> Any:
        """PEFT's config."""
        return peft.OSFConfig(target_modules=["c_attn"], modules_to_save=base.modules_to_save)


def osf_on_conv1d(cell: Cell, folder: Path) -> Cell:
    """OSF passes GPT-2's layers by, and says nothing."""
    return replace(cell, method=OSF(id="osf", name="OSF"))


@dataclass(frozen=True, kw_only=True)
class TokenRows(Adapting):
    """Rows of the embedding train."""

    def peft_config(self, cell: Any, base: Any) -> Any:
        """PEFT's config."""
        return peft.TrainableTokensConfig(token_indices=[1, 2, 3], target_modules=["word_embeddings"])


def token_rows_alone(cell: Cell, folder: Path) -> Cell:
    """PEFT trains the rows; the new head stays frozen at its random start."""
    return replace(cell, method=TokenRows(id="tokens", name="trainable tokens"))


def rewritten_base(cell: Cell, folder: Path) -> Cell:
    """PiSSA takes the adapter's start out of the base, under LoRA's label."""
    return replace(cell, method=Pissa(id="lora", name="LoRA", options={"init_lora_weights": "pissa"}))


def drawn_before_the_seed(model: nn.Module, folder: Path) -> nn.Module:
    """Adapters are drawn while the generator still is wherever the process left it."""
    generator = torch.Generator()
    generator.seed()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    return model


def penalty_in_the_loss(codec: Codec, folder: Path) -> Codec:
    """AdaLoRA's penalty is added to the loss that is reported, as PEFT's own forward pass does when it is given labels."""

    class Penalized(type(codec)):
        def loss(self, model: nn.Module, batch: Any) -> Any:
            loss, penalty = super().loss(model, batch), AdaLora.penalty(self.cell.method, model)
            return loss + penalty * self.targets(batch)

    return Penalized(codec.cell, codec.tokenizer)
