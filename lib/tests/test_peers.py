"""Our loop beside other people's: what a ratio is, what does not count, and a race of micro cells."""

from dataclasses import replace
from multiprocessing import active_children

import pytest
import torch

from lib.codecs.base import IGNORED
from lib.commands import peers as command
from lib.data.splits import load_splits
from lib.errors import InputError
from lib.results import peers
from lib.results.peers import CellPeers, PeersRun, Stage, Timed, held
from lib.run import peers_rounds
from lib.run.peers import race_of, shortened, without_dropout
from lib.run.peers_apart import apart
from lib.run.peers_train import contenders, padded_to_max, raced
from lib.tests.small import CPU, cell_of, codec_for, model_of, rows_of, silent
from lib.tests.test_parity import ROWS

# Worked out by hand: three rounds of 96 rows.
TRAIN = {
    "ours": Timed(seconds=[1.0, 2.0, 1.0], figure=0.5),
    "trainer": Timed(seconds=[1.5, 2.0, 1.4], figure=0.5),
    "trainer defaults": Timed(seconds=[0.5, 0.5, 0.5], figure=0.6),
    "peft loop": Timed(seconds=[1.2, 3.0, 1.3], figure=0.50005),
    "bare": Timed(seconds=[0.8, 1.6, 1.0], figure=0.5),
}


def cell(**stages):
    train = held(Stage(samples=96, contenders={name: replace(timed) for name, timed in TRAIN.items()}), "fp32")
    return CellPeers(cell="bert_sa_lora", precision="fp32", batch=(16, 1), updates=6, train=train, **stages)


def run(*cells):
    versions = dict.fromkeys(("torch", "transformers", "peft", "accelerate"), "1.0")
    return PeersRun(date="2026-11-25", device="a CPU", threads=2, micro=True, versions=versions, cells=list(cells))


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds():
    assert cell().train.ratios("trainer") == [1.5, 1.0, 1.4]
    assert peers.trained(cell()) == 1.4
    assert cell().train.rate("ours") == 96.0
    assert peers.of_bare_time(cell()) == pytest.approx(1.25)  # 1 / 0.8, 2 / 1.6, 1 / 1


def test_a_contender_may_take_fewer_rows_a_round():
    train = Stage(samples=96, contenders={"ours": Timed(seconds=[2.0]), "trainer defaults": Timed(samples=16, seconds=[1.0])})
    assert train.rate("trainer defaults") == 16.0
    assert train.ratios("trainer defaults") == [3.0]  # 1/16 s a row, ours 1/48


def test_the_best_peer_is_the_fastest_that_counts_and_never_the_bare_loop():
    assert cell().train.best_peer() == "peft loop"  # by ratios 1.2, 1.5, 1.3; Trainer's defaults compute another loss
    assert cell().train.ratio("trainer defaults") is None


def test_what_computes_another_thing_does_not_count_and_a_sentence_says_why():
    assert list(cell().objections()) == [
        "bert_sa_lora: trainer defaults does not count: its last loss is 0.6, ours 0.5: they may differ by 0.0001"
    ]


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "counts"),
    [
        ("fp32", 0.5, 0.50009, True),
        ("fp32", 0.5, 0.50011, False),
        ("bf16", 0.5, 0.5069, True),  # what rounding may do, by numerics.toml
        ("bf16", 0.5, 0.5071, False),
        ("nf4", 0.5, 0.5119, True),
        ("nf4", 0.5, 0.5121, False),
        ("evaluation", 5.0, 5.09, True),
        ("evaluation", 0.5, 0.53, False),
        ("texts", 1.0, 0.96, True),
        ("texts", 1.0, 0.94, False),
        ("fp32", float("nan"), float("nan"), False),
    ],
)
def test_figures_may_differ_by_what_rounding_does(kind, ours, theirs, counts):
    stage = Stage(samples=1, contenders={"ours": Timed(figure=ours), "trainer": Timed(figure=theirs)})
    assert (held(stage, kind).contenders["trainer"].does_not_count == "") is counts


def test_a_cell_is_a_sentence_for_whoever_waits():
    assert peers.line(cell()) == "bert_sa_lora: 96.00 samples/s, 1.30 x peft loop, 1.25 x the bare loop's time"


def test_goals_say_where_they_do_not_hold():
    evaluate = held(
        Stage(samples=10, contenders={"ours": Timed(seconds=[1.0], figure=1.0), "trainer": Timed(seconds=[1.4], figure=1.0)}),
        "evaluation",
    )
    assert peers.goals(run(cell(evaluate=evaluate))) == [
        "holds: training at least 1.3 x as fast as Trainer at its best: 1 of 1 cells",
        "does not hold: training in at most 1.03 x the bare loop's time: 0 of 1 cells; bert_sa_lora 1.25",
        "holds: evaluation at least 1.3 x as fast as Trainer's: 1 of 1 cells",
        "not measured: generation at least 2 x as fast as plain batches",
        "holds: nothing slower than the fastest peer: 1 of 1 cells",
    ]


