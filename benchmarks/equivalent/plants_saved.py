"""Plants of options, saving and merging: each breaks the row of the table that names it."""

from dataclasses import replace
from typing import Any

import torch
from peft import peft_model
from peft.tuners import tuners_utils
from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.utils import merge_utils, save_and_load
from peft.utils import other as peft_other
from transformers import PreTrainedTokenizerBase, modeling_utils

from tunegrid.run import stepper

# Options


def loses(option: str, value: Any) -> Any:
    """A plant by which an option of the recipe never reaches what makes the steps."""

    def plant(monkeypatch: Any) -> None:
        init = stepper.Stepper.__init__

        def without(self: Any, cell: Any, *args: Any, **options: Any) -> None:
            init(self, replace(cell, recipe=replace(cell.recipe, **{option: value})), *args, **options)

        monkeypatch.setattr(stepper.Stepper, "__init__", without)

    plant.__name__, plant.__doc__ = f"loses_{option}", f"{option} is {value}, whatever the recipe says."
    return plant


def betas_are_lost(monkeypatch: Any) -> None:
    """AdamW keeps its own betas, whatever it is given."""
    init = torch.optim.AdamW.__init__
    monkeypatch.setattr(
        torch.optim.AdamW, "__init__", lambda self, params, betas=None, **options: init(self, params, **options)
    )


# Saving


def heads_are_not_saved(monkeypatch: Any) -> None:
    """The file of an adapter has the heads beside it as they were before training."""

    def untrained(self: Any, adapter: str, states: Any) -> Any:
        return self.original_module.state_dict() if adapter in self._adapters else {}

    monkeypatch.setattr(peft_other.ModulesToSaveWrapper, "adapter_state_dict", untrained)


def token_rows_are_not_saved(monkeypatch: Any) -> None:
    """The file of an adapter has the rows of new tokens as they were before training."""
    collect = peft_model.get_peft_model_state_dict

    def untrained(*args: Any, **options: Any) -> Any:
        states = collect(*args, **options)
        return {name: torch.zeros_like(t) if "trainable_tokens" in name else t for name, t in states.items()}

    monkeypatch.setattr(peft_model, "get_peft_model_state_dict", untrained)


def files_hold_halves(monkeypatch: Any) -> None:
    """Weights are rounded to bf16 on their way into a file."""
    for module, name in ((modeling_utils, "safe_save_file"), (peft_model, "safe_save_file")):
        save = getattr(module, name)

        def rounded(tensors: Any, *args: Any, save: Any = save, **options: Any) -> None:
            halves = {key: t.bfloat16().to(t.dtype) if t.is_floating_point() else t for key, t in tensors.items()}
            save(halves, *args, **options)

        monkeypatch.setattr(module, name, rounded)


def tokenizer_forgets_its_sides(monkeypatch: Any) -> None:
    """A loaded tokenizer pads and cuts on the right, whatever its files say."""
    load = PreTrainedTokenizerBase._from_pretrained.__func__

    def forgetful(kind: Any, *args: Any, **options: Any) -> Any:
        tokenizer = load(kind, *args, **options)
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return tokenizer

    monkeypatch.setattr(PreTrainedTokenizerBase, "_from_pretrained", classmethod(forgetful))


def files_hold_every_adapter(monkeypatch: Any) -> None:
    """The file of an adapter is not cleaned of the others."""
    monkeypatch.setattr(save_and_load, "_filter_state_dict_for_adapter_name", lambda states, unwanted: states)


# Merging


def merged_without_scale(monkeypatch: Any) -> None:
    """What is merged is one percent too much of the adapter, whatever it is made of."""
    merge = tuners_utils.BaseTuner.merge_adapter

    def more(self: Any, *args: Any, **options: Any) -> None:
        with torch.no_grad():
            own = [p for name, p in self.model.named_parameters() if self.prefix in name and p.requires_grad]
            for parameter in own:
                parameter.mul_(1.01)
            merge(self, *args, **options)
            for parameter in own:
                parameter.div_(1.01)

    monkeypatch.setattr(tuners_utils.BaseTuner, "merge_adapter", more)


