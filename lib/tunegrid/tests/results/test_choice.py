"""The page that says which method to choose: each sentence on records whose answers are known by hand."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.record.parts import (
    CalibrationFigures,
    CalibrationRecord,
    ContrastRecord,
    DomainRecord,
    Estimate,
    ForgettingRecord,
    ShiftedRecord,
    ShiftRecord,
)
from tunegrid.results.choice import measured, page
from tunegrid.results.compare import compared
from tunegrid.results.files import read_list
from tunegrid.results.noise import Deviation, Noise, load_noise
from tunegrid.tests.records import MEASURED, PHASE, complete, trained

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"
RUN, MORE = Path("run.json"), Path("more.json")


def around(value, half):
    return Estimate(value=value, low=value - half, high=value + half)


def shifted(*changes):
    """The score of 90 and what each shift costs it: a change, and half of its interval."""
    shifts = {
        name: ShiftRecord(meaning="-", changed=10, read=10, score=90 + value, change=around(value, half))
        for name, value, half in changes
    }
    return ShiftedRecord(
        metric="accuracy",
        rows=100,
        score=90.0,
        repeated=True,
        unmoved=[],
        shifts=shifts,
        contrasts={"negated": ContrastRecord(meaning="-", pairs=100, right=90, both=81)},
        domain=None,
        examples=None,
    )


def forgot(nats, **changes):
    estimates = {"before": around(1.0, 0.1), "after": around(1.0 + nats, 0.1), "change": around(nats, 0.01)}
    known = {"objective": "masked", "texts": {"qa": 2}, "tokens": 40, "frozen": False, "refused": None}
    return ForgettingRecord(**known | estimates | changes)


def sure(ece, nll):
    figures = CalibrationFigures(
        confidence=80.0,
        ece=around(ece, 1.0),
        adaptive_ece=around(ece, 1.0),
        expected_ece=2.0,
        brier=around(0.1, 0.01),
        nll=around(nll, 0.01),
    )
    return CalibrationRecord(
        hits="accuracy",
        unscaled=figures,
        scaled=None,
        temperature=None,
        validation_rows=15,
        validation_nll=None,
        scaled_validation_nll=None,
    )


def with_parts(records, **parts):
    """The records, each with its own of these parts, seed by seed."""
    changed = []
    for seed, record in enumerate(records):
        own = {name: values[seed] for name, values in parts.items()}
        changed.append(replace(record, **own))
    return changed


def peaks(record, gib, seconds):
    memory = replace(record.memory, cells_before=0, phases={"train": replace(record.memory.phases["train"], rss_peak_gib=gib)})
    return replace(record, memory=memory, training=replace(record.training, seconds=seconds))


def two_methods():
    """SFT is 14 points above LoRA, and each deviation is the square root of 2."""
    return [*trained("bert_sa_sft", 93.0, 95.0), *trained("bert_sa_lora", 79.0, 81.0)]


def told(runs, noise=None, **options):
    task = options.get("task")
    runs = runs if isinstance(runs, dict) else {RUN: runs}
    return page(measured(runs, noise or Noise(), task), **options)


def section(text, heading):
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def bullets(text):
    return [line for line in text.splitlines() if line.startswith("* ")]


# Which method


def test_the_best_method_has_its_score_and_how_far_others_are_below():
    """A gap of two means of two has a standard error of the root of 2, of which t with two degrees takes 4.303."""
    [line] = bullets(section(told(two_methods()), "Which method for my task?"))
    assert line == (
        "* **sa on bert: accuracy, 2 seeds**: sft 94.0 (81.3 to 100.0; 2 seeds) is best; "
        "lora's score is 14.0 points below sft's (7.9 to 20.1). `tunegrid compare RUNS`"
    )


def test_a_method_that_noise_may_explain_is_not_best():
    records = [*trained("bert_sa_sft", 93.0, 95.0), *trained("bert_sa_lora", 92.0, 94.0)]
    [line] = bullets(section(told(records), "Which method for my task?"))
    assert (
        "sft 94.0 (81.3 to 100.0; 2 seeds) has the highest mean; lora's score (-7.1 to +5.1) cannot be told from sft's" in line
    )


def test_one_seed_whose_noise_nobody_knows_cannot_be_told():
    records = [*trained("bert_sa_sft", 99.0), *trained("bert_sa_lora", 10.0)]
    [line] = bullets(section(told(records), "Which method for my task?"))
    assert "which method is best cannot be told; scores are sft 99.0 (no interval), lora 10.0 (no interval)" in line
    assert "whether lora differs from sft in score cannot be told: a single seed does not say" in line


def test_one_seed_is_told_by_calibrated_noise():
    known = {(f"bert_sa_{method}", "accuracy"): Deviation(sd=1.0, df=9.0) for method in ("sft", "lora")}
    noise = Noise(profile="quick", rows={"sa": 10_000}, measured={"seeds": known})
    text = told([*trained("bert_sa_sft", 99.0), *trained("bert_sa_lora", 10.0)], noise)
    # each error is 1, with 9 + 9 - 2 degrees of freedom; of 32, t is 2.037 of the root of 2
    assert "lora's score is 89.0 points below sft's (86.1 to 91.9)" in section(text, "Which method for my task?")
    assert "no peak is known to be a cell's own" in section(text, "At which memory?")


def test_the_page_and_the_comparison_tell_the_same_methods_apart():
    runs = {BASELINE: read_list(BASELINE)}
    text = section(told(runs, load_noise()), "Which method for my task?")
    below = {
        (place, frozenset(pair))
        for line in bullets(text)
        for place in [line[4:].partition(":")[0]]
        for pair in re.findall(r"(\w+)'s score is [\d.]+ points below (\w+)'s", line)
    }
    comparisons = compared(runs, load_noise())
    apart = {
        (f"{one.task} on {one.backbone}", pair) for one in comparisons for pair in one.apart if one.sound[0].method in pair
    }
    assert below == apart
    assert len(below) == 5


# Memory and costs


def two_sizes():
    """SFT peaks at 8 and 8.2 GiB and takes 30 and 32 s, LoRA at 2 and 2.2 GiB and takes 10 and 12 s."""
    costs = [(8.0, 30.0), (8.2, 32.0), (2.0, 10.0), (2.2, 12.0)]
    return [peaks(record, *own) for record, own in zip(two_methods(), costs, strict=True)]


def test_peaks_have_a_range_and_a_difference_over_seeds():
    """6 GiB apart; 4.303 standard errors of the root of 0.02 are 0.61."""
    [line] = bullets(section(told(two_sizes()), "At which memory?"))
    assert "sft 8.10 GiB (8.00 to 8.20), lora 2.10 GiB (2.00 to 2.20)" in line
    assert "lora's peak is 6.00 GiB below sft's (5.39 to 6.61)" in line


@pytest.mark.parametrize(
    ("gib", "words"),
    [
        (4.0, "lora 80.0 (67.3 to 92.7; 2 seeds) alone stays within 4 GiB"),
        (2.1, "no method stays within 2.1 GiB"),  # one of LoRA's seeds takes more
        (9.0, "within 9 GiB sft 94.0 (81.3 to 100.0; 2 seeds) is best; lora's score is 14.0 points below sft's"),
    ],
)
def test_a_limit_names_the_best_method_within_it(gib, words):
    assert words in section(told(two_sizes(), gib=gib), "At which memory?")


@pytest.mark.parametrize(("gib", "known"), [(4.0, "lora"), (1.0, "no other method")])
def test_a_peak_that_was_not_measured_is_neither_within_a_limit_nor_beyond_it(gib, known):
    records = [replace(record, memory=None) if record.method == "sft" else record for record in two_sizes()]
    words = f"the peak of sft is not known; {known} stays within {gib:g} GiB"
    assert words in section(told(records, gib=gib), "At which memory?")
    assert "the peak of sft and lora is not known" in section(told(two_methods_without_memory(), gib=gib), "At which memory?")


def two_methods_without_memory():
    return [replace(record, memory=None) for record in two_methods()]


def test_a_peak_of_a_process_that_ran_other_cells_is_nobodys():
    records = [replace(record, memory=replace(record.memory, cells_before=3)) for record in two_sizes()]
    [line] = bullets(section(told(records, gib=4.0), "At which memory?"))
    assert "no peak is a cell's own, since processes ran several (--isolate=yes measures it); weights, gradients and" in line
    assert "the peak of sft and lora is not known; no other method stays within 4 GiB" in line


def test_a_peak_of_a_process_whose_cells_nobody_counted_is_not_known_to_be_its_own():
    records = [replace(record, memory=replace(record.memory, cells_before=None)) for record in two_sizes()]
    [line] = bullets(section(told(records), "At which memory?"))
    assert (
        "no peak is known to be a cell's own, since nobody counted what processes ran before (--isolate=yes measures it)"
        in line
    )


def test_seconds_and_checkpoints_stand_beside_each_other():
    """20 s apart; 4.303 standard errors of the root of 2."""
    [line] = bullets(section(told(two_sizes()), "How fast is it, and what does it cost?"))
    assert "sft 31.0 s (30.0 to 32.0) and a checkpoint of 0.00 MiB" in line
    assert "lora's time is 20.0 s below sft's (13.9 to 26.1)" in line


def test_joules_are_told_where_counters_were_read():
    ledger = MEASURED["memory"]["ledger"]
    memory = {"phases": {"train": PHASE | {"gpu_energy_joules": 700.0}}, "ledger": ledger}
    records = [complete("bert_sa_sft", memory=memory), complete("bert_sa_lora")]
    text = told(records)
    assert "700 J of the GPU" in section(text, "How fast is it, and what does it cost?")
    assert "energy was not measured of 1 of 2 cells: CPU: no RAPL counters" in section(text, "What cannot be told?")


# Instruments


def asked(sft, lora):
    """Two methods with these parts by seed."""
    records = two_methods()
    return [*with_parts(records[:2], **sft), *with_parts(records[2:], **lora)]


def test_a_drop_has_its_interval_and_methods_are_beside_sft_over_seeds():
    """LoRA loses 40 and 42 points to typos, SFT 10 and 12: 30 apart, errors 1 + 1 of seeds and 1 + 1 of rows."""
    sft = [shifted(("typos5", -10.0, 1.96), ("names", -0.5, 1.0)), shifted(("typos5", -12.0, 1.96), ("names", -0.5, 1.0))]
    lora = [shifted(("typos5", -40.0, 1.96), ("names", 0.5, 1.0)), shifted(("typos5", -42.0, 1.96), ("names", -0.5, 1.0))]
    [line] = bullets(section(told(asked({"shifted": sft}, {"shifted": lora})), "How robust?"))
    assert (
        "sft loses most under typos5, -11.0 of 90.0 (-13.0 to -9.0), and follows 90 % of answers that negated turns (82 to 95)"
        in line
    )
    assert "lora loses most under typos5, -41.0 of 90.0" in line
    assert "lora's change under typos5 is 30.0 points below sft's (25.4 to 34.6)" in line  # 2.306 of 2, with eight degrees
    assert "lora's change under names (" in line


def test_a_drop_whose_interval_holds_0_is_no_loss():
    part = [shifted(("typos5", -0.5, 1.0))] * 2
    [line] = bullets(section(told(asked({"shifted": part}, {"shifted": part})), "How robust?"))
    assert "no shift of 1 is seen to cost sft anything, not even typos5 (-1.5 to +0.5)" in line
    assert "loses" not in line


def test_a_shift_costs_something_where_its_interval_says_so_among_all_though_another_one_has_a_larger_mean():
    """Among two, an interval reaches 2.24 / 1.96 times as far: -3 + 4.6 and -2 + 0.57, and of -2 with 1.9 it holds 0."""
    words = [
        told(asked(*[{"shifted": [shifted(("typos10", -3.0, 4.0), ("aside", -2.0, half))] * 2}] * 2)) for half in (0.5, 1.9)
    ]
    assert "sft loses most under aside, -2.0 of 90.0 (-2.5 to -1.5)" in words[0]
    assert "no shift of 2 is seen to cost sft anything, not even typos10 (-7.0 to +1.0)" in words[1]


def test_answers_that_never_follow_are_told_and_each_shift_that_turns_them():
    never = ContrastRecord(meaning="-", pairs=8, right=8, both=0)
    part = replace(shifted(), contrasts={"year": never, "negated": ContrastRecord(meaning="-", pairs=10, right=10, both=10)})
    [line] = bullets(section(told(asked(*[{"shifted": [part] * 2}] * 2)), "How robust?"))
    assert "and follows 0 % of answers that year turns (0 to 32), 100 % of answers that negated turns (72 to 100)" in line


def test_another_data_set_is_told_with_its_interval():
    part = replace(
        shifted(), domain=DomainRecord(folder="books", rows=9, rows_hash="0" * 16, score=80.0, change=around(-10.0, 2.0))
    )
    [line] = bullets(section(told(asked({"shifted": [part] * 2}, {"shifted": [shifted()] * 2})), "How robust?"))
    assert "no shift changes a row of sft, and follows 90 % of answers that negated turns (82 to 95)" in line
    assert ", and on rows of books changes by -10.0 (-12.0 to -8.0), no shift changes a row of lora" in line


def test_what_no_method_reads_is_no_comparison():
    part = [shifted(("upper", 0.0, 0.0))] * 2
    [line] = bullets(section(told(asked({"shifted": part}, {"shifted": part})), "How robust?"))
    assert "change under upper" not in line


def test_an_ece_is_more_than_chance_only_where_every_seed_says_so():
    wild, calm = sure(5.0, 0.5), sure(2.5, 0.3)
    text = told(asked({"calibration": [wild, wild]}, {"calibration": [wild, calm]}))
    [line] = bullets(section(text, "How well does it know when it is right?"))
    assert "sft says 80.0 %, is right in 94.0 %: ECE 5.0 (4.0 to 6.0), more than the 2.0 of chance" in line
    assert "ECE 3.8 (2.8 to 4.8), in 1 of 2 seeds more than the 2.0 of chance" in line
    assert "lora's NLL (" in line
    text = told(asked({"calibration": [calm, calm]}, {"calibration": [calm, calm]}))
    assert "ECE 2.5 (1.5 to 3.5), not seen to be more than the 2.0 of chance" in text


def test_what_is_forgotten_is_beside_sft_over_seeds():
    """SFT 2.00 and 2.02 nats, LoRA 0.10 and 0.12: 1.9 apart."""
    sft, lora = [forgot(2.0), forgot(2.02)], [forgot(0.1), forgot(0.12)]
    [line] = bullets(section(told(asked({"forgetting": sft}, {"forgetting": lora})), "What does it forget?"))
    assert "sft +2.010 (+2.000 to +2.020), lora +0.110 (+0.100 to +0.120)" in line
    assert "lora's change of loss is 1.900 nats a token below sft's (1.8" in line


def test_one_seed_of_an_instrument_tells_no_method_from_another():
    records = [replace(one, forgetting=forgot(nats)) for one, nats in zip(two_methods()[::2], (2.0, 0.1), strict=True)]
    [line] = bullets(section(told(records), "What does it forget?"))
    assert "whether lora differs from sft in change of loss cannot be told" in line


def test_what_cannot_be_asked_says_why():
    nothing = dict.fromkeys(("before", "after", "change", "frozen", "objective"))
    refused = forgot(0.0, refused="the checkpoint has no such head", **nothing)
    records = asked({"forgetting": [refused] * 2}, {"forgetting": [refused] * 2})
    assert "sft cannot be asked: the checkpoint has no such head" in section(told(records), "What does it forget?")


@pytest.mark.parametrize(
    ("heading", "command"),
    [
        ("How robust?", "pytest -m shifted --cells bert_sa_sft,bert_sa_lora --seeds 0-1 --benchmark-json=more.json"),
        (
            "What does it forget?",
            "pytest -m forgetting --cells bert_sa_sft,bert_sa_lora --seeds 0-1 --benchmark-json=more.json",
        ),
        (
            "How well does it know when it is right?",
            "pytest -m quick --cells bert_sa_sft,bert_sa_lora --seeds 0-1 --benchmark-json=more.json",
        ),
    ],
)
def test_what_was_not_measured_has_the_command_that_measures_it(heading, command):
    [line] = bullets(section(told(two_methods()), heading))
    assert line.startswith(f"* not measured. `{command}` and then `tunegrid answer ")


def test_a_run_of_an_instrument_adds_to_one_of_the_same_cells_and_seeds():
    records = two_methods()
    more = with_parts(records, forgetting=[forgot(2.0), forgot(2.02), forgot(0.1), forgot(0.12)])
    both = told({RUN: records, MORE: more})
    assert "lora's change of loss is 1.900 nats a token below sft's" in both
    assert section(both, "Which method for my task?") == section(told(records), "Which method for my task?")
    with pytest.raises(InputError, match=r"run\.json and more\.json both hold bert_sa_sft of seed 0"):
        told({RUN: records, MORE: records})


def test_an_instrument_whose_audits_failed_is_not_told():
    audits = [{"name": "base_frozen", "passed": False, "detail": "3 tensors moved"}]
    failed = [*trained("bert_sa_lora", 79.0, forgetting=asdict(forgot(0.1)), audits=audits)]
    [line] = bullets(section(told({RUN: two_methods(), MORE: failed}), "What does it forget?"))
    assert line.startswith("* not measured. ")


# The study's claims, and what cannot be told


def test_a_claim_has_a_table_of_its_pairs():
    records = [*trained("bert_sa_sft", 90.0, 90.02), *trained("bert_sa_qlora", 90.1, 90.12)]
    text = section(told(records, task="sa"), "What does the study claim?")
    assert "### QLoRA comes close to SFT: cannot be told" in text
    assert "of 3 pairs, for it 1, against it 0, cannot be told 2" in text
    assert "| bert_sa_qlora - bert_sa_sft | accuracy | -1.00 | +0.1 | +0.04 to +0.16 | 2 seeds | holds |" in text
    assert "`pytest -m quick --cells gpt2_sa_qlora,gpt2_sa_sft,t5_sa_qlora,t5_sa_sft --seeds 0-1" in text
    assert "generation" not in text


def test_a_method_that_audits_object_to_is_left_out_and_named():
    audits = [{"name": "learned_something", "passed": False, "detail": "no better than the majority"}]
    text = told([*two_methods(), complete("bert_sa_qlora", audits=audits)])
    assert "qlora is left out: audit learned_something: no better than the majority" in section(text, "What cannot be told?")
    assert "qlora" not in section(text, "Which method for my task?")


def test_methods_that_cannot_be_told_apart_ask_for_more_seeds():
    records = [*trained("bert_sa_sft", 93.0, 95.0), *trained("bert_sa_lora", 92.0, 94.0)]
    line = bullets(section(told(records), "What cannot be told?"))[0]
    assert line.startswith("* 1 of 1 pairs of methods cannot be told apart by their scores")
    assert "`pytest -m quick --cells bert_sa_sft,bert_sa_lora --seeds 2-6 --benchmark-json=more.json`" in line


def test_methods_that_all_failed_an_audit_are_left_out():
    audits = [{"name": "learned_something", "passed": False, "detail": "-"}]
    text = told([complete(f"bert_sa_{method}", audits=audits) for method in ("sft", "lora")])
    assert "which method is best cannot be told: none passed its audits" in section(text, "Which method for my task?")
    assert len(re.findall("is left out: audit learned_something", section(text, "What cannot be told?"))) == 2


def test_a_task_that_no_run_has_is_one_sentence():
    with pytest.raises(InputError, match="no cell of task 'qa' in these runs; they hold sa"):
        told(two_methods(), task="qa")


def test_a_task_is_told_as_it_is_among_others():
    records = read_list(BASELINE)
    whole, alone = (told({BASELINE: records}, load_noise(), task=task) for task in (None, "qa"))
    for heading in ("Which method for my task?", "At which memory?", "How fast is it, and what does it cost?"):
        lines = bullets(section(alone, heading))
        assert len(lines) == 3
        assert set(lines) <= set(bullets(section(whole, heading)))


# What holds of every page

ENDS = r"\(([-+\d.]+) to ([-+\d.]+)\)"
DIFFERS = re.compile(rf"\w+'s [\w ]+ is [\d.]+ [\w ]+ (?:below|above) \w+'s {ENDS}")
LOSES = re.compile(rf"loses most under \w+, [-+\d.]+ of [\d.]+ {ENDS}")
MISFITS = re.compile(r"ECE [\d.]+ \(([\d.]+) to [\d.]+\), more than the ([\d.]+) of chance")


def every_instrument():
    parts = {
        "shifted": [
            shifted(("typos5", -10.0, 1.96), ("names", -0.5, 1.0)),
            shifted(("typos5", -12.0, 1.96), ("names", 0.5, 1.0)),
        ],
        "forgetting": [forgot(2.0), forgot(2.02)],
        "calibration": [sure(5.0, 0.5), sure(2.5, 0.3)],
    }
    lora = parts | {"forgetting": [forgot(0.1), forgot(0.12)], "shifted": [shifted(("typos5", -40.0, 1.96))] * 2}
    return {RUN: asked(parts, lora)}


def nothing_to_see():
    parts = {"shifted": [shifted(("typos5", -0.5, 1.0))] * 2, "calibration": [sure(2.5, 0.3)] * 2}
    return {RUN: asked(parts, parts)}


PAGES = {
    "baseline": lambda: told({BASELINE: read_list(BASELINE)}, load_noise()),
    "within 1.5 GiB": lambda: told({BASELINE: read_list(BASELINE)}, load_noise(), gib=1.5),
    "every instrument": lambda: told(every_instrument()),
    "nothing to see": lambda: told(nothing_to_see()),
    "costs": lambda: told(two_sizes()),
}


@pytest.mark.parametrize("name", PAGES)
def test_each_sentence_that_claims_a_difference_has_an_interval_that_leaves_out_0(name):
    text = PAGES[name]()
    prose = text.partition("\n## ")[2]
    differences = [tuple(map(float, ends)) for ends in DIFFERS.findall(prose)]
    losses = [tuple(map(float, ends)) for ends in LOSES.findall(prose)]
    assert len(differences) == len(re.findall(r"\b(?:below|above)\b", prose))
    assert [ends for ends in differences if not 0 < ends[0] <= ends[1]] == []
    assert len(losses) == prose.count("loses most")
    assert [ends for ends in losses if not ends[0] <= ends[1] < 0] == []
    assert [figures for figures in MISFITS.findall(prose) if not float(figures[0]) > float(figures[1])] == []
    for line in bullets(prose):
        assert "cannot be told" not in line.partition(") is best")[2]  # nothing is left that might be better


@pytest.mark.parametrize("name", PAGES)
def test_each_sentence_ends_in_a_command(name):
    lines = bullets(PAGES[name]())
    assert len(lines) > 10
    assert [
        line for line in lines if not re.search(r"\. `(?:tunegrid|pytest) [^`]+`(?: and then `tunegrid [^`]+`)?$", line)
    ] == []
