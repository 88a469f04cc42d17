"""accelerate: a step of fp16 that a fused optimizer skips does not count as skipped, and the
learning rate goes on.

Prints, for AdamW fused and not, whether a step with an infinite gradient moved the weight, and what
accelerate says of it; both should say that it was skipped. The scaler is the one for CPUs, so that
no GPU is needed. Exit code 1 shows the fault, 0 a version without it.
"""

import sys

import accelerate
import torch
from accelerate.optimizer import AcceleratedOptimizer

print(f"accelerate {accelerate.__version__}, torch {torch.__version__}")
accelerate.Accelerator(cpu=True)
faulty = False
for fused in (False, True):
    weight = torch.nn.Parameter(torch.ones(4))
    scaler = torch.amp.GradScaler("cpu")
    optimizer = AcceleratedOptimizer(torch.optim.AdamW([weight], fused=fused), scaler=scaler)
    scaler.scale((weight * torch.inf).sum()).backward()
    optimizer.step()
    skipped = bool((weight == 1).all())
    print(
        f"fused={fused}: the weight {'stays' if skipped else 'moves'}, step_was_skipped is {optimizer.step_was_skipped}"
    )
    faulty |= skipped != optimizer.step_was_skipped
sys.exit(int(faulty))
