"""What searches found, as figures: trials made up so that picks, edges, medians and ratios can be worked out by hand."""

import json
import math
from dataclasses import replace

import pytest

from tunegrid.errors import InputError
from tunegrid.results.tuning import (
    FinalRun,
    Setting,
    Space,
    Trial,
    Tuned,
    as_markdown,
    as_text,
    best_of_studies,
    by_rank,
    distance,
    edges,
    finalists,
    middle,
    per_doubling,
    ranked,
    rate_ratios,
)

SPACE = Space(low=1e-4, high=1e-2, ranks=(2, 4, 8))


def trial(score, rate, rank=None, study=0, ended="complete"):
    return Trial(study=study, setting=Setting(rate=rate, rank=rank), scores=(50.0, score), ended=ended)


def best_at(*settings):
    """The best trials of as many studies."""
    return [trial(90.0, rate, rank, study) for study, (rate, rank) in enumerate(settings)]


# Picks


def test_trials_are_ranked_by_their_last_score_and_those_without_an_end_are_left_out():
    low, high = trial(80.0, 1e-3), trial(90.0, 2e-3)
    assert ranked([low, trial(99.0, 3e-3, ended="pruned"), high, trial(98.0, 4e-3, ended="diverged")]) == [high, low]


def test_of_equal_scores_the_rate_in_the_middle_is_first():
    # the rates are a factor of ten apart: the median of their logarithms is that of 1e-3
    equal = [trial(90.0, rate) for rate in (1e-4, 1e-3, 1e-2)]
    assert ranked([*equal, trial(80.0, 2e-3)])[0] == equal[1]


def test_each_study_has_its_best_and_one_in_which_all_diverged_has_none():
    first, second = trial(90.0, 1e-3), trial(70.0, 2e-3, study=2)
    trials = [trial(60.0, 5e-3), first, trial(99.0, 1e-2, study=1, ended="diverged"), second]
    assert best_of_studies(trials) == [first, second]


def test_three_settings_go_on_each_once_of_whatever_study():
    trials = [trial(90.0 + n, 1e-3 * (n + 1), study=n % 2) for n in range(4)] + [trial(95.0, 4e-3, study=1)]
    assert finalists(trials) == [Setting(rate=4e-3), Setting(rate=3e-3), Setting(rate=2e-3)]


# The space


@pytest.mark.parametrize(
    ("rate", "rank", "ends"),
    [
        (1.2e-4, 4, ["lowest rate"]),  # 0.04 of the two decades
        (1.3e-4, 4, []),  # 0.057
        (9e-3, 8, ["highest rate", "highest rank"]),  # 0.977
        (1e-3, 2, ["lowest rank"]),
        (1e-3, None, []),
    ],
)
def test_a_best_setting_in_the_outer_twentieth_of_the_rates_or_at_the_last_rank_is_on_the_edge(rate, rank, ends):
    assert list(SPACE.edges(Setting(rate=rate, rank=rank))) == ends


def test_one_rank_has_no_edge():
    assert Space(low=1e-4, high=1e-2, ranks=(8,)).edges(Setting(rate=1e-3, rank=8)) == ()


def test_the_optimum_is_on_an_edge_where_most_studies_have_it_there():
    assert edges(SPACE, best_at((9.9e-3, 4), (9.8e-3, 2), (1e-3, 4))) == ["highest rate"]
    assert edges(SPACE, best_at((9.9e-3, 8), (1e-3, 4), (1.01e-4, 2))) == []
    assert edges(SPACE, best_at((9.9e-3, 8), (1e-3, 4))) == []  # one of two
    assert edges(SPACE, best_at((9.9e-3, 4))) == ["highest rate"]


@pytest.mark.parametrize("bounds", [(1e-2, 1e-3), (0.0, 1e-3), (1e-3, math.inf), (1e-3, 1e-3)])
def test_a_space_without_rates_is_refused(bounds):
    with pytest.raises(InputError, match=r"no rate lies between .* give two above 0, the lower one first"):
        Space(low=bounds[0], high=bounds[1])


