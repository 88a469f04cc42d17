"""Plants of training: each breaks the row of the table that names it."""

from contextlib import nullcontext
from typing import Any

import accelerate
import torch
from torch._decomp import decomposition_table
from torch.utils import checkpoint

from tunegrid.run import checkpoint as kept
from tunegrid.run.training import Trainer


def each_micro_batch_by_its_own_targets(monkeypatch: Any) -> None:
    """An update is the mean of its micro-batches' means: Trainer's old bug (huggingface/transformers#34191)."""

    def divisors(self: Any, batches: Any) -> Any:
        return [self.codec.targets(batch) * len(batches) for batch in batches]

    monkeypatch.setattr(Trainer, "divisors", divisors)


def activations_drop_anew(monkeypatch: Any) -> None:
    """Activations are computed again with other random numbers: `preserve_rng_state` is lost."""
    generate = checkpoint._checkpoint_without_reentrant_generator

    def forgetful(fn: Any, preserve_rng_state: bool = True, *args: Any, **options: Any) -> Any:
        return generate(fn, False, *args, **options)

    monkeypatch.setattr(checkpoint, "_checkpoint_without_reentrant_generator", forgetful)


def moments_are_not_kept(monkeypatch: Any) -> None:
    """A resumed training starts with moments of 0."""
    leaves = kept._leaves

    def without(tree: Any, path: str = "") -> Any:
        for name, value in leaves(tree, path):
            yield name, torch.zeros_like(value) if "exp_avg" in name else value

    monkeypatch.setattr(kept, "_leaves", without)


def random_numbers_are_not_kept(monkeypatch: Any) -> None:
    """A resumed training drops as a fresh one does."""
    from tunegrid.run import training

    monkeypatch.setattr(training, "set_random_states", lambda device, states: None)


def weights_are_kept_in_bf16(monkeypatch: Any) -> None:
    """Where a run computes in bf16, master weights are rounded to it after each step: small updates are lost."""
    prepare = accelerate.Accelerator.prepare_optimizer

    def rounding(optimizer: Any, *_: Any) -> None:
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            parameter.data = parameter.data.bfloat16().float()

    def prepared(self: Any, optimizer: Any, *args: Any, **options: Any) -> Any:
        if self.mixed_precision == "bf16":
            optimizer.register_step_post_hook(rounding)
        return prepare(self, optimizer, *args, **options)

    monkeypatch.setattr(accelerate.Accelerator, "prepare_optimizer", prepared)


def autocast_does_nothing(monkeypatch: Any) -> None:
    """Whatever precision is asked for, everything is computed in fp32."""
    monkeypatch.setattr(accelerate.Accelerator, "autocast", lambda self, *args, **options: nullcontext())


def ranks_take_the_mean(monkeypatch: Any) -> None:
    """DDP takes the mean of the ranks' gradients, each divided by all ranks' targets: its default."""
    from torch.nn.parallel import DistributedDataParallel

    monkeypatch.setattr(DistributedDataParallel, "register_comm_hook", lambda self, state, hook: None)


def shards_take_the_mean(monkeypatch: Any) -> None:
    """FSDP2 takes the mean of the ranks' gradients: its default."""
    from torch.distributed.fsdp import FSDPModule

    monkeypatch.setattr(FSDPModule, "set_gradient_divide_factor", lambda self, factor: None)
    monkeypatch.setattr(FSDPModule, "set_force_sum_reduction_for_comms", lambda self, forced: None)


def seed_is_ignored(monkeypatch: Any) -> None:
    """Everything is drawn from seed 0."""
    from tunegrid.run import build, training

    for module in (build, training):
        set_seed = module.hf.set_seed
        monkeypatch.setattr(module.hf, "set_seed", lambda seed, *args, set_seed=set_seed, **options: set_seed(0))
    from tunegrid.run import order

    Random = order.Random
    monkeypatch.setattr(order, "Random", lambda seed: Random(str(seed).split("-")[1]))


def order_follows_the_hash_of_strings(monkeypatch: Any) -> None:
    """Rows are shuffled by Python's `hash` of a string, which differs from process to process."""
    from tunegrid.run import order

    Random = order.Random
    monkeypatch.setattr(order, "Random", lambda seed: Random(hash(str(seed))))


def norms_have_another_eps(monkeypatch: Any) -> None:
    """The compiler's layer norm has an eps of its own."""
    from torch._inductor.decomposition import select_decomp_table  # a second, which no other row needs

    table, norm = select_decomp_table(), torch.ops.aten.native_layer_norm.default
    usual = table.get(norm) or decomposition_table[norm]
    monkeypatch.setitem(table, norm, lambda x, shape, weight, bias, eps: usual(x, shape, weight, bias, 1e-2))
