"""A fine-tuning method of your own, on every backbone and task.

tunegrid run -m quick --grid=NAME.py --cells=bert_sa_NAME   # runs right away, on a micro backbone
tunegrid run -m quick --grid=NAME.py -k NAME                # all nine cells
tunegrid calibrate --grid=NAME.py                           # writes bounds to NAME.quick.toml
"""

from tunegrid.grid.methods import Lora

# tunegrid.grid.methods has three classes: `Lora` for LoRA and its variants, `Adapting` for any
# PEFT adapter, and `Method` for full fine-tuning.
METHOD = Lora(
    id="NAME",  # the last part of a cell's id: lower-case letters and digits
    name="NAME",
    options={"use_rslora": True},  # fields of PEFT's LoraConfig
)


def pytest_tunegrid_grid(grid):
    # Copies LoRA's recipes, including their quick form. Keyword arguments change them, for example
    # learning_rate=1e-3; quick={"learning_rate": 1e-2} changes the quick form.
    grid.add_method(METHOD, like="lora")
