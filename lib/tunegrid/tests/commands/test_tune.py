"""`tunegrid tune`: the search with made-up objective functions in place of trainings, and one real cell."""

import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import util
from itertools import pairwise

import pytest
from filelock import FileLock

from tunegrid.commands import tune
from tunegrid.commands.search import propose, spread
from tunegrid.commands.studies import LOOKS, CellStudies, Kept, Pace, Plan
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.larger import larger
from tunegrid.grid.more_tasks import more_tasks
from tunegrid.grid.profiles import FULL_PROFILE, QUICK_PROFILE, TASKS_PROFILE, ZOO_PROFILE
from tunegrid.grid.zoo import zoo
from tunegrid.results.tuning import TOLD, FinalRun, Setting, Space, Trial

needs_optuna = pytest.mark.skipif(util.find_spec("optuna") is None, reason="Optuna is not installed: pip install '.[tune]'")
SPACE = Space(low=1e-4, high=1e-2, ranks=(2, 4, 8))
LORA = STUDY.cell("bert_sa_lora", QUICK_PROFILE)


def objective(setting, seed=0):
    """Highest at a rate of 1e-3; it rises from look to look."""
    top = 90 - 10 * (math.log10(setting.rate) + 3) ** 2
    return [top - 4 * (LOOKS - look) for look in range(1, LOOKS + 1)]


def train(setting, seed):
    yield from objective(setting, seed)


def studies(path, trials=12, count=1, space=SPACE):
    plan = Plan(trials=trials, studies=count, seeds=2, further=(2, 2), within=1.0)
    return CellStudies(cell=LORA, recipe=tune.recipe_of(LORA), space=space, plan=plan, kept=Kept(path=path))


def searched(path, train=train, **settings):
    own = studies(path, **settings)
    own.search(train, Pace(left=own.trials_left))
    return own.trials


# Optuna


@needs_optuna
def test_trials_lie_in_the_space_and_the_best_one_is_near_the_top(tmp_path):
    trials = searched(tmp_path / "a.jsonl", trials=25)
    assert all(1e-4 <= trial.setting.rate <= 1e-2 for trial in trials)
    assert {trial.setting.rank for trial in trials} == {2, 4, 8}
    best = max((trial for trial in trials if trial.score is not None), key=lambda trial: trial.score)
    assert 5e-4 < best.setting.rate < 2e-3


@needs_optuna
def test_a_method_without_an_adapter_has_no_rank(tmp_path):
    trials = searched(tmp_path / "a.jsonl", trials=2, space=Space(low=1e-4, high=1e-2))
    assert [trial.setting.rank for trial in trials] == [None, None]


@needs_optuna
def test_studies_draw_other_settings_and_train_with_other_seeds(tmp_path):
    seeds = []
    trials = searched(tmp_path / "a.jsonl", lambda setting, seed: seeds.append(seed) or train(setting, seed), trials=3, count=2)
    assert len({trial.setting for trial in trials}) == 6
    assert seeds == [0, 0, 0, 1, 1, 1]


def five_that_ended(*scores):
    return [
        Trial(study=0, setting=Setting(rate=1e-3, rank=4), scores=(score, score, score, score), ended="complete")
        for score in scores
    ]


@needs_optuna
def test_a_trial_is_given_up_below_the_median_at_half_its_updates_not_before():
    earlier = five_that_ended(50.0, 60.0, 70.0, 80.0, 90.0)  # the median is 70
    assert not propose(SPACE, earlier, 0).is_hopeless(1, 10.0)
    assert propose(SPACE, earlier, 0).is_hopeless(2, 69.0)
    assert not propose(SPACE, earlier, 0).is_hopeless(2, 71.0)
    assert not propose(SPACE, earlier[:4], 0).is_hopeless(2, 10.0)  # four trials have no say


@needs_optuna
def test_a_trial_that_is_given_up_trains_no_further(tmp_path):
    trained = []

    def train(setting, seed):
        for score in objective(setting):
            trained.append(setting)
            yield score

    trials = searched(tmp_path / "a.jsonl", train, trials=20)
    looks = {trial.setting: len(trial.scores) for trial in trials}
    assert {trained.count(setting) == count for setting, count in looks.items()} == {True}
    pruned = [trial for trial in trials if trial.ended == "pruned"]
    assert pruned
    assert all(2 <= len(trial.scores) < LOOKS and trial.score is None for trial in pruned)