# Rates and ranks


def test_the_median_of_rates_is_taken_in_their_logarithm():
    assert middle([1e-4, 1e-3, 5e-2]) == pytest.approx(1e-3)
    assert middle([1e-4, 1e-2]) == pytest.approx(1e-3)


def test_each_rank_has_its_best_trial():
    four, eight = trial(90.0, 2e-3, 4), trial(85.0, 1e-3, 8, study=1)
    assert by_rank([trial(80.0, 9e-3, 4), eight, four, trial(99.0, 1e-3, 16, ended="pruned")]) == {4: four, 8: eight}


def test_the_rate_moves_by_a_factor_when_the_rank_doubles():
    assert per_doubling({2: 1e-3, 4: 2e-3, 8: 4e-3}) == pytest.approx(2.0)
    assert per_doubling({4: 1e-3, 16: 2.5e-4}) == pytest.approx(0.5)
    # logarithms 0, 1, 0 of base 4 at doublings 0, 1, 2: least squares are level
    assert per_doubling({1: 1e-3, 2: 4e-3, 4: 1e-3}) == pytest.approx(1.0)
    assert per_doubling({8: 1e-3}) is None


# The recipe beside the best found


def test_the_distance_is_paired_by_seed():
    # falls of 1, 2 and 3: mean 2, deviation 1; t for 2 degrees of freedom at 97.5 % is 4.303, and 4.303 / sqrt(3) is 2.484
    found = distance([91.0, 93.0, 95.0], [90.0, 91.0, 92.0])
    assert (found.points, found.low, found.high) == (2.0, pytest.approx(-0.484, abs=1e-3), pytest.approx(4.484, abs=1e-3))


@pytest.mark.parametrize(("within", "verdict"), [(5.0, "within"), (3.0, "cannot tell"), (0.0, "cannot tell")])
def test_a_recipe_is_within_where_the_whole_interval_is(within, verdict):
    assert distance([91.0, 93.0, 95.0], [90.0, 91.0, 92.0]).verdict(within) == verdict


def test_a_recipe_is_beyond_where_the_whole_interval_is():
    assert distance([95.0, 95.1, 95.2], [90.0, 90.1, 90.2]).verdict(1.0) == "beyond"
    assert distance([95.0], [90.0]).verdict(1.0) == "cannot tell"  # one seed


RECIPE = Setting(rate=5e-4, rank=4)


def tuned(cell="bert_sa_lora", best=(1e-3, 2e-3, 4e-3), finals=None, within=1.0):
    """Three studies whose best rates are given, at ranks 2, 4 and 8, with scores 90, 91 and 92."""
    trials = [trial(90.0 + study, rate, 2 * 2**study, study) for study, rate in enumerate(best)]
    kept = dict(finals or {})
    scores = {RECIPE: ((88.0, 80.0), (88.0, 81.0)), trials[0].setting: ((89.0, 86.0), (93.0, 87.0))} | kept
    runs = [
        FinalRun(setting=setting, seed=first + seed, updates=40, validation=validation, test=test if first == 2000 else None)
        for first in (1000, 2000)
        for setting, pairs in scores.items()
        for seed, (validation, test) in enumerate(pairs)
    ]
    return Tuned(cell=cell, score="accuracy", space=SPACE, recipe=RECIPE, within=within, trials=trials, finals=runs)


def test_the_best_found_has_the_best_mean_on_validation_rows_not_on_test_rows():
    third = Setting(rate=4e-3, rank=8)
    assert tuned(finals={third: ((90.0, 99.0), (91.0, 99.0))}).winner == Setting(rate=1e-3, rank=2)  # 91 beats 90.5
    assert tuned(finals={third: ((92.0, 10.0), (91.0, 10.0))}).winner == third


