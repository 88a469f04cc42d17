"""Faults that we work around are still there, and faster ways have the libraries' results.

Once a release mends a fault, its test says what to drop. No test looks at how much faster a way is.
"""

import pytest

from tunegrid import ROOT
from tunegrid.machine import versions
from tunegrid.tests.sessions import ForkedProcess

FAULTY, MENDED, CANNOT_SHOW = 1, 0, 2
REPACKING = "support_avx512bf16_for_cpu in keep_packed_layers (run/build.py)"
UPSTREAM = "none: say so in reports/upstream/README.md"
FAULTS = {  # what to drop once it is mended, and what the script prints of it
    "bitsandbytes_repacking": (REPACKING, "after one evaluation, training"),
    "bitsandbytes_merge": (REPACKING, "after one evaluation, the unpacked weight differs by"),
    "bitsandbytes_biases": ("module.bias in keep_packed_layers (run/build.py)", "the frozen bias was torch.float32"),
    "transformers_accumulation": ("the accumulation of 1 in run/test_parity.py", "BertForSequenceClassification: gradient"),
    "accelerate_fused_skip": (
        "the scales in Stepper.step (run/train.py)",
        "fused=True: the weight stays, step_was_skipped is False",
    ),
    "peft_prompts": ("REPEATED in grid/zoo.py", "PromptTuningConfig: logits of generate differ"),
    "peft_adalora_scale": ("isinstance of Lora in audits/computation.py", "after it was doubled and set back it is 2"),
    "peft_packed_bias": (UPSTREAM, "the base's bias gains 1, where"),
    "transformers_saved_tokenizer": (f"{UPSTREAM}, and let A16 and A60 of plants act in full", "pads on the right"),
}


def run_script(name, *arguments, **variables):
    return ForkedProcess(ROOT / "reports" / "upstream" / f"{name}.py", *arguments, **variables).ended()


def verdict(code, output, library, workaround, sign):
    """None if the fault shows; else the sentence to fail or skip with. A crash is not the fault."""
    if code == FAULTY and sign in output:
        return None
    if code == MENDED:
        return f"mended in {library} {versions()[library]}: drop our workaround, {workaround}"
    if code == CANNOT_SHOW:
        return output.splitlines()[-1]
    return f"the script itself failed: {output}"


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.slow
def test_a_fault_that_we_work_around_is_still_there(name):
    run = run_script(name)
    said = run.stdout + (run.stderr if run.returncode > CANNOT_SHOW else "")
    sentence = verdict(run.returncode, said, name.partition("_")[0], *FAULTS[name])
    if run.returncode == CANNOT_SHOW:
        pytest.skip(f"{name}: {sentence}")
    assert sentence is None, sentence or run.stderr
