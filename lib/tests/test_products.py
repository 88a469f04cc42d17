"""Products of bf16 matrices: those of fp32, rounded once; other types as torch has them; wherever torch multiplies on a CPU."""

import subprocess
import sys

import pytest
import torch

from lib import machine
from lib.run import products
from lib.run.products import addmm, bf16_is_slow, bmm, mm

IN_TORCH = """
import torch
from lib.run.products import addmm, mm, multiply_bf16_sooner

torch.manual_seed(0)
x, layer, plain = torch.randn(64, 3, 96), torch.nn.Linear(96, 48), torch.nn.Linear(96, 48, bias=False)


def computed():
    out = {}
    for precision in (torch.float32, torch.bfloat16):
        for module in (layer, plain):
            module.zero_grad()
            with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
                y = module(x)
            y.float().square().sum().backward()
            out[precision, module] = [y.detach(), *(p.grad for p in module.parameters())]
    return out


before = computed()
multiply_bf16_sooner(True), multiply_bf16_sooner(True)
after = computed()
multiply_bf16_sooner(False)
for old, new in zip(before.values(), computed().values(), strict=True):
    assert all(map(torch.equal, old, new)), "torch's products are not the same again"
multiply_bf16_sooner(True)
for (precision, module), tensors in before.items():
    for old, new in zip(tensors, after[precision, module], strict=True):
        if precision is torch.float32:
            assert torch.equal(old, new)
        else:
            assert (old - new).abs().max() <= 2**-7 * old.abs().max(), (module, old.shape)
y = after[torch.bfloat16, layer][0]
flat = x.view(-1, 96).bfloat16()
bias, weight = (p.detach().bfloat16() for p in (layer.bias, layer.weight))
assert torch.equal(y.view(-1, 48), addmm(bias, flat, weight.T))
assert torch.equal(flat @ flat.T, mm(flat, flat.T)), "the kernel is not called"
try:
    torch.mm(x[0], x[1])
except RuntimeError as error:
    assert "cannot be multiplied" in str(error)
else:
    raise AssertionError("shapes that do not fit were multiplied")
"""


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape))).to(dtype)


def test_a_sum_is_rounded_once():
    """256 times 1 + 2^-7, whose partial sums bf16's eight bits do not hold, and 1 in the bias: 259, which rounds to 260."""
    ones, value = torch.ones(32, 256, dtype=torch.bfloat16), 1 + 2**-7
    weight = torch.full((256, 32), value, dtype=torch.bfloat16)
    assert set(mm(ones, weight).flatten().tolist()) == {258.0}
    assert set(addmm(torch.ones(32, dtype=torch.bfloat16), ones, weight).flatten().tolist()) == {260.0}
    assert set(bmm(ones[None], weight[None]).flatten().tolist()) == {258.0}


def test_a_product_is_that_of_exact_numbers_to_half_a_place():
    left, right = random(40, 100), random(100, 50)
    exact = left.double() @ right.double()
    assert ((mm(left, right) - exact).abs() <= 2**-8 * exact.abs() + 1e-5).all()
    both = addmm(random(50), left, right, beta=0.5, alpha=2).double() - (2 * exact + 0.5 * random(50).double())
    assert (both.abs() <= 2**-8 * (2 * exact + 0.5 * random(50).double()).abs() + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_other_types_are_torch_s(dtype):
    left, right, bias = (random(*shape, dtype=torch.float32).mul(4).to(dtype) for shape in ((40, 64), (64, 33), (33,)))
    assert torch.equal(mm(left, right), torch.mm(left, right))
    assert torch.equal(addmm(bias, left, right, beta=2, alpha=3), torch.addmm(bias, left, right, beta=2, alpha=3))
    assert torch.equal(bmm(left[None], right[None]), torch.bmm(left[None], right[None]))


@pytest.mark.parametrize("shapes", [((3, 5), (5, 2)), ((64, 8), (8, 64)), ((0, 4), (4, 3)), ((3, 0), (0, 3))])
def test_small_products_are_torch_s(shapes):
    left, right = random(*shapes[0]), random(*shapes[1])
    assert torch.equal(mm(left, right), torch.mm(left, right))


def test_views_that_lie_across_memory_give_the_same():
    left, right = random(64, 40), random(96, 64)
    assert torch.equal(mm(left.T, right.T), mm(left.T.contiguous(), right.T.contiguous()))


@pytest.mark.parametrize(
    ("flags", "vendor", "slow"),
    [
        ("avx2 fma", "AuthenticAMD", True),
        ("avx512f avx512_bf16", "GenuineIntel", True),
        ("avx512f avx512_bf16 amx_bf16 amx_tile", "GenuineIntel", False),
        ("avx512f avx512_bf16", "AuthenticAMD", False),
        ("", "", False),
    ],
)
def test_which_cpus_multiply_bf16_slowly(monkeypatch, flags, vendor, slow):
    for module in (machine, products):
        monkeypatch.setattr(module, "cpu_field", {"flags": flags, "vendor_id": vendor}.__getitem__)
    assert bf16_is_slow() is slow


@pytest.mark.parametrize(("flags", "name"), [("avx512f amx_bf16", "A Xeon with AMX"), ("avx512f", "A Xeon")])
def test_a_cpu_with_units_for_bf16_has_another_name(monkeypatch, flags, name):
    """Speed and peaks are compared between machines of one name."""
    monkeypatch.setattr(machine, "cpu_field", {"flags": flags, "model name": "A Xeon"}.__getitem__)
    assert machine.cpu_name() == name


def test_layers_multiply_here_forward_and_backward():
    """In a process of its own: a kernel stays replaced."""
    subprocess.run([sys.executable, "-W", "error", "-c", IN_TORCH], check=True, timeout=60)
