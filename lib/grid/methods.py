"""Methods: what of a model trains, and over which base. To add one, write a `Method` and put it into `METHODS`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the frozen base is stored; the fields are `BitsAndBytesConfig`'s."""

    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to fine-tune.

    Attributes:
        adapts: low-rank adapters train and the base is frozen; otherwise every parameter trains.
        quantization: how the frozen base is stored; None keeps it as loaded.
    """

    id: str
    name: str
    adapts: bool
    quantization: Quantization | None = None


# NF4 with double quantization is what QLoRA was published with (Dettmers et al. 2023); bitsandbytes' own default is FP4.
NF4 = Quantization(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16")

LORA = Method(id="lora", name="LoRA", adapts=True)
QLORA = Method(id="qlora", name="QLoRA", adapts=True, quantization=NF4)
SFT = Method(id="sft", name="SFT", adapts=False)

METHODS = (LORA, QLORA, SFT)
