"""What must hold in any release of the libraries, on paths that users take and our cells do not, each on a small input.

Streams, loaders, collators, saved tokenizers, other adapters. Each invariant says in its first line what holds, and returns
whether it does. Behind them stand bugs of the way from files to batches, put back: `libraries` has the rows.
"""

import functools
import json
import tempfile
import warnings
from pathlib import Path

import accelerate
import bitsandbytes as bnb
import datasets
import peft.peft_model
import torch
import transformers as hf
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from datasets import distributed
from peft import LoraConfig, get_peft_model
from peft.tuners.oft.layer import OFTRotationModule
from peft.utils import merge_utils
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from tunegrid.grid.recipes import FIXTURES

DRAWS = 4096  # of a coin, whose share of heads is then within 0.05 of the truth by six standard errors
GPT2 = FIXTURES / "backbones" / "gpt2-micro"
IGNORED = -100  # a label that no loss counts


# Streams and loaders


def stream(rows=8, shards=4):
    """Rows with an id, in several shards."""
    return datasets.Dataset.from_dict({"id": list(range(rows))}).to_iterable_dataset(num_shards=shards)


def formatted_rows_come_once():
    """A formatted stream gives each row once, if it knows its features or not."""
    untyped = stream().with_format("arrow")
    untyped._info.features = None
    return all([int(row["id"][0].as_py()) for row in rows] == [*range(8)] for rows in (stream().with_format("arrow"), untyped))


def workers_shuffle_by_themselves():
    """Two workers give each row once, each in an order of its own, and the same again from the same seed."""

    def orders():
        rows = stream(64, 2).shuffle(seed=0, buffer_size=32)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*worker processes in total")  # torch's, on a machine of one core
            ids = [int(row["id"]) for row in DataLoader(rows, batch_size=None, num_workers=2)]
        return [[i % 32 for i in ids if i // 32 == shard] for shard in (0, 1)]

    first, second = orders()
    return sorted(first) == sorted(second) == list(range(32)) and first != second and [first, second] == orders()


def nodes_share_all_rows():
    """Split by node, and each part by node again, every row is some node's, and of the one that its place says."""
    split = distributed.split_dataset_by_node
    parts = [split(split(stream(), outer, 2), inner, 2) for outer in (0, 1) for inner in (0, 1)]
    flat = [split(stream(), node, 4) for node in range(4)]
    return [[row["id"] for row in part] for part in parts] == [[row["id"] for row in part] for part in flat]


def late_columns_are_read():
    """A key that only the last line of a JSON lines file has is a column."""
    rows = [*({"text": "x" * 999} for _ in range(64)), {"text": "x", "label": 1}]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return "label" in datasets.Dataset.from_json(str(path), cache_dir=folder).column_names


def epochs_reach_samplers():
    """`set_epoch` of a loader on one of several ranks reaches the sampler below."""
    sampler = RandomSampler(range(4))
    sampler.epoch, sampler.set_epoch = 0, functools.partial(setattr, sampler, "epoch")
    shard = BatchSamplerShard(BatchSampler(sampler, 2, False), num_processes=2, process_index=0)
    DataLoaderShard(range(4), batch_sampler=shard).set_epoch(3)
    return sampler.epoch == 3


def skipping_keeps_the_iteration():
    """A loader that skips batches is in the iteration of the one that it comes from."""
    accelerate.PartialState(cpu=True)
    loader = DataLoaderShard(list(range(4)))
    loader.iteration = 2
    return skip_first_batches(loader, 1).iteration == 2


def ranks_share_samples():
    """`split_between_processes` gives each sample to one rank, with fewer samples than ranks, too, which may get none."""
    state, shares = accelerate.PartialState(cpu=True), []
    before = dict(state.__dict__)
    try:
        for rank in range(3):
            state.__dict__.update(num_processes=3, process_index=rank)
            with state.split_between_processes(["a", "b"]) as share:
                shares.append(list(share))
    finally:
        state.__dict__.update({name: before[name] for name in ("num_processes", "process_index")})
    return shares == [["a"], ["b"], []]


# Collators, optimizers, tokenizers


def ends_are_learned():
    """The language-modelling collator counts an end token, where another one pads."""
    tokenizer = hf.AutoTokenizer.from_pretrained(GPT2, trust_remote_code=False)
    tokenizer.pad_token = "!"
    rows = [{"input_ids": [5, 6, tokenizer.eos_token_id]}, {"input_ids": [5, tokenizer.eos_token_id]}]
    labels = hf.DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"].tolist()
    return labels == [[5, 6, tokenizer.eos_token_id], [5, tokenizer.eos_token_id, IGNORED]]


def layouts_step_alike():
    """The 8-bit AdamW moves a transposed weight as it moves the same weight row by row."""
    torch.manual_seed(0)
    values, gradient = torch.randn(64, 128), torch.randn(64, 128)
    row_major, column_major = values.clone(), values.T.contiguous().T
    for weight in (row_major, column_major):
        weight.requires_grad_()
    row_major.grad, column_major.grad = gradient.clone(), gradient.T.contiguous().T
    bnb.optim.AdamW8bit([row_major, column_major], lr=0.1).step()
    return torch.allclose(row_major, column_major)


# Adapters


def embeddings_are_saved():
    """What is saved of an adapted embedding does not depend on how `target_modules` names it: in a list, or by a pattern."""

    def keys(targets):
        size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=16, **size))
        with warnings.catch_warnings(action="ignore"):
            return sorted(peft.peft_model.get_peft_model_state_dict(get_peft_model(model, LoraConfig(target_modules=targets))))

    return keys(["embed_tokens"]) == keys(r".*\.embed_tokens")


def dropped_deltas_keep_their_mean():
    """Of a tensor of ones, what DARE keeps has the mean 1."""
    torch.manual_seed(0)
    values = merge_utils.prune(torch.ones(DRAWS), density=0.5, method="random", rescale=True)
    return abs(float(values.mean()) - 1) < 0.1


def rotations_are_cayleys():
    """OFT turns a row x to x (I - S)(I + S)^-1, S skew with the weights above its diagonal, as of PEFT 0.18."""
    module = OFTRotationModule(1, 3, 3, 3, use_cayley_neumann=False)
    weights = (0.1, -0.2, 0.3)
    module.weight.data = torch.tensor([weights])
    skew, unit = torch.zeros(3, 3), torch.eye(3)
    skew[0, 1], skew[0, 2], skew[1, 2] = weights
    skew = skew - skew.T
    row = torch.tensor([[1.0, 2.0, 3.0]])
    return torch.allclose(module(row), row @ (unit - skew) @ torch.linalg.inv(unit + skew), atol=1e-5)


def packed_products_keep_no_input():
    """Nothing that a product with a 4-bit weight keeps for the backward pass is as large as its input."""
    layer = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32).to("cpu")
    fields = vars(layer(torch.ones(128, 64, requires_grad=True)).grad_fn).values()
    return all(value.numel() < 128 * 64 for value in fields if isinstance(value, torch.Tensor))


INVARIANTS = {
    check.__name__: check
    for check in (
        *(layouts_step_alike, embeddings_are_saved),
        *(formatted_rows_come_once, workers_shuffle_by_themselves, nodes_share_all_rows, late_columns_are_read),
        *(epochs_reach_samplers, skipping_keeps_the_iteration, ranks_share_samples),
        *(ends_are_learned, dropped_deltas_keep_their_mean),
        *(rotations_are_cayleys, packed_products_keep_no_input),
    )
}