@needs_optuna
def test_a_training_whose_loss_is_no_number_has_diverged_and_the_search_goes_on(tmp_path):
    trials = searched(tmp_path / "a.jsonl", lambda setting, seed: iter([] if setting.rate > 1e-3 else objective(setting)))
    ends = {trial.ended for trial in trials if trial.setting.rate > 1e-3}
    assert ends == {"diverged"}
    assert any(trial.score is not None for trial in trials)


def test_the_first_settings_are_spread_over_the_space_with_the_same_rates_for_every_cell():
    settings = [spread(SPACE, 1, number) for number in range(10)]
    places = sorted(math.log(setting.rate / 1e-4) / math.log(100) for setting in settings)
    gaps = [after - before for before, after in pairwise([0.0, *places, 1.0])]
    assert max(gaps) < 0.25  # ten random ones leave such a gap in half of all studies
    assert {setting.rank for setting in settings} == {2, 4, 8}
    alone = Space(low=1e-4, high=1e-2)
    assert [spread(alone, 1, number).rate for number in range(10)] == [setting.rate for setting in settings]


# Going on


@needs_optuna
def test_a_search_that_was_stopped_makes_the_trials_that_it_would_have_made(tmp_path):
    whole = searched(tmp_path / "whole.jsonl", trials=14)
    begun = []

    def stops(setting, seed):
        begun.append(setting)
        for look, score in enumerate(objective(setting)):
            if len(begun) == 12 and look == 1:
                raise KeyboardInterrupt
            yield score

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "part.jsonl", stops, trials=14)
    assert len(Kept(path=tmp_path / "part.jsonl").trials) == 11
    with (tmp_path / "part.jsonl").open("a") as file:
        file.write('\n{"study": 0, "setting": {"rate": 0.00')  # a kill in the middle of a line
    assert searched(tmp_path / "part.jsonl", trials=14) == whole


@needs_optuna
def test_more_trials_go_on_and_fewer_take_the_first(tmp_path):
    five = searched(tmp_path / "a.jsonl", trials=5)
    eight = searched(tmp_path / "a.jsonl", trials=8)
    assert (eight[:5], len(eight)) == (five, 8)
    assert studies(tmp_path / "a.jsonl", trials=5).trials == five
    assert studies(tmp_path / "a.jsonl", trials=5).trials_left == 0


def test_what_is_kept_is_read_again_as_it_was(tmp_path):
    kept = Kept(path=tmp_path / "a.jsonl")
    trials = [
        Trial(study=1, setting=Setting(rate=1 / 3e3, rank=rank), scores=(0.1, 2 / 3), ended="pruned") for rank in (8, None)
    ]
    run = FinalRun(setting=Setting(rate=1e-3), seed=1000, updates=40, validation=None, test=None)
    for entry in (*trials, run):
        kept.add(entry)
    again = Kept(path=kept.path)
    assert (again.trials, again.finals) == (trials, [run])


# What trains with fresh seeds


def test_the_best_three_train_first_then_the_best_of_them_and_the_recipe_with_other_seeds(tmp_path):
    own, order = studies(tmp_path / "a.jsonl", trials=4), []
    for number, score in enumerate((60.0, 80.0, 70.0, 50.0)):
        own.kept.add(Trial(study=0, setting=Setting(rate=1e-3 + number, rank=4), scores=(score,), ended="complete"))

    def final(setting, seed):
        order.append((setting.rate, seed))
        return FinalRun(setting=setting, seed=seed, updates=4, validation=setting.rate, test=setting.rate)

    own.finish(final, Pace(left=10))
    choosing = [(rate, seed) for rate in (1.001, 2.001, 0.001) for seed in (1000, 1001)]
    assert order == [*choosing, *((rate, seed) for rate in (2.001, 5e-3) for seed in (2000, 2001))]
    assert own.finals_left() == []


def test_a_cell_whose_trials_all_diverged_trains_no_more(tmp_path):
    own = studies(tmp_path / "a.jsonl", trials=1)
    own.kept.add(Trial(study=0, setting=Setting(rate=1e-3, rank=4), scores=(), ended="diverged"))
    assert (own.finals_left(), own.most_finals_left) == ([], 0)
    assert own.tuned().sentences[0] == "bert_sa_lora: every trial diverged; give lower --rates"


