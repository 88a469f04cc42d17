"""A score of your own, with bounds and a gate as any other.

tunegrid run -m quick --grid=NAME.py --cells=bert_sa_lora  # runs at once, on a micro backbone
tunegrid calibrate --grid=NAME.py --cells=bert_sa_lora     # writes bounds to NAME.quick.toml
"""


def NAME(predictions, references):
    """Matthews correlation of two labels, which are numbers here; a task of texts has texts."""
    pairs = list(zip(predictions, references, strict=True))
    hits = pairs.count((1, 1))
    passes = pairs.count((0, 0))
    alarms = pairs.count((1, 0))
    misses = pairs.count((0, 1))
    square = (hits + alarms) * (hits + misses) * (passes + alarms) * (passes + misses)
    return (hits * passes - alarms * misses) / square**0.5 if square else 0.0


def pytest_tunegrid_grid(grid):
    # Scores are points from 0 to 100: `worst` is the number that is 0 points, `best` the one that
    # is 100. If less is better, as of an error rate, give worst=1, best=0.
    #
    # In place of the function, evaluate.load("/path/to/file.py") does, too;
    # evaluate.load("accuracy") needs the hub.
    #
    # by_row=True asks for each row alone: the score is their mean, and a gate can compare rows. A
    # correlation is no such mean.
    grid.add_metric("NAME", NAME, task="sa", worst=-1, best=1, main=True)
