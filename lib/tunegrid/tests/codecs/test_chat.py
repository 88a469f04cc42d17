"""Chat models: the template survives, the loss is on what the assistant says, and the oldest turns
go first.
"""

import pytest
import torch

from tunegrid.codecs.base import IGNORED
from tunegrid.data.sources import identity, last_exchange
from tunegrid.errors import InputError
from tunegrid.grid.more_tasks import CHAT
from tunegrid.grid.tasks import SUM
from tunegrid.run.prepare import make_codec
from tunegrid.tests.chats import FIRE, TEA, TEMPLATES, chat_cell, chat_codec, chat_tokenizer


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


# The template


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("row", [FIRE, TEA])
def test_prompt_and_target_are_the_tokenizers_own_conversation_and_labels_the_assistants_turn(
    template, row
):
    codec = chat_codec(template)
    [feature] = codec.encode([row], training=True)
    conversation = turns(("user", row["article"]), ("assistant", row["highlights"]))
    fixed_day = codec.tokenizer.chat_template.replace(
        "strftime_now('%d %B %Y')", "'01 January 2025'"
    )
    text = codec.tokenizer.apply_chat_template(
        conversation, tokenize=False, chat_template=fixed_day, date_string="01 Jan 2025"
    )
    tokens = codec.tokenizer(text.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    assert feature.input_ids + feature.target == tokens
    batch = codec.collate([feature])
    counted = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][counted], batch["input_ids"][counted])
    *words, end = batch["labels"][counted].tolist()
    assert codec.tokenizer.decode(words).strip() == row["highlights"]
    assert end == codec.end_id


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_long_source_is_cut_never_the_template(template):
    codec = chat_codec(template, max_length=80)
    long, short = codec.encode([FIRE | {"article": FIRE["article"] * 20}, FIRE], training=False)
    begin, end = codec.frame()
    assert len(long.input_ids) == 80 - 16
    assert long.input_ids[: len(begin)] == short.input_ids[: len(begin)] == begin
    assert long.input_ids[-len(end) :] == short.input_ids[-len(end) :] == end


TWICE = "{% for message in messages %}{{ message['content'] * 2 }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "changes", "words"),
    [
        (
            None,
            {},
            "llama_sum_sft needs a chat template: that of somebody/tiny-instruct cannot render",
        ),
        (TWICE, {}, "shows a turn 2 times"),
        (TEMPLATES["chatml"], {"max_length": 30}, "max_length 30 leaves no room for the text"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, changes, words):
    with pytest.raises(InputError, match=words):
        make_codec(chat_cell(SUM, **changes), chat_tokenizer(template))


# Conversations

SAID = (
    ("user", "where was clara born ?"),
    ("assistant", "clara was born in upton ."),
    ("user", "and anna ?"),
    ("assistant", "anna was born in dover ."),
)
SYSTEM = ("system", "tea was served .")


def encode_chat(codec, *pairs):
    [feature] = codec.encode([last_exchange(turns(*pairs), "here")], training=True)
    return feature


@pytest.mark.parametrize(
    ("template", "pairs"),
    [
        ("chatml", SAID),
        ("chatml", (SYSTEM, *SAID)),
        ("chatml", SAID[:2]),
        ("plain", SAID),
        ("plain", SAID[:2]),
    ],
)
def test_tokens_of_a_conversation_are_those_of_the_template(template, pairs):
    codec = chat_codec(template, CHAT)
    feature = encode_chat(codec, *pairs)
    whole = codec.tokenizer.apply_chat_template(turns(*pairs), tokenize=False)
    assert codec.tokenizer.decode([*feature.input_ids, *feature.target]) == whole.rstrip("\n")


def test_the_loss_is_on_all_that_the_assistant_says_and_on_nothing_else():
    codec = chat_codec("chatml", CHAT)
    [labels] = codec.collate([encode_chat(codec, SYSTEM, *SAID)])["labels"]
    counted = codec.tokenizer.decode(labels[labels != IGNORED])
    assert counted == "clara was born in upton .<|im_end|>anna was born in dover .<|im_end|>"
    assert codec.targets({"labels": labels}) == int((labels != IGNORED).sum())


def test_a_long_conversation_loses_its_oldest_turns():
    codec = chat_codec("chatml", CHAT)
    whole = encode_chat(codec, SYSTEM, *SAID).input_ids
    room = len(whole) + codec.max_target_length
    wide_codec = chat_codec("chatml", CHAT, max_length=room)
    assert encode_chat(wide_codec, SYSTEM, *SAID).input_ids == whole
    narrow_codec = chat_codec("chatml", CHAT, max_length=room - 1)
    text = codec.tokenizer.decode(encode_chat(narrow_codec, SYSTEM, *SAID).input_ids)
    assert "clara" not in text
    assert "tea was served" in text
    assert "and anna ?" in text


def test_a_row_is_the_last_exchange():
    assert last_exchange(turns(SYSTEM, *SAID, ("user", "thanks")), "here") == {
        "history": turns(SYSTEM, *SAID[:2]),
        "prompt": "and anna ?",
        "reply": "anna was born in dover .",
    }


def test_an_exchange_after_other_turns_is_another_text():
    def text_hash(*earlier):
        row = last_exchange(turns(*earlier, *SAID[2:]), "here")
        return identity(row, (*CHAT.text, *CHAT.context_columns))

    assert text_hash(*SAID[:2]) == text_hash(*SAID[:2])
    assert text_hash(*SAID[:2]) != text_hash(SYSTEM)


@pytest.mark.parametrize(
    "conversation",
    [
        [],
        turns(SAID[0]),
        turns(SAID[1], SAID[0]),
        turns(SAID[0], SAID[2], SAID[1]),
        "text",
        [{"role": "user"}],
        None,
    ],
)
def test_what_is_no_conversation_is_one_sentence(conversation):
    sentence = "here: (user and assistant must alternate|a conversation is a list of turns)"
    with pytest.raises(InputError, match=sentence):
        last_exchange(conversation, "here")
