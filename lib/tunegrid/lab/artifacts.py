"""Adapters that an older PEFT saved, with what the models answered: the installed one must load them and answer alike.

`python -m tunegrid.lab record_adapters` writes them to `reports/artifacts`. Each is a method of the zoo over a micro backbone.
All that trains was moved by noise, so that no tensor is where its method starts it: a file that is read otherwise, a scale that
is applied otherwise and a product that is computed otherwise all change the answers.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tunegrid import ROOT
from tunegrid.errors import InputError, first_line
from tunegrid.grid.adapters import OFT, PrefixTuning, PromptTuning, Vera
from tunegrid.grid.cells import Cell, study
from tunegrid.grid.checkpoints import checkpoint_of
from tunegrid.grid.methods import LORA, NF4, QLORA, Base, Method
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.recipes import Adapter
from tunegrid.grid.zoo import METHODS, TARGETS
from tunegrid.machine import versions
from tunegrid.run.build import build, keep_packed_layers, load_base, load_tokenizer
from tunegrid.run.probe import distance

ARTIFACTS = ROOT / "reports" / "artifacts"
INDEX, OUTPUTS = "adapters.json", "outputs.safetensors"
CPU = torch.device("cpu")
NOISE = 0.1  # standard deviation of what is added to every number that trains
TOKENS, NEW_TOKENS = 12, 8  # of an input, and of a text
OWN = {method.id: method for method in METHODS}


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far answers may lie apart, in units of the largest logit, and why."""

    apart: float
    reason: str


FULL = Tolerance(apart=1e-4, reason="fp32: sums of 128 to 512 products in another order; CPUs differ by 7e-6 at most")
PACKED = Tolerance(apart=2e-2, reason="NF4 layers compute in bf16, of 8 bits, on some CPUs: 4e-3 at most on the quick cells")


@dataclass(frozen=True, kw_only=True)
class SeriesOFT(OFT):
    """OFT with PEFT's default, a series in the place of an inverse, which is what most files hold."""

    def peft_config(self, cell: Cell, base: Base) -> Any:
        """PEFT's config."""
        config = super().peft_config(cell, base)
        config.use_cayley_neumann = True
        return config


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An adapter that is recorded.

    Attributes:
        on: the backbone and task, as "bert_sa"; what they lack of a head is random and saved with the adapter.
        method: of the zoo, with small settings.
        writes: its text is recorded, too, where the model generates.
        known: a difference that is known, with whose change it is and since when; None: answers must be alike.
    """

    id: str
    on: str
    method: Method
    writes: bool = True
    known: str | None = None

    @property
    def cell(self) -> Cell:
        """The cell, with a rank of 2."""
        like = study().cell(f"{self.on}_qlora", QUICK_PROFILE)
        adapter = Adapter(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=TARGETS[like.backbone.id])
        head = like.head if getattr(self.method, "trains_token_rows", False) else replace(like.head, new_token=None)
        return replace(like, method=self.method, head=head, recipe=replace(like.recipe, adapter=adapter))

    @property
    def tolerance(self) -> Tolerance:
        """How far its answers may lie apart."""
        return PACKED if self.method.quantization else FULL


RECORDED: tuple[Artifact, ...] = (
    Artifact(id="lora", on="gpt2_sum", method=LORA),  # with the row of a new token, and GPT-2's transposed layers
    Artifact(id="qlora", on="bert_qa", method=QLORA),
    Artifact(id="rslora", on="bert_sa", method=OWN["rslora"]),
    Artifact(id="dora", on="gpt2_sa", method=OWN["dora"]),
    Artifact(id="pissa", on="bert_sa", method=OWN["pissa"]),
    Artifact(id="adalora", on="bert_sa", method=OWN["adalora"]),
    Artifact(id="ia3", on="gpt2_sa", method=OWN["ia3"]),
    Artifact(id="vera", on="bert_sa", method=Vera(id="vera", name="VeRA", rank=8)),
    Artifact(id="oft", on="bert_sa", method=OFT(id="oft", name="OFT", block_size=8)),
    Artifact(id="oftseries", on="bert_sa", method=SeriesOFT(id="oftseries", name="OFT by a series", block_size=8)),
    Artifact(id="ln", on="t5_sa", method=OWN["ln"]),
    # PEFT before 0.20 puts prompts in front of encoder-decoders by a method that transformers 5.24 has no more. What GPT-2
    # writes behind them is a known fault: reports/upstream/peft_prompts.py.
    Artifact(id="prompt", on="gpt2_sum", method=PromptTuning(id="prompt", name="prompt tuning", tokens=4), writes=False),
    Artifact(id="prefix", on="gpt2_sum", method=PrefixTuning(id="prefix", name="prefix tuning", tokens=4), writes=False),
    Artifact(id="qdora", on="bert_sa", method=OWN["qdora"]),
    Artifact(id="qoft", on="bert_sa", method=OFT(id="qoft", name="QOFT", quantization=NF4, block_size=8)),
    Artifact(id="qia3", on="bert_sa", method=OWN["qia3"]),
)
NOT_RECORDED: Mapping[str, str] = {
    "sft": "it has no adapter",
    "bitfit": "it has no adapter: PEFT does not know it",
    "loraplus": "what it saves is LoRA's",
    "lorafa": "what it saves is LoRA's",
    "qpissa": "PEFT draws PiSSA's start from weights in full precision, and these are packed",
}


@dataclass(kw_only=True)
class Answers:
    """What a model answers.

    Attributes:
        logits: of the last token of each row where there is one per token; by name.
        text: greedy tokens of the first row; none where the model does not generate.
    """

    logits: dict[str, Tensor]
    text: list[int] = field(default_factory=list)

    def apart(self, other: "Answers") -> float:
        """The largest difference of logits, in units of the largest logit."""
        return max(distance(self.logits[name], other.logits[name]) for name in self.logits)


def answers(model: Any, cell: Cell, *, writes: bool = True) -> Answers:
    """Of two rows of fixed tokens, of which the second is shorter where the model pads."""
    model.eval()
    vocabulary, generates = len(load_tokenizer(cell)), cell.head.layout is not None
    ids = torch.tensor([[(31 * row + 17 * place + 5) % vocabulary for place in range(TOKENS)] for row in range(2)])
    ids[0, TOKENS // 2] = vocabulary - 1  # where a token is new, it is the last one
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if not generates:
        mask[1, TOKENS - 3 :] = 0
    elif model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, : TOKENS // 2]
    with torch.no_grad():
        output = model(**inputs)
        named = {name: getattr(output, name, None) for name in ("logits", "start_logits", "end_logits")}
        logits = {name: one[:, -1] if generates else one for name, one in named.items() if one is not None}
        text = _text(model, ids[:1]) if generates and writes else []
    return Answers(logits={name: one.float().contiguous() for name, one in logits.items()}, text=text)


def _text(model: Any, ids: Tensor) -> list[int]:
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    text: list[int] = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    return text


# Recording


def record(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """Save the adapter and its answers with the PEFT that is imported; what the index says of it. Raises what PEFT raises."""
    cell = artifact.cell
    model: Any = build(cell, load_tokenizer(cell), CPU)
    move(model)
    model.peft_config["default"].base_model_name_or_path = cell.backbone.micro
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, that it saves no base
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a model card without content
    given = answers(model, cell, writes=artifact.writes)
    save_file(given.logits, folder / OUTPUTS)
    return {
        "on": artifact.on,
        "text": given.text,
        "changes": answers_without(model, cell).apart(given),
        "backbone": digest_of(cell),
    }


def answers_without(model: Any, cell: Cell) -> Answers:
    """Of the same model without what the adapter changes in its layers."""
    with model.disable_adapter():
        return answers(model, cell, writes=False)


def move(model: nn.Module) -> None:
    """Add noise to all that trains."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))