def test_the_seeds_that_tell_choose_nothing_and_those_that_choose_tell_nothing():
    one, third = tuned(), Setting(rate=4e-3, rank=8)
    lucky = FinalRun(setting=third, seed=2000, updates=40, validation=100.0, test=100.0)
    chosen_by = FinalRun(setting=third, seed=1000, updates=40, validation=90.5, test=None)
    again = replace(one, finals=[*one.finals, lucky, chosen_by])
    assert again.winner == Setting(rate=1e-3, rank=2)  # 91 beats 90.5
    assert again.tests(third) == [100.0]
    assert again.tests(again.winner) == [86.0, 87.0]


def test_a_setting_that_diverges_with_a_fresh_seed_is_not_the_best_found():
    third = Setting(rate=4e-3, rank=8)
    assert tuned(finals={third: ((99.0, 99.0), (None, None))}).winner == Setting(rate=1e-3, rank=2)


def test_the_table_and_the_sentences_say_all_of_it():
    # falls of 6 and 6 over two seeds deviate by the least of 0.1: 12.706 x 0.1 / 2 ** 0.5 is 0.898; those of 1 and 5 on
    # validation rows by 8 ** 0.5, so that the reach is 12.706 x 2
    full = tuned("bert_sa_sft", best=(1e-4, 1e-4, 2e-4), within=0.5)
    text = as_text([tuned(), full], rate_ratios([tuned(), full], "sft")).splitlines()
    assert text[1].split() == ["bert_sa_lora", "accuracy", "91.00", "90.00", "to", "92.00", "0.001", "2", "86.50", "80.50"]
    assert text[3:] == [
        "bert_sa_lora: the best found (rate 0.001, rank 2) scores 86.50, the recipe (rate 0.0005, rank 4) 80.50: +6.00 "
        "(+5.10 to +6.90) on test rows, +3.00 (-22.41 to +28.41) on validation rows (40 updates each, further seeds: 2); "
        "the recipe is not within 1 point",
        "bert_sa_lora: the best found has the lowest rate tried: with more --trials a lower one may be better",
        "bert_sa_lora: the best rate is 0.001 at rank 2, 0.002 at rank 4, 0.004 at rank 8; whether it moves with the rank "
        "cannot be told by 1 trial of a rank",
        "bert_sa_sft: the best found (rate 0.0001, rank 2) scores 86.50, the recipe (rate 0.0005, rank 4) 80.50: +6.00 "
        "(+5.10 to +6.90) on test rows, +3.00 (-22.41 to +28.41) on validation rows (40 updates each, further seeds: 2); "
        "the recipe is not within 0.5 points",
        "bert_sa_sft: the optimum is on the edge of the space (lowest rate): widen it with --rates",
        "bert_sa_sft: the best rate is 0.0001 at rank 2, 0.0001 at rank 4, 0.0002 at rank 8; whether it moves with the rank "
        "cannot be told by 1 trial of a rank",
        "bert_sa: rate(lora) / rate(sft) is 20 (5 to 40 over pairs of studies)",
        "2 cells, the best found less the recipe: on test rows +6.00 on average, 2 beyond; "
        "on validation rows +3.00 on average, 2 cannot tell",
    ]


def test_three_trials_of_each_rank_tell_how_the_best_rate_moves():
    one = tuned()
    more = [trial(50.0, 9e-3, rank) for rank in (2, 4, 8) for _ in range(2)]
    told = replace(one, trials=[*one.trials, *more]).sentences[-1]
    assert told.endswith("0.004 at rank 8; whether it moves with the rank cannot be told (a factor of 2.00, one study)")


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (4e-3, "it moves by a factor of 4.00 when the rank doubles (2.00 to 4.00 by study)"),
        (1e-3, "whether it moves with the rank cannot be told (a factor of 4.00, 0.50 to 4.00 by study)"),
    ],
)
def test_a_move_with_the_rank_is_one_where_every_study_has_it(rate, words):
    """From rank 2 to 4 the first study's best rate goes from 1e-3 to 4e-3, the second one's from 2e-3 to `rate`."""
    first = [trial(90.0, 1e-3, 2), trial(90.0, 4e-3, 4), trial(10.0, 9e-3, 2), trial(10.0, 9e-3, 4)]
    second = [trial(80.0, 2e-3, 2, study=1), trial(80.0, rate, 4, study=1)]
    assert replace(tuned(), trials=[*first, *second]).sentences[-1].endswith(words)


