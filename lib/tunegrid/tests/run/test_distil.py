"""Distillation: its loss by hand for each kind of problem, on real micro models, and as a command."""

import copy
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tunegrid.codecs.base import IGNORED, Choice
from tunegrid.commands import distil as command
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.record import new_record
from tunegrid.record.parts import DataRecord, DistilledRecord, Origins, SplitRows
from tunegrid.run.distil import Distillation, check_teacher, divergence
from tunegrid.run.saved import Saved, read
from tunegrid.tests.sessions import SessionProcess
from tunegrid.tests.small import codec_for, still, train_rows, trainer_of

# At temperature 2, logits 2 ln 3 and 0 are probabilities 3/4 and 1/4: an even student is this far from such a teacher.
SURE = 2 * math.log(3)
APART = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
WILD = 50.0  # scores where nothing counts
HALF = Distillation(alpha=0.5, temperature=2.0)


def says(**outputs):
    """A model that gives these, whatever it reads."""
    return lambda **inputs: SimpleNamespace(**{name: torch.tensor(values) for name, values in outputs.items()})


# By hand


def test_the_divergence_is_the_teachers_from_the_students_times_the_square_of_the_temperature():
    student, teacher = (Choice(logits=torch.tensor([logits]), labels=torch.tensor([0])) for logits in ([0.0, 0.0], [SURE, 0.0]))
    assert float(divergence(student, teacher, 2.0)) == pytest.approx(4 * APART)
    # The other way round it is another figure, since the divergence is not symmetric.
    assert float(divergence(teacher, student, 2.0)) == pytest.approx(4 * 0.5 * math.log(0.5 / 0.75 * 0.5 / 0.25))
    # Without softening, the same teacher says 9/10 and 1/10.
    assert float(divergence(student, teacher, 1.0)) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))


def test_its_gradient_is_the_temperature_times_the_difference_of_probabilities_and_none_for_a_student_that_agrees():
    def gradient(student, teacher):
        logits = torch.tensor([student], requires_grad=True)
        labels = torch.tensor([1])
        divergence(*(Choice(logits=own, labels=labels) for own in (logits, torch.tensor([teacher]))), 2.0).backward()
        return logits.grad[0].tolist()

    assert gradient([0.0, 0.0], [SURE, 0.0]) == pytest.approx([2 * (0.5 - 0.75), 2 * (0.5 - 0.25)])
    assert gradient([0.7, -1.3], [0.7, -1.3]) == pytest.approx([0, 0], abs=1e-6)


def test_of_labels_it_is_summed_over_rows():
    codec, batch = codec_for("bert_sa_lora"), {"labels": torch.tensor([0, 1])}
    student, teacher = says(logits=[[0.0, 0.0]] * 2), says(logits=[[SURE, 0.0], [0.0, 0.0]])
    assert float(HALF.loss(codec, teacher, student, batch)) == pytest.approx(0.5 * 2 * math.log(2) + 0.5 * 4 * APART)
    quarter = replace(HALF, alpha=0.25)
    assert float(quarter.loss(codec, teacher, student, batch)) == pytest.approx(0.75 * 2 * math.log(2) + 0.25 * 4 * APART)


