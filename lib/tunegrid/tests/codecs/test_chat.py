"""Chat models: the template survives, the loss is on the answer, and a modern decoder goes all the way, batched or alone."""

import pytest
import torch

from tunegrid.codecs.base import IGNORED
from tunegrid.errors import InputError
from tunegrid.grid.recipes import Generation
from tunegrid.grid.tasks import QA, SUM
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.run.prepare import codec_of
from tunegrid.tests.chats import BORN, FIRE, TEA, TEMPLATES, chat_cell, codec_with, tiny, tokenizer_with
from tunegrid.tests.small import CPU, silent

QUESTIONS = [BORN, BORN | {"context": "clara : upton"}]


def model_for(codec, kind="LlamaForCausalLM", **options):
    return tiny(kind, len(codec.tokenizer), **options)


def conversation(codec, user, assistant):
    """The tokenizer's own rendering of both turns, without what follows the end of the last one."""
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    template = codec.tokenizer.chat_template.replace("strftime_now('%d %B %Y')", "'01 January 2025'")
    text = codec.tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template, date_string="01 Jan 2025")
    return codec.tokenizer(text.removesuffix("\n"), add_special_tokens=False)["input_ids"]


# The template


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("row", [FIRE, TEA])
def test_prompt_and_target_are_the_tokenizers_own_conversation(template, row):
    codec = codec_with(template)
    [feature] = codec.encode([row], training=True)
    assert feature.input_ids + feature.target == conversation(codec, row["article"], row["highlights"])


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_long_source_is_cut_never_the_template(template):
    codec = codec_with(template, max_length=80)
    long, short = codec.encode([FIRE | {"article": FIRE["article"] * 20}, FIRE], training=False)
    begin, end = codec.frame()
    assert len(long.input_ids) == 80 - 16
    assert long.input_ids[: len(begin)] == short.input_ids[: len(begin)] == begin
    assert long.input_ids[-len(end) :] == short.input_ids[-len(end) :] == end


@pytest.mark.parametrize(("template", "end"), [("chatml", "<|im_end|>"), ("plain", "<end>")])
def test_a_turn_ends_with_the_token_that_the_template_ends_it_with(template, end):
    codec = codec_with(template, max_target_length=4, generation=Generation(num_beams=1, max_new_tokens=4))
    [feature] = codec.encode([TEA], training=True)
    assert len(feature.target) == 4
    assert codec.tokenizer.convert_ids_to_tokens(feature.target[-1]) == end


TWICE = "{% for message in messages %}{{ message['content'] * 2 }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "changes", "words"),
    [
        (None, {}, "llama_sum_sft needs a chat template: that of somebody/tiny-instruct cannot render"),
        (TWICE, {}, "shows a turn 2 times"),
        (TEMPLATES["chatml"], {"max_length": 30}, "max_length 30 leaves no room for the text"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, changes, words):
    with pytest.raises(InputError, match=words):
        codec_of(chat_cell(SUM, **changes), tokenizer_with(template))


# Tensors


@pytest.mark.parametrize("template", TEMPLATES)
def test_labels_are_the_assistants_turn_and_nothing_else(template):
    codec = codec_with(template)
    batch = codec.collate(codec.encode([FIRE, TEA], training=True))
    counted = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][counted], batch["input_ids"][counted])
    for row, labels in zip((FIRE, TEA), batch["labels"], strict=True):
        *words, end = labels[labels != IGNORED].tolist()
        assert codec.tokenizer.decode(words).strip() == row["highlights"]
        assert end == codec.end_id


def test_the_context_is_cut_and_the_question_stays():
    codec = codec_with("chatml", QA, max_length=64)
    long = BORN | {"context": BORN["context"] + " " + BORN["context"] * 20}
    [feature] = codec.encode([long], training=True)
    prompt = codec.tokenizer.decode(feature.input_ids)
    assert 64 - 16 - 2 <= len(feature.input_ids) <= 64 - 16
    assert prompt.endswith("\n\nwhere was clara born ?<|im_end|>\n<|im_start|>assistant\n")
    assert "<|im_start|>user\nanna was born" in prompt
    [feature] = codec.encode([BORN | {"question": BORN["question"] * 20}], training=False)  # an endless one is cut, too
    begin, end = codec.frame()
    assert len(feature.input_ids) == 64 - 16
    assert (feature.input_ids[: len(begin)], feature.input_ids[-len(end) :]) == (begin, end)
    codec = codec_with("chatml", QA, max_length=58)
    row = BORN | {"context": "anna has tea . " * 9 + "upton", "answers": {"text": ["upton"], "answer_start": [135]}}
    [feature] = codec.encode([row], training=True)  # its answer is cut away, and it trains all the same
    assert "upton" not in codec.tokenizer.decode(feature.input_ids)
    assert codec.tokenizer.decode(feature.target) == "upton<|im_end|>"


# A modern decoder, untrained


@pytest.mark.parametrize(("task", "rows"), [(SUM, [FIRE, TEA]), (QA, QUESTIONS)])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_side_by_side_equals_generation_alone(task, rows, beams):
    codec = codec_with("chatml", task, generation=Generation(num_beams=beams, max_new_tokens=12))
    model, features = model_for(codec), codec.encode(rows, training=False)
    assert len({len(feature.input_ids) for feature in features}) == 2
    alone = [codec.predict(model, [feature], CPU)[0] for feature in features]
    assert codec.predict(model, features, CPU) == alone
    assert all(alone)


def test_generated_answers_are_scored_as_answers():
    codec = codec_with("chatml", QA)
    evaluation = evaluate(model_for(codec), codec, [BORN] * 3, Metrics(), CPU, silent())
    assert set(evaluation.scores) == {"exact_match", "f1"}
    assert [codec.ended(ids) for ids in evaluation.outputs] == [ids[-1] == codec.end_id for ids in evaluation.outputs]
    # The same as if the model had known the answer:
    [feature] = codec.encode([BORN], training=True)
    assert codec.decode([BORN], [feature], [feature.target])[0].value == "upton"
