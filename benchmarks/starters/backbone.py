"""A pretrained model of your own, on every task by every method.

tunegrid run -m quick --grid=NAME.py --cells=NAME_sa_lora    # runs at once, on the micro backbone
tunegrid run -m footprint --grid=NAME.py -k NAME_sa_lora     # memory and speed at the size of
`shape`, without weights tunegrid run -m full --grid=NAME.py --cells=NAME_sa_lora     # the
checkpoint
"""

from dataclasses import replace

from tunegrid.grid.backbones import BERT

# Another size of BERT. benchmarks/guides/add-your-own.md shows another architecture, field by
# field.
BACKBONE = replace(
    BERT,
    id="NAME",  # the first part of a cell's id: lower-case letters and digits
    name="NAME",
    # On the hub, or a folder of its last name below --checkpoint-root
    checkpoint="google/bert_uncased_L-8_H-512_A-8",
    revision=None,  # a commit of the hub pins it
    micro="bert-micro",  # stands in for it with -m quick; None: it has no quick cells
    shape={
        **BERT.shape,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
    },
)


def pytest_tunegrid_grid(grid):
    # Copies of BERT's recipes, with their quick form. Keyword arguments change them, as
    # learning_rate=1e-3.
    grid.add_backbone(BACKBONE, like="bert")
