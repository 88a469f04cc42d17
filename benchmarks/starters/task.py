"""A data set of your own.

The folder beside this file holds made-up rows: replace them with your own.

tunegrid run -m quick --grid=NAME.py -k NAME --list-cells     # reads the rows, trains nothing
tunegrid run -m quick --grid=NAME.py --cells=bert_NAME_lora   # runs right away, micro backbone
tunegrid calibrate --grid=NAME.py                             # writes bounds to NAME.quick.toml
tunegrid run -m full --grid=NAME.py --cells=bert_NAME_lora    # the real checkpoint
"""

from tunegrid.grid.tasks import Carve, Problem, Task

TASK = Task(
    id="NAME",  # the middle part of a cell's id: lower-case letters and digits
    name="NAME",
    problem=Problem.CLASSIFY,  # EXTRACT finds answers in a passage, GENERATE writes text
    dataset="NAME",  # without `files`: an id on the hub, or a folder below --data-root
    # Paths beside this file; .tsv, .json, .parquet and .csv.gz work, too
    files={"train": "NAME/train.csv", "test": "NAME/test.csv"},
    columns={"text": str, "label": str},  # str for names of labels, int for their numbers
    text=("text",),  # columns of the input; text_pair names the columns of a second text
    target="label",  # the output to learn
    labels=("negative", "positive"),  # all labels; numbers in rows count from 0 in this order
    validation=Carve(share=0.1, stratify="label"),  # a tenth of train; or the name of a split
    test="test",  # or Carve(...) here, too, if you have only one file
    main_score="accuracy",
    bounded_scores=("accuracy", "f1_macro"),
)


def pytest_tunegrid_grid(grid):
    # Adds nine cells, copied from the cells of `sa`. Keyword arguments change fields of their
    # recipes, for example learning_rate=5e-5 or max_length=128; quick={"max_steps": 300} changes
    # what -m quick trains.
    grid.add_task(TASK, like="sa")
