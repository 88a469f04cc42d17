"""Saved models, and what lies between two: real micro models, saved and loaded again."""

import shutil
from dataclasses import replace

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from tunegrid.commands.path import between, main, unlike_record
from tunegrid.data.splits import Splits
from tunegrid.errors import InputError
from tunegrid.record import data_record, new_record
from tunegrid.record.parts import ModelRecord
from tunegrid.results.path import SHARES, barrier
from tunegrid.run import path, saved
from tunegrid.run.path import Judge, along, mean, state_of
from tunegrid.run.serving import Serving
from tunegrid.tests.small import CPU, cell_of, codec_for, rows_of, silent, tokenizer_of, trainer_of

ROWS = rows_of("amazon_polarity/train")
TRAINED, VALIDATION, TEST = ROWS[:640], ROWS[640:800], ROWS[800:960]


def trained(cell_id, steps=40, **changes):
    trainer = trainer_of(cell_id, TRAINED, max_steps=steps, num_train_epochs=1, **changes)
    trainer.run(silent())
    return trainer.model.eval()


def splits():
    return Splits(
        train=TRAINED, validation=VALIDATION, test=TEST, origins=dict.fromkeys(("train", "validation", "test"), "made up")
    )


def kept(model, cell_id, root, seed=0):
    """A model as a session saves it, with the score that it has."""
    cell = cell_of(cell_id)
    cell = replace(cell, profile=replace(cell.profile, seed=seed))
    score, _ = Judge(codec=codec_for(cell_id), device=CPU).scored(model, TEST)
    facts = {
        "checkpoint": "gpt2-micro",
        "fingerprint": "f" * 16,
        "architecture": "GPT2ForSequenceClassification",
        "adapted_modules": [],
    }
    parts = {"data": data_record(cell, splits()), "model": ModelRecord(**facts), "scores": {"accuracy": score}}
    record = replace(new_record(cell), **parts)
    return saved.read(saved.save(cell, model, tokenizer_of(cell_id), record, root, Serving()))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [kept(trained(cell_id), cell_id, root) for cell_id in ("gpt2_sa_lora", "gpt2_sa_sft")]


# Weights


def test_the_ends_of_a_path_are_the_models_bit_for_bit():
    first, second = ({"w": torch.randn(50, generator=torch.Generator().manual_seed(n)), "n": torch.tensor(3)} for n in (0, 1))
    for share, end in ((0.0, first), (1.0, second)):
        assert torch.equal(path.between(first, second, share)["w"], end["w"])
    assert torch.allclose(path.between(first, second, 0.25)["w"], 0.75 * first["w"] + 0.25 * second["w"])
    assert torch.allclose(mean([first, second])["w"], (first["w"] + second["w"]) / 2)
    assert mean([first, second])["n"] == 3


def test_layers_of_gpt2s_kind_have_the_weights_of_linear_ones():
    """Square ones too, whose shape does not tell."""
    turned, linear = torch.nn.Sequential(Conv1D(4, 4)), torch.nn.Sequential(torch.nn.Linear(4, 4))
    path.load_state(turned, state_of(linear))
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(turned(inputs), linear(inputs))
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(state_of(turned).values(), state_of(linear).values(), strict=True)
    )


def test_models_of_other_shapes_have_no_path():
    with pytest.raises(InputError, match="2 tensors that do not match, a among them"):
        path.check_states(
            {"a": torch.zeros(2), "w": torch.zeros(1)}, {"a": torch.zeros(3), "w": torch.zeros(1), "b": torch.zeros(1)}
        )


# Saved models


def test_saved_models_loaded_again_have_the_scores_of_their_records_exactly(pair):
    assert [unlike_record(one, TEST, CPU) for one in pair] == ["", ""]
    other = replace(pair[0], record=replace(pair[0].record, scores={"accuracy": 12.5}))
    assert unlike_record(other, TEST, CPU).endswith("loaded again, but its record has 12.5")