def test_evaluation_is_held_to_the_faster_of_trainer_s_batches():
    theirs = {"trainer": [1.4, 1.6, 1.5], "trainer defaults": [1.2, 1.3, 1.1]}
    contenders = {name: Timed(seconds=seconds, figure=1.0) for name, seconds in (("ours", [1.0, 1.0, 1.0]), *theirs.items())}
    evaluate = held(Stage(samples=10, contenders=contenders), "evaluation")
    assert peers.evaluated(cell(evaluate=evaluate)) == 1.2
    contenders.pop("trainer defaults")
    assert peers.evaluated(cell(evaluate=evaluate)) == 1.5
    assert peers.evaluated(cell()) is None


def test_a_saved_race_is_printed_again(tmp_path, capsys):
    path = tmp_path / "new" / "peers.json"
    peers.save(run(cell()), path)
    assert peers.load(path) == run(cell())
    assert command.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("peers: micro backbones; on a CPU, 2 threads, 2026-11-25; torch 1.0")
    assert " ".join(lines[2].split()) == "bert_sa_lora 96.00 peft loop 73.85 1.30 3, 1.20 to 1.50 - 1.25 - -"
    assert lines[4].startswith("holds: training at least 1.3 x")


def test_files_of_different_cells_are_one_table_in_the_grids_order(tmp_path, capsys):
    first, second, both = (tmp_path / name for name in ("first.json", "second.json", "both.json"))
    peers.save(replace(run(cell()), date="2026-11-26"), first)
    peers.save(run(replace(cell(), cell="t5_sum_sft"), replace(cell(), cell="bert_sa_sft")), second)
    assert command.main([str(first), str(second), "-o", str(both)]) == 0
    saved = peers.load(both)
    assert [one.cell for one in saved.cells] == ["t5_sum_sft", "bert_sa_lora", "bert_sa_sft"]
    assert saved.date == "2026-11-26"
    assert "of 3 cells" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (run(cell()), "bert_sa_lora is in two of them"),
        (replace(run(replace(cell(), cell="t5_sum_sft")), threads=1), "they differ in threads"),
    ],
)
def test_files_that_cannot_be_one_table_are_refused(other, why, tmp_path, capsys):
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for path, measured in zip(paths, (run(cell()), other), strict=True):
        peers.save(measured, path)
    with pytest.raises(SystemExit):
        command.main(list(map(str, paths)))
    assert f"cannot be one table: {why}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{", '{"cells": []}'])
def test_a_file_that_is_no_race_is_refused_in_one_sentence(content, tmp_path, capsys):
    path = tmp_path / "peers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        command.main([str(path)])
    assert "`pytest -m peers`" in capsys.readouterr().err


# A race


def race_on_micro(cell_id, updates=3, rows=40, **changes):
    torch.set_num_threads(1)
    cell = cell_of(cell_id, max_steps=updates, warmup_ratio=0.0, **changes)
    codec = codec_for(cell_id, **changes)
    features = codec.encode(rows_of(ROWS[cell_id.split("_")[1]])[:rows], training=True)
    return race_of(cell, model_of(cell_id), codec, features, CPU, silent())


def test_updates_are_full_and_rows_come_again_where_there_are_too_few():
    race = race_on_micro("bert_sa_sft", rows=20)
    assert [len(batch) for group in race.groups for batch in group] == [16, 16, 16]
    assert sorted(feature.example for feature in race.ordered) == sorted([*range(20), *range(20), *range(8)])
    assert len(shortened(race, 1).ordered) == 16


# One of each backbone and task, three of each method.
GROUPS = (
    *("bert_sum_lora", "gpt2_sum_qlora", "t5_sum_sft"),
    *("bert_qa_lora", "gpt2_qa_sft", "t5_qa_qlora"),
    *("bert_sa_sft", "gpt2_sa_qlora", "t5_sa_lora"),
)


@pytest.mark.parametrize("cell_id", GROUPS)
def test_all_contenders_compute_the_same_losses(cell_id):
    race = race_on_micro(cell_id, per_device_train_batch_size=4, learning_rate=1e-3)
    names = contenders(race.cell)
    assert ("peft loop" in names) is not cell_id.endswith("sft")
    with without_dropout(race.model):
        losses = {name: raced(race, name).losses for name in names}
    assert all(len(course) == 3 for course in losses.values())
    tolerance = 1e-2 if cell_id.endswith("qlora") else 1e-4
    for name, course in losses.items():
        assert course == pytest.approx(losses["ours"], abs=tolerance), name
    assert losses["ours"][0] != pytest.approx(losses["ours"][2], abs=1e-3)


