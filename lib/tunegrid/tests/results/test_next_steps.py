"""The third line of an answer: commands that are filled in, and hold nothing that a shell would obey."""

import shlex
from dataclasses import replace

from tunegrid.commands import bisect
from tunegrid.results.answer import answer_of
from tunegrid.results.judgements import Judgement, Verdict
from tunegrid.results.next_steps import COSTS, FLIPS, about_change, about_worse, command_of
from tunegrid.tests.records import complete

CELL = "bert_sa_lora"


def record(seed=0, profile="quick", libraries=None, **versions):
    seeds = {"seed": seed, "split_seed": 42, "perturbation": None}
    known = complete(CELL, seeds=seeds)
    return replace(known, profile=profile, versions={**known.versions, **versions}, libraries=libraries or {})


def judgement(quantity, verdict=Verdict.WORSE, **evidence):
    return Judgement(cell=CELL, main_score="accuracy", quantity=quantity, verdict=verdict, **evidence)


def test_the_command_is_one_that_bisect_takes_and_of_several_upgrades_the_others_are_named():
    before, after = ([record(seed, "full", torch=version) for seed in (0, 2)] for version in ("2.12.1+cpu", "2.13.0+cpu"))
    command = about_change(CELL, ["memory", "quality"], before, after).split("`")[1]
    assert command == (
        "tunegrid bisect --good torch==2.12.1+cpu --bad torch==2.13.0+cpu --cells bert_sa_lora --by quality,memory -- "
        "-m full --seeds 0,2"
    )
    _, options = bisect.parsed(shlex.split(command)[2:])
    assert (options.good, options.pytest_options) == ("torch==2.12.1+cpu", ["-m", "full", "--seeds", "0,2"])
    found = about_change(CELL, ["numerics"], [record(torch="2.12", peft="0.20")], [record(torch="2.13", peft="0.21")])
    assert found.startswith("`tunegrid bisect --good torch==2.12 --bad torch==2.13 ")
    assert found.endswith("` finds the release (peft changed, too)")


def test_a_release_that_is_none_is_bisected_by_commits_and_another_build_or_a_downgrade_not_at_all():
    def told(old, new, library="peft"):
        records = [record(libraries={library: digits}) for digits in ("1" * 16, "2" * 16)]
        pair = [replace(one, versions={**one.versions, library: text}) for one, text in zip(records, (old, new), strict=True)]
        return about_change(CELL, ["numerics"], pair[:1], pair[1:])

    assert "--repo CHECKOUT" in told("0.21.2", "0.22.0.dev0")
    assert "--repo CHECKOUT" in told("0.21.2", "0.21.2")  # other code of one version
    assert {told("0.21.2", other) for other in ("0.20.0", "not a version", None)} == {""}
    assert told("2.8.0+cpu", "2.8.0+cu128", "torch") == ""


def test_a_cell_is_run_again_with_its_marker_and_its_name_is_no_command_of_a_shell():
    assert command_of(replace(record(), cell="t5base_sa_lora", profile="full")).startswith("pytest -m 'full and larger' -n 0 ")
    assert command_of(replace(record(), instruments={"merges": "a part"})).endswith(" --ask merges")
    assert command_of(replace(record(3), cell="$(rm -r x)")) == "pytest -m quick -n 0 --cells '$(rm -r x)' --seeds 3"
    assert about_worse([judgement("accuracy")], [record()], [record()]) == FLIPS
    assert about_worse([judgement("weights_bytes")], [record()], [record()]) == COSTS


def test_the_gravest_growth_of_memory_is_the_cause():
    judged = [
        judgement("weights_bytes", effect=0.02, detail="a little"),
        replace(judgement("weights_bytes", effect=3.0, detail="a lot"), cell="bert_sa_sft"),
    ]
    assert "a lot" in answer_of([record()], judged, before=[record()]).cause


def test_a_worse_score_of_a_cell_whose_numerics_changed_has_that_cause_and_the_release_as_the_way_on():
    judged = [
        judgement("accuracy", effect=-5.0, detail="why"),
        judgement("numerics", Verdict.CHANGED, detail="backward: gradients of lora_B x 2 at update 1, forward equal"),
    ]
    before, after = record(peft="0.21.0"), record(peft="0.21.2")
    assert answer_of([after], judged, baseline="before.json", before=[before]).sentences == (
        "Failed against before.json: 1 cell worse (bert_sa_lora accuracy).",
        "Cause: numerics changed, first at the stage backward (1 cell, as in bert_sa_lora: gradients of lora_B x 2 at update "
        "1, forward equal).",
        "Next: `tunegrid bisect --good peft==0.21.0 --bad peft==0.21.2 --cells bert_sa_lora --by numerics` finds the release.",
        "The one cell reached every bound and passed every audit.",
        "Numerics changed in the one cell, first at the stage backward (1 cell, as in bert_sa_lora: gradients of lora_B x 2 at "
        "update 1, forward equal); that does not count here.",
    )
    same = [judged[0], judgement("numerics", Verdict.EQUAL)]
    assert answer_of([after], same, before=[before]).cause == "bert_sa_lora accuracy -5.00 points (why)"
