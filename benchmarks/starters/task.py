"""A data set of your own.

Its rows stand in the folder beside this file: they are made up, so put yours there.

tunegrid run -m quick --grid=NAME.py -k NAME --list-cells      # looks at the rows, trains nothing
tunegrid run -m quick --grid=NAME.py --cells=bert_NAME_lora    # runs at once, on a micro backbone
tunegrid calibrate --grid=NAME.py                              # writes NAME.quick.toml: what a
healthy run reaches tunegrid run -m full --grid=NAME.py --cells=bert_NAME_lora     # the true
checkpoint
"""

from tunegrid.grid.tasks import Carve, Problem, Task

TASK = Task(
    id="NAME",  # the middle part of a cell's id: lower-case letters and digits
    name="NAME",
    problem=Problem.CLASSIFY,  # EXTRACT finds answers in a passage, GENERATE writes texts
    dataset="NAME",  # without `files`: an id on the hub, or a folder below --data-root
    # Beside this file; or .tsv, .json, .parquet, .csv.gz
    files={"train": "NAME/train.csv", "test": "NAME/test.csv"},
    columns={"text": str, "label": str},  # names of labels; or int for their numbers
    text=("text",),  # what is read; text_pair names the columns of a second text
    target="label",  # what is learned
    labels=("negative", "positive"),  # all of them; numbers in rows count from 0 in this order
    validation=Carve(share=0.1, stratify="label"),  # a tenth of train; or the name of a split
    test="test",  # or Carve(...), too, if you have one file
    main_score="accuracy",
    bounded_scores=("accuracy", "f1_macro"),
)


def pytest_tunegrid_grid(grid):
    # Nine cells, copies of those of `sa`. Keyword arguments change fields of their recipes, as
    # learning_rate=5e-5 or max_length=128; quick={"max_steps": 300} changes what -m quick trains.
    grid.add_task(TASK, like="sa")
