"""accelerate: a fused optimizer's skipped fp16 step is not reported as skipped.

The learning-rate schedule therefore advances. Prints, for AdamW with and without `fused`, whether
a step with an infinite gradient moved the weight, and what accelerate reports. Both should say that
the step was skipped. The scaler is the one for CPUs, so no GPU is needed. Exits with 1 if the fault
shows, with 0 if it does not.
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