def unmerging_takes_off_half(monkeypatch: Any) -> None:
    """Unmerging takes off less than merging added."""
    delta = lora.Linear.get_delta_weight
    merge, unmerge = lora.Linear.merge, lora.Linear.unmerge

    def halved(self: Any) -> None:
        monkeypatch.setattr(lora.Linear, "get_delta_weight", lambda self, adapter: delta(self, adapter) / 2)
        try:
            unmerge(self)
        finally:
            monkeypatch.setattr(lora.Linear, "get_delta_weight", delta)

    monkeypatch.setattr(lora.Linear, "merge", merge)
    monkeypatch.setattr(lora.Linear, "unmerge", halved)


def safe_merge_adds_twice(monkeypatch: Any) -> None:
    """The copy that `safe_merge` looks at has the adapter in it already."""
    merge = lora.Linear.merge

    def twice(self: Any, safe_merge: bool = False, adapter_names: Any = None) -> None:
        if safe_merge:
            for name in adapter_names or self.active_adapters:
                self.get_base_layer().weight.data += self.get_delta_weight(name)
        merge(self, safe_merge, adapter_names)

    monkeypatch.setattr(lora.Linear, "merge", twice)


def safe_merge_looks_at_nothing(monkeypatch: Any) -> None:
    """`safe_merge` merges whatever it finds."""
    merge = lora.Linear.merge
    monkeypatch.setattr(
        lora.Linear, "merge", lambda self, safe_merge=False, adapter_names=None: merge(self, False, adapter_names)
    )


def only_the_first_named_is_merged(monkeypatch: Any) -> None:
    """Of several adapters that are to be merged, a layer takes the first."""
    merge = lora.Linear.merge

    def first(self: Any, safe_merge: bool = False, adapter_names: Any = None) -> None:
        merge(self, safe_merge, adapter_names and adapter_names[:1])

    monkeypatch.setattr(lora.Linear, "merge", first)


def the_active_adapter_answers_for_all(monkeypatch: Any) -> None:
    """Rows of a batch that name an adapter all get the first one."""
    from peft import PeftModel

    hooks = PeftModel._enable_peft_forward_hooks

    def first_for_all(self: Any, *args: Any, **options: Any) -> Any:
        if names := options.get("adapter_names"):
            options["adapter_names"] = [names[0]] * len(names)
        return hooks(self, *args, **options)

    monkeypatch.setattr(PeftModel, "_enable_peft_forward_hooks", first_for_all)


# Adapters with weights


def weights_are_lost(monkeypatch: Any) -> None:
    """Two adapters are combined with weights of 1, whatever they were to have."""
    combine = lora_model.LoraModel.add_weighted_adapter

    def evenly(self: Any, adapters: Any, weights: Any, *args: Any, **options: Any) -> None:
        combine(self, adapters, [1.0] * len(weights), *args, **options)

    monkeypatch.setattr(lora_model.LoraModel, "add_weighted_adapter", evenly)


def signs_are_lost(monkeypatch: Any) -> None:
    """A weight below 0 counts as one above it."""
    combine = lora_model.LoraModel.add_weighted_adapter

    def unsigned(self: Any, adapters: Any, weights: Any, *args: Any, **options: Any) -> None:
        combine(self, adapters, [abs(weight) for weight in weights], *args, **options)

    monkeypatch.setattr(lora_model.LoraModel, "add_weighted_adapter", unsigned)


def one_value_survives(monkeypatch: Any) -> None:
    """At least the largest value is kept, whatever the density."""
    prune = merge_utils.magnitude_based_pruning
    monkeypatch.setattr(
        merge_utils, "magnitude_based_pruning", lambda tensor, density: prune(tensor, max(density, 1 / tensor.numel()))
    )
