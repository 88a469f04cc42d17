"""A score of your own, with bounds and a gate like any other.

tunegrid run -m quick --grid=NAME.py --cells=bert_sa_lora  # runs right away, on a micro backbone
tunegrid calibrate --grid=NAME.py --cells=bert_sa_lora     # writes bounds to NAME.quick.toml
"""


def NAME(predictions, references):
    """Matthews correlation of two classes, passed as label numbers; other problems pass texts."""
    pairs = list(zip(predictions, references, strict=True))
    hits = pairs.count((1, 1))
    passes = pairs.count((0, 0))
    alarms = pairs.count((1, 0))
    misses = pairs.count((0, 1))
    square = (hits + alarms) * (hits + misses) * (passes + alarms) * (passes + misses)
    return (hits * passes - alarms * misses) / square**0.5 if square else 0.0


def pytest_tunegrid_grid(grid):
    # Scores are points from 0 to 100: the value `worst` counts as 0 points, the value `best` as
    # 100. If lower is better, as with an error rate, pass worst=1, best=0.
    #
    # You can also pass evaluate.load("/path/to/file.py") instead of the function;
    # evaluate.load("accuracy") needs the hub.
    #
    # by_row=True calls the function on one row at a time: the score is the mean over rows, and a
    # gate can compare rows. A correlation is not such a mean.
    grid.add_metric("NAME", NAME, task="sa", worst=-1, best=1, main=True)