def test_a_cell_that_few_seeds_tell_has_no_more_to_train(tmp_path):
    own = replace(studies(tmp_path / "a.jsonl", trials=1), plan=Plan(trials=1, studies=1, seeds=2, further=(2, 5), within=50))
    own.kept.add(Trial(study=0, setting=Setting(rate=1e-3, rank=4), scores=(90.0,), ended="complete"))
    assert own.most_finals_left == 2 + 2 * 5  # one setting is chosen by two seeds
    own.finish(lambda setting, seed: FinalRun(setting=setting, seed=seed, updates=4, validation=90.0, test=90.0), Pace(left=12))
    assert (len(own.kept.finals), own.most_finals_left) == (2 + 2 * 2, 0)


# Cells


def test_alpha_and_a_heads_own_rate_change_in_proportion():
    cell = STUDY.cell("t5_sa_lora", QUICK_PROFILE)  # rank 8, alpha 16, 4e-3, 4e-4 for its head
    own = tune.with_setting(STUDY, cell, Setting(rate=2e-3, rank=32), 7)
    assert (own.recipe.adapter.r, own.recipe.adapter.lora_alpha) == (32, 64)
    assert (own.recipe.learning_rate, own.recipe.head_learning_rate) == (2e-3, pytest.approx(2e-4))
    assert (own.profile.seed, own.recipe.max_steps) == (7, cell.recipe.max_steps)


def test_every_shipped_cell_can_be_tuned_in_its_default_space():
    grids = ((STUDY, QUICK_PROFILE), (larger(), FULL_PROFILE), (zoo(), ZOO_PROFILE), (more_tasks(), TASKS_PROFILE))
    for grid, profile in grids:
        low, high = tune.GRIDS[profile.id][2]
        for cell in grid.cells(profile):
            assert low < cell.recipe.learning_rate < high, cell.id
            tune.space_of(cell, (low, high), tune.RANKS)


def test_own_ranks_leave_the_rate_alone_to_be_tuned():
    assert tune.rank_list("own") == tune.OWN
    cells = [STUDY.cell(name, QUICK_PROFILE) for name in ("bert_sa_lora", "bert_sum_lora", "bert_sa_sft")]
    assert [tune.space_of(cell, (1e-4, 1e-2), tune.OWN).ranks for cell in cells] == [(8,), (16,), ()]


def test_without_a_name_all_cells_are_tuned(tmp_path):
    _, options = tune.parsed(["--state", str(tmp_path), "--adapter-ranks", "own"])
    with ExitStack() as stack:
        cells = tune.cells_of(options, STUDY, stack)
    assert [one.cell.id for one in cells] == list(STUDY.ids(QUICK_PROFILE))


def test_only_a_method_that_reads_a_rank_has_one():
    cells = {name: zoo().cell(f"gpt2_sa_{name}", ZOO_PROFILE) for name in ("lora", "dora", "ia3", "sft")}
    assert {name: tune.recipe_of(cell).rank is not None for name, cell in cells.items()} == {
        "lora": True,
        "dora": True,
        "ia3": False,
        "sft": False,
    }


# The command


class MadeUp:
    """A workshop without trainings, which writes down what it was asked for."""

    calls: Sequence[str] = []

    def __init__(self, grid, cell):
        self.cell = cell

    def train(self, setting, seed):
        MadeUp.calls.append(f"train {self.cell.id}")
        yield from objective(setting)

    def final(self, setting, seed):
        MadeUp.calls.append(f"final {self.cell.id}")
        score = objective(setting)[-1] + seed / 1000
        return FinalRun(setting=setting, seed=seed, updates=40, validation=score, test=score)


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(tune, "workshop", MadeUp)
    MadeUp.calls = []
    return MadeUp.calls


def run(tmp_path, *options, cells="bert_sa_lora,bert_sa_sft", trials=3):
    own = ["--cells", cells, "--trials", str(trials), "--studies", "2", "--seeds", "2", "--state", str(tmp_path / "state")]
    return tune.main([*own, *options])


@needs_optuna
def test_no_test_row_is_scored_before_the_last_trial_of_the_last_cell(tmp_path, made_up, capsys):
    assert run(tmp_path, "-o", str(tmp_path / "a.json"), "--within", "50") == 0
    # 2 studies of 3 trials; then 3 settings with 2 seeds, and the best of them and the recipe with 2 more
    assert made_up == [
        *["train bert_sa_lora"] * 6,
        *["train bert_sa_sft"] * 6,
        *["final bert_sa_lora"] * 10,
        *["final bert_sa_sft"] * 10,
    ]
    text = capsys.readouterr().out
    assert text.startswith("bert_sa_lora: 2 x 3 trials, rates 0.0001 to 0.03, ranks 2, 4, 8, 16, 32\n")
    assert "bert_sa_lora  study 1 of 2, trial 1 of 3: rate " in text
    assert "bert_sa: rate(lora) / rate(sft) is " in text
    assert text.count("min left") == 32
    figures = json.loads((tmp_path / "a.json").read_text())
    assert [len(cell["trials"]) for cell in figures["cells"]] == [6, 6]
    assert [ratio["method"] for ratio in figures["ratios"]] == ["lora"]


