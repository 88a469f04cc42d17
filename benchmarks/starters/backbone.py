"""A pretrained model of your own, on every task with every method.

tunegrid run -m quick --grid=NAME.py --cells=NAME_sa_lora   # runs right away, on a micro backbone
tunegrid run -m footprint --grid=NAME.py -k NAME_sa_lora    # full-size memory and speed, no weights
tunegrid run -m full --grid=NAME.py --cells=NAME_sa_lora    # the checkpoint
"""

from dataclasses import replace

from tunegrid.grid.backbones import BERT

# Another size of BERT. benchmarks/guides/add-your-own.md shows another architecture, SmolLM2.
BACKBONE = replace(
    BERT,
    id="NAME",  # the first part of a cell's id: lower-case letters and digits
    name="NAME",
    # An id on the hub; its last part names the folder to load from --checkpoint-root
    checkpoint="google/bert_uncased_L-8_H-512_A-8",
    revision=None,  # a commit on the hub pins it
    micro="bert-micro",  # replaces the checkpoint with -m quick; None: no quick cells
    shape={
        **BERT.shape,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
    },
)


def pytest_tunegrid_grid(grid):
    # Copies BERT's recipes, including their quick form. Keyword arguments change them, for example
    # learning_rate=1e-3.
    grid.add_backbone(BACKBONE, like="bert")
