"""Invariants that every release of the libraries must satisfy, checked on small inputs.

They cover code that users may run but cells do not, such as streaming, data loaders and collators.
Each check's docstring states what must hold; the check returns whether it does.
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

# Coin tosses: six standard errors of the share of heads are less than 0.05.
DRAWS = 4096
GPT2 = FIXTURES / "backbones" / "gpt2-micro"
IGNORED = -100  # a label that no loss counts


# Streams and loaders


def stream(rows: int = 8, shards: int = 4) -> datasets.IterableDataset:
    """A streaming data set of numbered rows in several shards."""
    table = datasets.Dataset.from_dict({"id": list(range(rows))})
    return table.to_iterable_dataset(num_shards=shards)


def formatted_rows_come_once() -> bool:
    """A formatted stream yields each row once, whether or not its features are known."""
    typed = stream().with_format("arrow")
    untyped = stream().with_format("arrow")
    untyped._info.features = None

    def ids(rows: datasets.IterableDataset) -> list[int]:
        return [int(row["id"][0].as_py()) for row in rows]

    return ids(typed) == ids(untyped) == list(range(8))


def workers_shuffle_by_themselves() -> bool:
    """Two workers yield every row once, each in its own order; a seed reproduces both orders."""

    def orders() -> list[list[int]]:
        rows = stream(64, 2).shuffle(seed=0, buffer_size=32)
        with warnings.catch_warnings():
            # torch warns on a machine with one core.
            warnings.filterwarnings("ignore", ".*worker processes in total")
            ids = [int(row["id"]) for row in DataLoader(rows, batch_size=None, num_workers=2)]
        first = [i for i in ids if i < 32]
        second = [i - 32 for i in ids if i >= 32]
        return [first, second]

    first, second = orders()
    if sorted(first) != list(range(32)) or sorted(second) != list(range(32)):
        return False
    return first != second and [first, second] == orders()


def nodes_share_all_rows() -> bool:
    """Splitting a stream between 2 nodes twice gives the same shares as splitting it among 4."""
    split = distributed.split_dataset_by_node
    for outer in (0, 1):
        for inner in (0, 1):
            twice = split(split(stream(), outer, 2), inner, 2)
            once = split(stream(), 2 * outer + inner, 4)
            if [row["id"] for row in twice] != [row["id"] for row in once]:
                return False
    return True


def late_columns_are_read() -> bool:
    """A key that occurs only in the last line of a JSON lines file becomes a column."""
    rows = [{"text": "x" * 999}] * 64 + [{"text": "x", "label": 1}]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        table = datasets.Dataset.from_json(str(path), cache_dir=folder)
        return "label" in table.column_names


def epochs_reach_samplers() -> bool:
    """If a loader's batches are sharded across ranks, `set_epoch` still reaches the sampler."""
    sampler = RandomSampler(range(4))
    sampler.epoch = 0
    sampler.set_epoch = functools.partial(setattr, sampler, "epoch")
    shard = BatchSamplerShard(BatchSampler(sampler, 2, False), num_processes=2, process_index=0)
    DataLoaderShard(range(4), batch_sampler=shard).set_epoch(3)
    return sampler.epoch == 3


def skipping_keeps_the_iteration() -> bool:
    """`skip_first_batches` keeps the iteration number of the original loader."""
    accelerate.PartialState(cpu=True)
    loader = DataLoaderShard(list(range(4)))
    loader.iteration = 2
    return skip_first_batches(loader, 1).iteration == 2


def ranks_share_samples() -> bool:
    """`split_between_processes` gives each sample to exactly one rank; surplus ranks get none."""
    state = accelerate.PartialState(cpu=True)
    shares = []
    before = dict(state.__dict__)
    try:
        for rank in range(3):
            state.__dict__.update(num_processes=3, process_index=rank)
            with state.split_between_processes(["a", "b"]) as share:
                shares.append(list(share))
    finally:
        state.__dict__.update(
            num_processes=before["num_processes"],
            process_index=before["process_index"],
        )
    return shares == [["a"], ["b"], []]