def digest_of(cell: Cell) -> str:
    """Sixteen hex digits over the weights of the micro backbone."""
    source, _ = checkpoint_of(cell.backbone, cell.profile)
    weights = Path(source) / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def record_all(folder: Path, commit: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Save every adapter that the imported PEFT can make below `folder`; the index, which says why others are missing."""
    recorded, missing = dict[str, Any](), dict[str, str]()
    for artifact in RECORDED:
        try:
            recorded[artifact.id] = record(artifact, folder / artifact.id)
        except Exception as error:  # whatever an older release raises where it has no such method
            missing[artifact.id] = first_line(error)
        tell(f"{artifact.id}: {missing.get(artifact.id, 'recorded')}")
    index = {"versions": versions(), "commit": commit, "adapters": recorded, "missing": missing}
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return index


# Serving


@dataclass(frozen=True, kw_only=True)
class Served:
    """How a recorded adapter answers when the imported PEFT serves it.

    Attributes:
        apart: from what was recorded, in units of the largest logit.
        changes: how far the adapter took the answers when it was recorded.
        text: whether the generated tokens are those that were recorded.
    """

    apart: float
    changes: float
    text: bool


def served(artifact: Artifact, release: Path) -> Served:
    """Load an adapter that an older release recorded; raises InputError where it was recorded over another backbone."""
    cell = artifact.cell
    index = json.loads((release / INDEX).read_text(encoding="utf-8"))["adapters"][artifact.id]
    if index["backbone"] != digest_of(cell):
        raise InputError(
            f"{artifact.id} was recorded over other weights of {cell.backbone.micro}: "
            "python -m tunegrid.lab record_adapters records all anew"
        )
    hf.set_seed(0)
    base = load_base(cell, load_tokenizer(cell), CPU)
    keep_packed_layers(base)  # as when it was recorded: bitsandbytes repacks layers where PEFT then reads them wrongly
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, on Conv1D and on fields that a later release has dropped
        model = peft.PeftModel.from_pretrained(base, release / artifact.id)
    given = answers(model, cell, writes=artifact.writes)
    recorded = Answers(logits=load_file(release / artifact.id / OUTPUTS), text=index["text"])
    return Served(apart=given.apart(recorded), changes=index["changes"], text=given.text == recorded.text)