@pytest.mark.parametrize("cell_id", ["bert_qa_lora", "gpt2_qa_lora", "t5_qa_lora"])
def test_of_spans_it_is_the_mean_of_both_ends_over_all_tokens_but_padding(cell_id):
    codec, batch = codec_for(cell_id), {"labels": torch.tensor([[0, 1]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    even = [[0.0, 0.0, WILD]]
    student = says(start_logits=even, end_logits=even)
    teacher = says(start_logits=[[SURE, 0.0, -WILD]], end_logits=even)
    assert float(HALF.loss(codec, teacher, student, batch)) == pytest.approx(0.5 * math.log(2) + 0.5 * 4 * APART / 2)


def test_of_texts_it_is_summed_over_target_tokens():
    labels = torch.tensor([[0, 1, IGNORED]])
    student = says(logits=[[[0.0, 0.0], [0.0, 0.0], [WILD, 0.0]]])
    teacher = says(logits=[[[SURE, 0.0], [0.0, SURE], [0.0, WILD]]])
    expected = 0.5 * 2 * math.log(2) + 0.5 * 4 * 2 * APART
    assert float(HALF.loss(codec_for("t5_sum_lora"), teacher, student, {"labels": labels})) == pytest.approx(expected)
    # A causal model's scores at one place are of the next token; its first token is nobody's next one.
    batch = {"labels": torch.tensor([[IGNORED, 0, 1]]), "input_ids": torch.zeros(1, 3), "attention_mask": torch.ones(1, 3)}
    assert float(HALF.loss(codec_for("gpt2_sum_lora"), teacher, student, batch)) == pytest.approx(expected)


# On real models


def gradients(trainer, how, teacher):
    """The gradients that the first update would have, by this loss; all of the task's where there is no teacher."""
    trainer._loss = how and partial(how.loss, trainer.codec, teacher)
    group = next(trainer.updates(0))
    names = [name for name, p in trainer.stepped.items() if p.requires_grad]
    return torch.cat([gradient.flatten() for gradient in trainer.accumulated(group, names)[1]])


@pytest.mark.parametrize("cell_id", ["bert_sa_lora", "gpt2_qa_lora", "t5_sum_lora"])
def test_a_teacher_that_is_the_student_gives_no_gradient_and_at_alpha_0_any_teacher_leaves_the_tasks_to_the_last_bit(cell_id):
    trainer = still(trainer_of(cell_id, train_rows(cell_id)[:64], max_steps=2))
    task = gradients(trainer, None, None)
    twin = copy.deepcopy(trainer.model).eval()
    assert task.norm() > 1e-2
    assert gradients(trainer, Distillation(alpha=1.0), twin).norm() < 1e-5 * task.norm()
    other = copy.deepcopy(twin)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "norm" not in name.lower() and ".ln_" not in name:
                parameter.mul_(1.1)
    assert gradients(trainer, Distillation(alpha=1.0), other).norm() > 1e-3 * task.norm()
    assert torch.equal(gradients(trainer, Distillation(alpha=0.0), other), task)


# What is refused


def kept(cell_id, rows="a" * 16, seed=0, name="models", **changes):
    """A saved model of which only the record is there."""
    cell = STUDY.cell(cell_id, replace(QUICK_PROFILE, seed=seed))
    data = DataRecord(
        rows=SplitRows(train=1, validation=1, test=1),
        origins=Origins(train="made up", validation="made up", test="made up"),
        revision=None,
        fingerprint=rows,
        dropped=None,
    )
    record = replace(new_record(cell), data=data, **changes)
    return Saved(folder=Path(name) / f"{cell_id}-seed{seed}", cell=cell, record=record)


@pytest.mark.parametrize(
    ("teacher", "why"),
    [
        (kept("gpt2_sa_sft"), "the backbone is gpt2 and bert"),
        (kept("bert_qa_sft"), "the task is qa and sa"),
        (kept("bert_sa_sft", rows="b" * 16), "the hash of all rows is bbbbbbbbbbbbbbbb and aaaaaaaaaaaaaaaa"),
    ],
)
def test_a_teacher_of_another_backbone_task_or_rows_is_refused(teacher, why):
    with pytest.raises(InputError) as error:
        check_teacher(teacher, kept("bert_sa_lora"))
    assert str(error.value) == f"{teacher.name} cannot teach bert_sa_lora-seed0: {why}"


def test_a_teacher_may_have_another_seed_head_and_method():
    check_teacher(kept("bert_sa_sft", seed=3), kept("bert_sa_lora"))


def test_a_student_that_had_a_teacher_or_another_recipe_is_refused():
    source = DistilledRecord(cell="bert_sa_sft", seed=0, weights="0" * 16, alpha=0.5, temperature=2.0)
    with pytest.raises(InputError, match="bert_sa_lora-seed0 had a teacher, bert_sa_sft: give a student that had none"):
        check_teacher(kept("bert_sa_sft"), kept("bert_sa_lora", distilled=source))
    recipe = replace(kept("bert_sa_lora").record.recipe, max_steps=7)
    with pytest.raises(InputError, match="trained with max_steps 7, but the recipe has 40: save it without --set"):
        check_teacher(kept("bert_sa_sft"), kept("bert_sa_lora", recipe=recipe))


def test_students_and_teachers_are_seeds_of_one_cell_each():
    lora, sft = ([kept(f"bert_sa_{method}", seed=seed) for seed in range(3)] for method in ("lora", "sft"))
    assert command.paired(lora, sft) == list(zip(lora, sft, strict=True))
    assert command.paired(lora, sft[:1]) == [(student, sft[0]) for student in lora]
    for students, teachers, why in (
        (lora, sft[:2], "2 teachers for 3 students"),
        ([lora[0], lora[0]], sft[:1], "two students have one seed"),
        (
            [lora[0], kept("bert_sa_lora", seed=1, rows="b" * 16)],
            sft[:1],
            "are no seeds of one experiment: the hash of all rows",
        ),
        ([lora[0], kept("bert_sa_qlora", seed=1)], sft[:1], "the students are of bert_sa_lora and bert_sa_qlora"),
        (lora[:2], [sft[0], kept("bert_sa_qlora")], "the teachers are of bert_sa_qlora and bert_sa_sft"),
    ):
        with pytest.raises(InputError, match=why):
            command.paired(students, teachers)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--alpha", "1.5"], "1.5 is no share: give a number from 0 to 1"),
        (["--alpha", "half"], "half is no share"),
        (["--temperature", "0"], "0 is no temperature: give a number above 0"),
        ([], "holds no saved model"),
    ],
)
def test_what_a_command_line_lacks_is_said_in_a_sentence(tmp_path, capsys, options, why):
    with pytest.raises(SystemExit) as end:
        command.main([str(tmp_path), "--teacher", str(tmp_path), *options])
    assert end.value.code == 2
    assert why in capsys.readouterr().err


def test_a_distilled_model_replaces_none_that_was_given(tmp_path):
    command.check_place(tmp_path, [kept("bert_sa_lora")])
    with pytest.raises(InputError, match="holds bert_sa_lora-seed0, which a distilled model would replace"):
        command.check_place(Path("models"), [kept("bert_sa_lora")])


def test_a_place_for_models_that_cannot_be_written_is_said_before_anything_trains(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--save-models=.*file cannot be written \(File exists\); give another place"):
        command.check_place(tmp_path / "file", [kept("bert_sa_lora")])


# As a command


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What a session of the suite leaves of a student and a teacher."""
    root = tmp_path_factory.mktemp("models")
    options = ("-m", "quick", "--cells=bert_sa_lora,bert_sa_sft", "-n0", f"--benchmark-json={root / 'run.json'}")
    answer = SessionProcess(*options, f"--save-models={root}").ended()
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return root


@pytest.mark.slow
def test_at_alpha_0_a_cell_trains_and_scores_as_the_suite_trained_it_to_the_last_bit(models, tmp_path, capsys):
    student, teacher = (str(models / f"bert_sa_{method}-seed0") for method in ("lora", "sft"))
    out, root = tmp_path / "out.json", tmp_path / "distilled"
    options = ["--teacher", teacher, "-o", str(out), "--save-models", str(root)]
    assert command.main([student, *options, "--alpha", "0"]) == 0
    plain, same = read(models / "bert_sa_lora-seed0").record, read(root / "bert_sa_lora-seed0").record
    assert same.training.losses == plain.training.losses
    assert same.scores["accuracy"] == plain.scores["accuracy"]
    (lesson,) = json.loads(out.read_text())["lessons"]
    assert lesson["distilled"] == lesson["alone"]
    source = same.distilled
    assert (source.cell, source.seed, source.alpha, same.status) == ("bert_sa_sft", 0, 0.0, "unfinished")
    # With a say, the teacher changes the first loss: the weights are the same ones yet.
    assert command.main([student, *options]) == 0
    taught = read(root / "bert_sa_lora-seed0").record
    assert taught.training.losses[0] != plain.training.losses[0]
    assert taught.distilled.weights == source.weights
    assert "cannot be told to help or to harm by one seed" in capsys.readouterr().out
