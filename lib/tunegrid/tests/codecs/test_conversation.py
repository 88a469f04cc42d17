"""Conversations: tokens are the template's own, the loss is on what the assistant says, the oldest turns go first."""

from dataclasses import replace

import pytest
import torch

from tunegrid.codecs.base import IGNORED
from tunegrid.data.sources import identity, last_exchange
from tunegrid.errors import InputError
from tunegrid.grid.more_tasks import CHAT
from tunegrid.tests.chats import codec_with, tiny

SAID = (
    ("user", "where was clara born ?"),
    ("assistant", "clara was born in upton ."),
    ("user", "and anna ?"),
    ("assistant", "anna was born in dover ."),
)
SYSTEM = ("system", "tea was served .")


def turns(*said):
    return [{"role": role, "content": content} for role, content in said]


def feature_of(codec, *said):
    [feature] = codec.encode([last_exchange(turns(*said), "here")], training=True)
    return feature


@pytest.mark.parametrize("said", [SAID, (SYSTEM, *SAID), SAID[:2]], ids=["two exchanges", "a system speaks first", "one"])
@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_tokens_are_those_of_the_template(template, said):
    codec = codec_with(template, CHAT)
    if template == "plain" and said[0] == SYSTEM:
        pytest.skip("this template takes a system for the assistant")
    feature = feature_of(codec, *said)
    whole = codec.tokenizer.apply_chat_template(turns(*said), tokenize=False)
    assert codec.tokenizer.decode([*feature.input_ids, *feature.target]) == whole.rstrip("\n")


def test_the_loss_is_on_all_that_the_assistant_says_and_on_nothing_else():
    codec = codec_with("chatml", CHAT)
    [labels] = codec.collate([feature_of(codec, SYSTEM, *SAID)])["labels"]
    counted = codec.tokenizer.decode(labels[labels != IGNORED])
    assert counted == "clara was born in upton .<|im_end|>anna was born in dover .<|im_end|>"
    assert codec.targets({"labels": labels}) == int((labels != IGNORED).sum())


def test_no_token_of_a_user_or_a_system_has_a_gradient():
    """The loss of a conversation is the sum of those of its two replies, each alone behind what was said before."""
    codec = codec_with("chatml", CHAT)
    model = tiny("LlamaForCausalLM", len(codec.tokenizer))
    both, first, second = (feature_of(codec, *said) for said in (SAID, SAID[:2], SAID))
    with torch.no_grad():
        whole, one, other = (
            float(codec.loss(model, codec.collate([feature]))) for feature in (both, first, replace(second, extra=None))
        )
    assert whole == pytest.approx(one + other, rel=1e-5)


def test_a_long_conversation_loses_its_oldest_turns_and_then_the_prompts_end():
    codec = codec_with("chatml", CHAT)
    full = feature_of(codec, SYSTEM, *SAID)
    room = len(full.input_ids) + codec.max_target_length

    def told(length):
        short = codec_with("chatml", CHAT, max_length=length)
        return codec.tokenizer.decode(feature_of(short, SYSTEM, *SAID).input_ids)

    assert told(room) == codec.tokenizer.decode(full.input_ids)
    assert "clara" not in told(room - 1)
    assert "tea was served" in told(room - 1)
    assert "and anna ?" in told(room - 1)


# Rows


def test_a_row_is_the_last_exchange_and_after_other_turns_it_is_another_text():
    row = last_exchange(turns(SYSTEM, *SAID, ("user", "thanks")), "here")
    assert (row["prompt"], row["reply"]) == ("and anna ?", "anna was born in dover .")
    assert row["history"] == turns(SYSTEM, *SAID[:2])
    rows = [last_exchange(turns(*before, *SAID[2:]), "here") for before in (SAID[:2], (SYSTEM,), SAID[:2])]
    first, other, again = (identity(row, (*CHAT.text, *CHAT.context_columns)) for row in rows)
    assert first == again != other


@pytest.mark.parametrize(
    "conversation",
    [[], turns(SAID[0]), turns(SAID[1], SAID[0]), turns(SAID[0], SAID[2], SAID[1]), "text", [{"role": "user"}], None],
)
def test_what_is_no_conversation_is_one_sentence(conversation):
    with pytest.raises(InputError, match=r"here: (user and assistant must take turns|a conversation is a list of turns)"):
        last_exchange(conversation, "here")
