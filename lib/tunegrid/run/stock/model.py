"""The model of the stock path: AutoModel, bitsandbytes' config, PEFT's helpers."""

from dataclasses import asdict
from typing import Any

import peft
import torch
import transformers as hf

from tunegrid.grid.methods import Adapting
from tunegrid.grid.tasks import Problem
from tunegrid.run.build import BASE_TYPES, base_of
from tunegrid.run.stock.start import Start

TASK_TYPES = {Problem.CLASSIFY: peft.TaskType.SEQ_CLS, Problem.EXTRACT: peft.TaskType.QUESTION_ANS}


def quantization_of(start: Start) -> dict[str, Any]:
    """The option that `from_pretrained` and pipelines take; none where the base is not packed."""
    if start.cell.quantization is None:
        return {}
    kept = [*start.cell.head.new_modules, *start.cell.head.tied_modules] or None
    return {
        "quantization_config": hf.BitsAndBytesConfig(
            load_in_4bit=True, llm_int8_skip_modules=kept, **asdict(start.cell.quantization)
        )
    }


def base_model(start: Start, device: torch.device) -> Any:
    """The base as AutoModel loads it from the folder; one that is packed goes to its device at once."""
    placed = {"device_map": {"": device}} if start.cell.quantization else {}
    dtype = BASE_TYPES[start.cell.backbone.dtype] if start.cell.method.adapts else torch.float32
    return start.auto.from_pretrained(start.folder, dtype=dtype, **quantization_of(start), **placed, trust_remote_code=False)


def stock_model(start: Start, tokenizer: Any, device: torch.device) -> Any:
    """The model that Trainer is given: for an adapter, PEFT's over the base."""
    cell, model = start.cell, base_model(start, device)
    if not isinstance(cell.method, Adapting):
        return model
    if cell.quantization:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=cell.recipe.gradient_checkpointing)
    config = cell.method.peft_config(cell, base_of(cell, tokenizer, model))
    config.task_type = task_type(model, cell.task.problem)
    return peft.get_peft_model(model, config)


def task_type(model: Any, problem: Problem) -> Any:
    """PEFT's name of what the model does."""
    generates = peft.TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else peft.TaskType.CAUSAL_LM
    return TASK_TYPES.get(problem, generates)