def test_other_peoples_loops_run_in_a_process_of_their_own_from_the_same_start():
    torch.set_num_threads(1)
    cell = cell_of("gpt2_sa_sft", max_steps=3, warmup_ratio=0.0, per_device_train_batch_size=4)
    codec, splits = codec_for("gpt2_sa_sft"), load_splits(cell.task, cell.profile)
    features = codec.encode(splits.train, training=True)
    race = race_of(cell, model_of("gpt2_sa_sft"), codec, features, CPU, silent())
    with apart(cell, CPU) as ask:
        seconds, peak_gib, loss = ask("parity", "trainer")
        assert loss == pytest.approx(peers_rounds.answer(race, (), "parity", "ours")[2], abs=1e-4)
        assert seconds > 0
        assert peak_gib is None
        with pytest.raises(InputError, match="gpt2_sa_sft: other people's loop 'nobody' failed in train: KeyError: 'nobody'"):
            ask("train", "nobody")
        assert ask("parity", "trainer")[2] == loss, "a question that had no answer ends nothing"
        active_children()[-1].kill()
        with pytest.raises(InputError, match="the process of other people's loops ended in train by 'trainer'"):
            ask("train", "trainer")


def test_a_race_of_fewer_updates_than_parity_takes_is_held_to_what_it_has():
    race = race_on_micro("gpt2_sa_sft", updates=2, per_device_train_batch_size=4)
    losses = {name: peers_rounds.answer(race, (), "parity", name)[2] for name in ("ours", "trainer", "bare")}
    assert losses == pytest.approx(dict.fromkeys(losses, losses["ours"]), abs=1e-4)


def test_a_race_leaves_the_model_as_it_was():
    race = race_on_micro("gpt2_sa_lora")
    hung, weights = set(vars(race.model)), {name: tensor.clone() for name, tensor in race.model.state_dict().items()}
    heats = peers_rounds.train(race, rounds=1)
    assert all(len(heat.seconds) == 1 and heat.seconds[0] > 0 for heat in heats.values())
    assert set(vars(race.model)) == hung
    assert all(torch.equal(tensor, weights[name]) for name, tensor in race.model.state_dict().items())
    assert race.model.config.use_cache is True


def test_our_loop_and_the_bare_one_take_five_turns_a_round_and_the_median_counts():
    race, turns, seconds = race_on_micro("bert_sa_sft"), [], iter(range(100))

    def asked(stage, name):
        turns.append(name)
        return float(next(seconds)), None, None

    heats = {name: peers_rounds.Heat() for name in ("ours", "trainer", "bare")}
    peers_rounds._take_turns(race, heats, "train", asked, rounds=2)
    finer = ["ours", "bare"] * 4
    assert turns == ["ours", "trainer", "bare", *finer, "trainer", "bare", "ours", *finer]
    # Turns of the first round are 0 to 10, of the second 11 to 21: ours 0 3 5 7 9 and 13 14 16 18 20.
    assert {name: heat.seconds for name, heat in heats.items()} == {"ours": [5, 16], "trainer": [1, 11], "bare": [6, 17]}


def test_a_row_padded_to_the_longest_length_has_the_same_labels():
    codec = codec_for("t5_sum_sft")
    feature = codec.encode(rows_of("cnn_dailymail/train")[:1], training=True)[0]
    row = padded_to_max(codec, feature)
    assert (len(row["input_ids"]), len(row["labels"]), len(row["decoder_input_ids"])) == (128, 28, 28)
    assert [label for label in row["labels"] if label != IGNORED] == feature.target
    assert sum(row["attention_mask"]) == len(feature.input_ids)


@pytest.mark.parametrize("cell_id", ["bert_sa_sft", "gpt2_qa_lora"])
def test_trainer_and_we_predict_the_same(cell_id):
    race = race_on_micro(cell_id)
    features = race.codec.encode(rows_of(ROWS[cell_id.split("_")[1]])[:70], training=False)
    heats = peers_rounds.evaluate(race, features, rounds=2)
    assert heats.keys() == {"ours", "trainer", "trainer defaults"}
    for heat in heats.values():
        assert heats["ours"].figure == pytest.approx(heat.figure, rel=1e-4)
        assert len(heat.seconds) == 2


def test_plain_batches_generate_the_same_texts():
    race = race_on_micro("gpt2_sum_sft")
    features = race.codec.encode(rows_of(ROWS["sum"])[:8], training=False)
    heats = peers_rounds.generate(race, features, rounds=1)
    assert {name: heat.figure for name, heat in heats.items()} == {"ours": 1.0, "plain generate": 1.0}
