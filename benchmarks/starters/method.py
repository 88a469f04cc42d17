"""A way to fine-tune of your own, on every backbone and task.

tunegrid run -m quick --grid=NAME.py --cells=bert_sa_NAME    # runs at once, on a micro backbone
tunegrid run -m quick --grid=NAME.py -k NAME                 # all nine tunegrid calibrate
--grid=NAME.py                            # writes NAME.quick.toml: what a healthy run reaches
"""

from tunegrid.grid.methods import Lora

# `Lora` is LoRA and its variants, `Adapting` any adapter of PEFT, `Method` full fine-tuning: all in
# tunegrid.grid.methods.
METHOD = Lora(
    id="NAME",  # the last part of a cell's id: lower-case letters and digits
    name="NAME",
    options={"use_rslora": True},  # fields of PEFT's LoraConfig
)


def pytest_tunegrid_grid(grid):
    # Copies of LoRA's recipes, with their quick form. Keyword arguments change them, as
    # learning_rate=1e-3; quick={"learning_rate": 1e-2} changes the quick form.
    grid.add_method(METHOD, like="lora")