def test_one_fresh_seed_tells_no_distance():
    first = tuned()
    alone = Tuned(**vars(first) | {"finals": [run for run in first.finals if run.seed in (1000, 2000)]})
    assert alone.sentences[0].endswith(
        "on validation rows (40 updates each, further seeds: 1); one seed does not tell whether the recipe is within 1 point"
    )
    assert not alone.misses


def test_a_recipe_that_is_far_off_misses():
    assert tuned().misses
    assert not tuned(within=6.0).misses


# Ratios


def test_ratios_are_of_medians_and_lie_between_the_studies_farthest_apart():
    lora, full = tuned(best=(1e-3, 2e-3, 4e-3)), tuned("bert_sa_sft", best=(1e-4, 4e-4, 2e-4))
    (ratio,) = rate_ratios([full, lora], "sft")
    # 2e-3 / 2e-4; 1e-3 / 4e-4; 4e-3 / 1e-4
    assert (ratio.group, ratio.method) == ("bert_sa", "lora")
    assert (ratio.ratio, ratio.low, ratio.high) == (pytest.approx(10.0), pytest.approx(2.5), pytest.approx(40.0))


def test_a_group_without_the_reference_and_another_group_have_no_ratio():
    assert rate_ratios([tuned(), tuned("gpt2_sa_sft")], "sft") == []


def test_the_figures_are_plain_json():
    figures = json.loads(json.dumps(tuned().as_json()))
    assert figures["best_scores"] == [90.0, 91.0, 92.0]
    assert figures["winner"] == {"rate": 1e-3, "rank": 2}
    assert figures["distance"]["points"] == 6.0


def test_markdown_says_the_same_as_text():
    ratios = rate_ratios([tuned()], "sft")
    table, _, sentences = as_markdown([tuned()], ratios).partition("\n\n")
    assert [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")] == list(tuned().row)
    assert [line.removeprefix("* ") for line in sentences.splitlines()] == as_text([tuned()], ratios).splitlines()[2:]


def test_the_lowest_rate_that_was_tried_has_no_lower_one_beside_it():
    # rates of the three studies are 1e-3, 2e-3 and 4e-3, and the best found has the first: none is near the space's end
    assert (tuned().edges, tuned().outermost) == ([], "lowest")
    assert "the best found has the lowest rate tried: with more --trials a lower one may be better" in tuned().sentences[1]
    inside = replace(tuned(), trials=[*tuned().trials, trial(50.0, 5e-4, 2)])
    assert inside.outermost is None


def test_a_recipe_that_alone_diverges_misses_and_is_counted():
    found = tuned(finals={RECIPE: ((88.0, 80.0), (None, None))})
    assert (found.distance, found.misses) == (None, True)
    assert "with a further seed the recipe (rate 0.0005, rank 4) diverged, so the two are not compared" in found.sentences[0]
    assert as_text([tuned(), tuned(), found], []).splitlines()[-1].endswith("; 1 not compared")


def test_a_cell_whose_trials_all_diverged_says_so():
    none = replace(tuned(), trials=[trial(0.0, 1e-2, ended="diverged")], finals=[])
    assert none.row[2:6] == ("-", "-", "-", "-")
    assert (none.misses, none.sentences[0]) == (True, "bert_sa_lora: every trial diverged; give lower --rates")