@needs_optuna
def test_the_same_command_trains_nothing_twice(tmp_path, made_up, capsys):
    run(tmp_path)
    first, count = capsys.readouterr().out, len(made_up)
    run(tmp_path)
    again = capsys.readouterr().out
    assert len(made_up) == count
    assert "bert_sa_lora: 6 trials are known from an earlier command" in again
    assert first.endswith(again.partition("cell            score")[2])
    run(tmp_path, trials=4)  # one more of each study
    assert made_up[count:].count("train bert_sa_lora") == 2


@needs_optuna
def test_more_further_seeds_train_the_best_found_and_the_recipe_alone(tmp_path, made_up):
    run(tmp_path, cells="bert_sa_lora")
    count = len(made_up)
    run(tmp_path, "--further-seeds", "5", cells="bert_sa_lora")  # three more of each
    assert made_up[count:] == ["final bert_sa_lora"] * 6


@needs_optuna
def test_a_cell_that_few_seeds_cannot_tell_gets_the_most(tmp_path, made_up, monkeypatch):
    class Noisy(MadeUp):
        def final(self, setting, seed):
            run = super().final(setting, seed)
            return replace(run, test=run.test + 9 * (seed % 2) * (setting.rate == 5e-3))  # the recipe's rate

    run(tmp_path, "--further-seeds", "2,4", "--within", "6", cells="bert_sa_lora")  # it is 4.7 below, give or take 0.9
    assert made_up == ["train bert_sa_lora"] * 6 + ["final bert_sa_lora"] * 10
    monkeypatch.setattr(tune, "workshop", Noisy)
    run(tmp_path / "b", "--further-seeds", "2,4", cells="bert_sa_lora")
    assert made_up.count("final bert_sa_lora") == 10 + 14


@needs_optuna
def test_a_recipe_far_below_the_best_found_is_exit_code_1(tmp_path, made_up):
    # 5e-3 is 4.9 points below the top at 1e-3, which is all that can be found
    assert run(tmp_path, "--within", "5", cells="bert_sa_lora") == 0
    assert run(tmp_path, "--within", "1", cells="bert_sa_lora") == 1


@needs_optuna
def test_who_stops_it_keeps_the_trials_that_ended(tmp_path, made_up, monkeypatch, capsys):
    class Stopped(MadeUp):
        def train(self, setting, seed):
            if len(MadeUp.calls) == 4:
                raise KeyboardInterrupt
            yield from super().train(setting, seed)

    monkeypatch.setattr(tune, "workshop", Stopped)
    assert run(tmp_path) == 130
    assert capsys.readouterr().out.endswith("stopped; the same command goes on after the trials that ended\n")
    (path,) = (tmp_path / "state").glob("bert_sa_lora-*.jsonl")
    assert len(Kept(path=path).trials) == 4


@needs_optuna
def test_another_command_on_the_same_cell_is_refused(tmp_path, made_up, capsys):
    run(tmp_path)
    (path,) = (tmp_path / "state").glob("bert_sa_sft-*.jsonl")
    with FileLock(path.with_suffix(".lock")), pytest.raises(SystemExit):
        run(tmp_path)
    assert "another command tunes this cell right now and writes" in capsys.readouterr().err


