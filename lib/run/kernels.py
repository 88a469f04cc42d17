"""Kernels of ours in place of torch's. In: operators and functions. Out: torch calls them on a CPU."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch


def replace_cpu_kernels(kernels: Mapping[str, Callable[..., Any]]) -> torch.library.Library:
    """Let torch call these functions, by the operator's name as `mm`, for tensors on a CPU, while the result lives."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that a kernel is replaced, and that is meant
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]
    return library