@pytest.mark.slow
def test_from_a_merged_adapter_to_full_fine_tuning_of_one_base_there_is_no_barrier(pair):
    result = between(*pair, splits(), CPU)
    recorded = [one.record.scores["accuracy"] for one in pair]
    assert [result.test[end] for end in (0.0, 1.0)] == recorded
    assert not result.barrier.seen
    assert result.scales[0.0] < result.scales[1.0] == result.validation[0.0]
    assert set(result.test) == {0.0, result.chosen, 1.0}


def test_to_the_same_function_in_another_basin_there_is_a_barrier(pair):
    """The twin's hidden units stand in another order, as those of an independently started model (Entezari et al. 2022)."""
    model = pair[1].merged(CPU)
    first, judge = state_of(model), Judge(codec=codec_for("gpt2_sa_sft"), device=CPU)
    order = torch.randperm(model.config.n_embd, generator=torch.Generator().manual_seed(0))
    twin = {name: reordered(name, weight, order) for name, weight in first.items()}
    points = {share: judge.points(one, VALIDATION) for share, one in along(model, first, twin, SHARES)}
    assert points[0.0] == points[1.0]
    assert barrier(points).seen


def reordered(name, weight, order):
    """One of GPT-2's tensors with the units of what flows from layer to layer in another order."""
    if name.endswith("c_proj.weight"):  # (out, in): it gives to that flow, and others take from it
        return weight[order]
    return weight if name.endswith(("c_attn.bias", "c_fc.bias")) else weight[..., order]


# What is refused


def test_a_folder_without_a_model_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "other")])
    assert (
        "holds no saved model (FileNotFoundError of record.json); `pytest --save-models=DIR` leaves" in capsys.readouterr().err
    )
    for folders in ([str(tmp_path)], [str(tmp_path), f"{tmp_path}/x/.."]):
        with pytest.raises(SystemExit):
            main(folders)
        assert "a path has two ends: give two folders, or more for their mean, each once" in capsys.readouterr().err


@pytest.mark.parametrize("index", [0, 1], ids=["an adapter", "all weights"])
@pytest.mark.parametrize("name", ["weights", "tokenizer.json"])
def test_a_damaged_model_is_one_sentence(pair, tmp_path, index, name):
    shutil.copytree(pair[index].folder, tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*.safetensors" if name == "weights" else name):
        file.write_text("x")
    damaged = replace(pair[index], folder=tmp_path / "saved")
    for use in (damaged.served, damaged.merged):
        with pytest.raises(InputError, match=r"cannot load .*saved"):
            use(CPU)


def test_models_of_other_bases_or_seeds_are_refused(pair):
    first, second = pair
    other = replace(second, record=replace(second.record, model=replace(second.record.model, fingerprint="0" * 16)))
    with pytest.raises(InputError, match=r"no path leads from .*: the checkpoint is f{16} and 0{16}"):
        path.check_alike([first, other])
    other = replace(second, record=replace(second.record, model=replace(second.record.model, architecture="BertMLPClassifier")))
    with pytest.raises(InputError, match="the head is GPT2ForSequenceClassification and BertMLPClassifier"):
        path.check_alike([first, other])
    seeded = replace(second, record=replace(second.record, seeds=replace(second.record.seeds, seed=3)))
    with pytest.raises(InputError, match="have seeds 0 and 3, so their heads start elsewhere"):
        path.check_seed(first, seeded)
    with pytest.raises(
        InputError, match="are of gpt2_sa_lora and gpt2_sa_sft: give two models for a path, or seeds of one cell"
    ):
        path.check_seeds([first, seeded])
    path.check_seeds([second, seeded])
    with pytest.raises(InputError, match="two models have one seed"):
        path.check_seeds([second, second])
    with pytest.raises(InputError, match="the rows are not those of its run"):
        first.splits()  # these trained on some rows alone
