"""Chat models: the template survives, the loss is on the answer, and a modern decoder goes all the way, batched or alone."""

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch

from tunegrid.audits import Evidence
from tunegrid.audits.scores import prompt_intact_at_inference
from tunegrid.codecs.base import IGNORED, SyntheticTokenizer
from tunegrid.codecs.features import cache_key
from tunegrid.errors import InputError
from tunegrid.grid.recipes import Generation
from tunegrid.grid.tasks import QA, SA, SUM
from tunegrid.run.evaluate import evaluate
from tunegrid.run.metrics import Metrics
from tunegrid.run.prepare import codec_of
from tunegrid.tests.chats import BORN, FIRE, LLAMA, TEA, TEMPLATES, chat_cell, codec_with, tiny, tokenizer_with
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
def test_a_question_and_its_answer_are_the_tokenizers_own_conversation(template):
    codec = codec_with(template, QA, prefix="read : ")
    [feature] = codec.encode([BORN], training=True)
    user = f"read : {BORN['context']}\n\n{BORN['question']}"
    assert feature.input_ids + feature.target == conversation(codec, user, "upton")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_long_source_is_cut_never_the_template(template):
    codec = codec_with(template, max_length=80)
    long, short = codec.encode([FIRE | {"article": FIRE["article"] * 20}, FIRE], training=False)
    begin, end = codec.frame()
    assert len(long.input_ids) == 80 - 16
    assert long.input_ids[: len(begin)] == short.input_ids[: len(begin)] == begin
    assert long.input_ids[-len(end) :] == short.input_ids[-len(end) :] == end


def test_a_prefix_survives_the_cut_and_todays_date_does_not_reach_the_prompt():
    codec, dated = codec_with("chatml", prefix="tea in the hall : ", max_length=64), codec_with("dated")
    [feature] = codec.encode([FIRE | {"article": FIRE["article"] * 20}], training=False)
    begin, _ = codec.frame()
    assert codec.tokenizer.decode(begin).endswith("<|im_start|>user\ntea in the hall ")
    assert feature.input_ids[: len(begin)] == begin
    assert dated.tokenizer.decode(dated.frame()[0]).startswith("01 Jan 202501 January 2025<|im_start|>system\nYou help.")
    keys = {cache_key(codec_with(template), [FIRE], training=True) for template in ("chatml", "dated", "chatml")}
    assert len(keys) == 2  # another template is another file of the cache


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


def test_prompts_are_padded_on_the_left():
    codec = codec_with("chatml")
    features = codec.encode([FIRE, TEA], training=False)
    gap = len(features[0].input_ids) - len(features[1].input_ids)
    batch = codec.prompt(features)
    assert gap > 0
    assert batch["input_ids"][1].tolist() == [codec.pad_id] * gap + features[1].input_ids
    assert batch["attention_mask"][1].tolist() == [0] * gap + [1] * len(features[1].input_ids)


def test_the_shortest_answer_is_counted_without_the_prompt():
    codec = codec_with("chatml", generation=Generation(num_beams=1, max_new_tokens=6, min_length=4))
    settings = {}

    def generate(**passed):
        settings.update(passed)
        return torch.zeros(1, 99)

    model = SimpleNamespace(generation_config=SimpleNamespace(), generate=generate)
    codec.generate(model, codec.encode([FIRE], training=False), CPU)
    assert (settings["max_new_tokens"], settings["min_new_tokens"], "min_length" in settings) == (6, 4, False)


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


def test_only_the_rows_own_answer_is_its_target():
    codec = codec_with("chatml", QA)
    [feature] = codec.encode([BORN], training=True)
    label = codec.collate([feature])["labels"][0]
    assert codec.label_is_target(BORN, feature, label)
    assert not codec.label_is_target(BORN | {"answers": {"text": ["dover"], "answer_start": [17]}}, feature, label)


@pytest.mark.parametrize("task", [SUM, QA])
def test_synthetic_rows_fill_the_length_and_their_template_is_the_same_each_time(task):
    cell = chat_cell(task)
    codec, rng = codec_of(cell, SyntheticTokenizer(LLAMA)), Random(0)
    one, other = (codec.synthetic(rng) for _ in range(2))
    begin, end = codec.frame()
    assert (len(begin), len(end), len(one.target)) == (25, 5, 16)
    assert len(one.input_ids) + len(one.target) == 128
    assert one.input_ids != other.input_ids
    assert one.input_ids[:25] == other.input_ids[:25] == begin
    assert one.input_ids[-5:] == other.input_ids[-5:] == end


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


@pytest.mark.parametrize(("task", "rows"), [(SUM, [FIRE, TEA]), (QA, QUESTIONS)])
def test_padding_takes_no_part_in_the_loss(task, rows):
    codec = codec_with("chatml", task)
    features = codec.encode(rows, training=True)
    with torch.inference_mode():
        alone = [float(codec.loss(model_for(codec), codec.collate([feature]))) for feature in features]
        together = float(codec.loss(model_for(codec), codec.collate(features)))
    assert together == pytest.approx(sum(alone), rel=1e-5)


def test_generated_answers_are_scored_as_answers():
    codec = codec_with("chatml", QA)
    evaluation = evaluate(model_for(codec), codec, [BORN] * 3, Metrics(), CPU, silent())
    assert set(evaluation.scores) == {"exact_match", "f1"}
    assert [codec.ended(ids) for ids in evaluation.outputs] == [ids[-1] == codec.end_id for ids in evaluation.outputs]
    # The same as if the model had known the answer:
    [feature] = codec.encode([BORN], training=True)
    assert codec.decode([BORN], [feature], [feature.target])[0].value == "upton"


def test_a_template_that_is_cut_at_inference_fails_its_audit():
    codec = codec_with("chatml")
    evaluation = evaluate(model_for(codec), codec, [FIRE, TEA], Metrics(), CPU, silent())
    evidence = Evidence(cell=codec.cell, codec=codec, trainer=None, evaluation=evaluation)
    assert prompt_intact_at_inference(evidence)[0]
    cut = [replace(feature, input_ids=feature.input_ids[:-1]) for feature in evaluation.features]
    assert not prompt_intact_at_inference(replace(evidence, evaluation=replace(evaluation, features=cut)))[0]


def test_a_decoder_classifies_alike_beside_a_longer_row_and_alone():
    codec = codec_of(chat_cell(replace(SA, labels=("bad", "fair", "good"))), tokenizer_with(None))
    rows = [{"label": 2, "title": "tea", "content": "tea in the hall . " * 3}, {"label": 0, "title": "", "content": "dover ."}]
    features = codec.encode(rows, training=False)
    model = model_for(codec, "LlamaForSequenceClassification", num_labels=3, pad_token_id=codec.pad_id)
    side, alone = codec.predict(model, features, CPU)[1], codec.predict(model, features[1:], CPU)[0]
    assert side[0] == alone[0]
    assert side[1] == pytest.approx(alone[1], rel=1e-5)