def test_without_optuna_it_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as exit_:
        tune.main(["--cells", "bert_sa_lora"])
    assert exit_.value.code == 2
    sentence = "tunegrid tune needs Optuna, which is not installed here: pip install -e '.[tune]'"
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--trials", "0"], "argument --trials: '0' is not a whole number of at least 1"),
        (["--studies", "1000"], "argument --studies: '1000' is not below 1000"),
        (
            ["--rates", "1e-2,1e-4"],
            "argument --rates: '1e-2,1e-4' is not two rates above 0 with a comma between, as in 1e-4,3e-2",
        ),
        (["--rates", "fast"], "argument --rates: 'fast' is not two rates above 0 with a comma between, as in 1e-4,3e-2"),
        (["--rates", "nan,1"], "argument --rates: 'nan,1' is not two rates above 0 with a comma between, as in 1e-4,3e-2"),
        (["--adapter-ranks", "8,x"], "argument --adapter-ranks: 'x' is not a whole number of at least 1"),
        (["--further-seeds", "4,"], "argument --further-seeds: '' is not a whole number of at least 1"),
        (["--further-seeds", "5,3"], "argument --further-seeds: '5,3': the second number is the larger one, as in 4,12"),
        (["--within", "some"], "argument --within: 'some' is not a number"),
        (["--within", "nan"], "argument --within: 'nan' is not a number of points from 0 to 100"),
        (["--device", "mps"], "--data-root and --device go with -m full: quick cells read micro data on a CPU"),
        (["--cells", ","], "--cells names no cell; give ids with commas between, as in bert_sa_lora,bert_sa_sft"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(options, sentence, tmp_path, made_up, monkeypatch, capsys):
    monkeypatch.setattr(tune, "check_optuna", lambda: None)
    with pytest.raises(SystemExit) as exit_:
        tune.main(["--cells", "bert_sa_lora", "--state", str(tmp_path), *options])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"tunegrid tune: error: {sentence}"


def test_a_rank_at_which_alpha_is_no_whole_number_is_refused():
    cell = replace(LORA, recipe=replace(LORA.recipe, adapter=replace(LORA.recipe.adapter, r=16, lora_alpha=24)))
    with pytest.raises(InputError, match="alpha at rank 3 would be 24 x 3 / 16, which is no whole number; give other"):
        tune.space_of(cell, (1e-4, 1e-2), (2, 3))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, made_up, monkeypatch, capsys):
    monkeypatch.setattr(tune, "check_optuna", lambda: None)
    (tmp_path / "state").write_text("a file")
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert "cannot be written" in capsys.readouterr().err


@needs_optuna
def test_a_place_for_the_figures_that_cannot_be_written_is_one_sentence_after_the_answer(tmp_path, made_up, capsys):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(SystemExit):
        run(tmp_path, "-o", str(tmp_path / "folder" / "a.json"))
    said = capsys.readouterr()
    assert "bert_sa: rate(lora) / rate(sft) is " in said.out
    assert said.err.splitlines()[-1].endswith("give another place")


# A real cell


class Guarded(Sequence):
    """Rows that write down when they are read."""

    def __init__(self, rows, events):
        self.rows, self.events = rows, events

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.events.append("a test row")
        return self.rows[index]


@needs_optuna
def test_a_real_cell_is_tuned_on_validation_rows_and_its_test_rows_are_read_at_the_end(tmp_path, monkeypatch, capsys):
    from tunegrid.run import trial
    from tunegrid.run.training import Trainer

    events, load, course = [], trial.load_splits, Trainer.run

    def guarded(task, profile):
        splits = load(task, profile)
        small = replace(splits, train=splits.train[:200], validation=splits.validation[:40])
        return replace(small, test=Guarded(splits.test[:40], events))

    def noted(trainer, *arguments, **options):
        events.append(f"{trainer.cell.recipe.learning_rate}")
        return course(trainer, *arguments, **options)

    monkeypatch.setattr(trial, "load_splits", guarded)
    monkeypatch.setattr(Trainer, "run", noted)
    command = ["--cells", "bert_sa_lora", "--trials", "2", "--studies", "1", "--seeds", "1", "--updates", "4"]
    assert tune.main([*command, "--state", str(tmp_path)]) in (0, 1)
    out = capsys.readouterr().out
    (path,) = tmp_path.glob("*.jsonl")
    kept = Kept(path=path)
    trials, finals = kept.trials, kept.finals
    assert [trial.ended for trial in trials] == ["complete", "complete"]
    assert [len(trial.scores) for trial in trials] == [LOOKS, LOOKS]
    assert all(0 <= score <= 100 for trial in trials for score in trial.scores)
    # both trials in four parts, both of them once more, then the first of the two that tell, before a test row is read
    runs = [f"{trial.setting.rate}" for trial in trials for _ in range(LOOKS)]
    first = events.index("a test row")
    assert events[:first] == [*runs, *(f"{run.setting.rate}" for run in finals[:3])]
    choosing, telling = ([run for run in finals if (run.seed >= TOLD) == told] for told in (False, True))
    assert {run.setting for run in choosing} == {trial.setting for trial in trials}
    assert len(telling) == 2
    assert tune.recipe_of(LORA) in {run.setting for run in telling}
    assert all(run.test is None and run.updates == 4 for run in choosing)
    assert all(run.test is not None and run.updates == 4 for run in telling)
    assert "(4 updates each, further seeds: 1)" in out