# Collators, optimizers, tokenizers


def ends_are_learned() -> bool:
    """The language-modelling collator keeps end tokens as labels if padding uses another token."""
    tokenizer = hf.AutoTokenizer.from_pretrained(GPT2, trust_remote_code=False)
    tokenizer.pad_token = "!"
    end = tokenizer.eos_token_id
    rows = [{"input_ids": [5, 6, end]}, {"input_ids": [5, end]}]
    batch = hf.DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)
    return bool(batch["labels"].tolist() == [[5, 6, end], [5, end, IGNORED]])


def layouts_step_alike() -> bool:
    """8-bit AdamW updates a weight in column-major order just as it does in row-major order."""
    torch.manual_seed(0)
    values = torch.randn(64, 128)
    gradient = torch.randn(64, 128)
    row_major = values.clone().requires_grad_()
    row_major.grad = gradient.clone()
    column_major = values.T.contiguous().T.requires_grad_()
    column_major.grad = gradient.T.contiguous().T
    bnb.optim.AdamW8bit([row_major, column_major], lr=0.1).step()
    return torch.allclose(row_major, column_major)


# Adapters


def embeddings_are_saved() -> bool:
    """The same tensors are saved whether a list or a pattern selects an embedding to adapt."""

    def keys(targets: list[str] | str) -> list[str]:
        config = hf.LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
        base = hf.LlamaForCausalLM(config)
        with warnings.catch_warnings(action="ignore"):
            model = get_peft_model(base, LoraConfig(target_modules=targets))
            return sorted(peft.peft_model.get_peft_model_state_dict(model))

    return keys(["embed_tokens"]) == keys(r".*\.embed_tokens")


def dropped_deltas_keep_their_mean() -> bool:
    """DARE with rescaling keeps the mean of a tensor of ones, up to random error."""
    torch.manual_seed(0)
    values = merge_utils.prune(torch.ones(DRAWS), density=0.5, method="random", rescale=True)
    return abs(float(values.mean()) - 1) < 0.1


def rotations_are_cayleys() -> bool:
    """OFT maps x to x (I - S)(I + S)^-1 with a skew-symmetric S whose upper triangle it learns."""
    module = OFTRotationModule(1, 3, 3, 3, use_cayley_neumann=False)
    weights = (0.1, -0.2, 0.3)
    module.weight.data = torch.tensor([weights])
    unit = torch.eye(3)
    skew = torch.zeros(3, 3)
    skew[0, 1], skew[0, 2], skew[1, 2] = weights
    skew = skew - skew.T
    row = torch.tensor([[1.0, 2.0, 3.0]])
    expected = row @ (unit - skew) @ torch.linalg.inv(unit + skew)  # as in PEFT 0.18
    return torch.allclose(module(row), expected, atol=1e-5)


def packed_products_keep_no_input() -> bool:
    """A product with a 4-bit weight keeps nothing as large as its input for the backward pass."""
    layer = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32).to("cpu")
    product = layer(torch.ones(128, 64, requires_grad=True))
    kept_values = vars(product.grad_fn).values()
    return all(kept.numel() < 128 * 64 for kept in kept_values if isinstance(kept, torch.Tensor))


CHECKS = (
    layouts_step_alike,
    embeddings_are_saved,
    formatted_rows_come_once,
    workers_shuffle_by_themselves,
    nodes_share_all_rows,
    late_columns_are_read,
    epochs_reach_samplers,
    skipping_keeps_the_iteration,
    ranks_share_samples,
    ends_are_learned,
    dropped_deltas_keep_their_mean,
    rotations_are_cayleys,
    packed_products_keep_no_input,
)
INVARIANTS = {check.__name__: check for check in CHECKS}
