"""When a model generates, PEFT repeats its prompts and loses its prefixes.

Exits with 1 if the fault shows, with 0 if it does not.
"""

import sys
import warnings

import peft
import torch
import transformers as hf

SMALL = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
TOKENS = 8
IDS = torch.tensor([[5, 6, 7, 8]])


def first_logits(config: peft.PeftConfig) -> tuple[torch.Tensor, torch.Tensor | str]:
    """The logits of the next two tokens, from one forward pass per token and from `generate`.

    If `generate` fails, the second is the text of its error.
    """
    torch.manual_seed(0)
    model = peft.get_peft_model(hf.GPT2LMHeadModel(hf.GPT2Config(**SMALL)), config).eval()
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_()  # a trained prompt changes the answer
        rows = [model(input_ids=IDS).logits[:, -1]]
        longer = torch.cat([IDS, rows[0].argmax(-1, keepdim=True)], 1)
        rows.append(model(input_ids=longer).logits[:, -1])
        try:
            output = model.generate(
                input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False, eos_token_id=None,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        except (IndexError, RuntimeError, ValueError) as error:
            return torch.stack(rows), f"{type(error).__name__}: {error}"
    return torch.stack(rows), torch.stack(output.logits)


warnings.simplefilter("ignore")
print(f"peft {peft.__version__}, transformers {hf.__version__}, torch {torch.__version__}")
faulty = False
for kind in (peft.PromptTuningConfig, peft.PrefixTuningConfig):
    forward, generated = first_logits(kind(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS))
    if isinstance(generated, str):
        print(f"{kind.__name__}: generate fails ({generated})")
        faulty = True
        continue
    gaps = [
        float((one - other).abs().max() / one.abs().max())
        for one, other in zip(forward, generated, strict=True)
    ]
    print(
        f"{kind.__name__}: logits of generate differ from a forward pass by {gaps[0]:.1e} and {gaps[1]:.1e} of the largest"
    )
    faulty |= max(gaps) > 1e-4
sys.exit(int(faulty))
