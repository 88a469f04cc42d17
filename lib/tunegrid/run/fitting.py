"""Turns every library's way to say that memory ran out into one kind of error."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tunegrid.errors import first_line

# How libraries say that memory ran out: torch's allocators on a CPU, the CUDA runtime outside them, cuBLAS's handles.
NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class DoesNotFit(Exception):
    """Memory ran out."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


@contextmanager
def fitting() -> Iterator[None]:
    """Raises DoesNotFit where memory runs out meanwhile."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise DoesNotFit(first_line(error)) from None
        raise
