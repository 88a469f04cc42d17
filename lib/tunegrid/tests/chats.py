"""Chat models for tests: templates, a tokenizer with few words, and an untrained Llama."""

from dataclasses import replace
from functools import cache

import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tunegrid.grid.backbones import Backbone, Head, Layout, Wrap
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.methods import SFT
from tunegrid.grid.recipes import Generation, Profile, Recipe
from tunegrid.grid.tasks import SUM, Problem
from tunegrid.run.prepare import make_codec

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = (
    "{% set day = strftime_now('%d %B %Y') %}"
    "{% if date_string is defined %}{{ date_string }}{% endif %}{{ day }}" + CHATML
)
# Plain words and spaces mark the turns in place of special tokens; the model's turn ends with a
# token that is not EOS.
PLAIN = (
    "{% for message in messages %}{{ 'Human: ' if message['role'] == 'user' else 'Robot: ' }}"
    "{{ message['content'] | trim }}"
    "{{ '\n' if message['role'] == 'user' else '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}Robot: {% endif %}"
)
TEMPLATES = {"chatml": CHATML, "dated": DATED, "plain": PLAIN}
FIRE = {
    "article": "shops in dover opened late . the bridge in dover came down .",
    "highlights": "dover bridge falls .",
}
TEA = {
    "article": "tea was served in the hall .",
    "highlights": "anna has tea and cake in the hall .",
}
BORN = {
    "question": "where was clara born ?",
    "context": "anna was born in dover . clara was born in upton .",
    "answers": {"text": ["upton"], "answer_start": [43]},
}
WORDS = tuple(text for row in (FIRE, TEA, BORN) for text in row.values() if isinstance(text, str))
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA = Backbone(
    id="llama",
    name="Llama",
    checkpoint="somebody/tiny-instruct",
    wrap=Wrap(before=None, between="eos_token", after=None),
    shape={},
    special_tokens={"eos_token_id": 0, "pad_token_id": 1},
    vocabulary=400,
    heads={
        Problem.CLASSIFY: Head(
            architecture="LlamaForSequenceClassification", new_modules=("score",)
        ),
        Problem.EXTRACT: Head(architecture="LlamaForCausalLM", layout=Layout.CHAT),
        Problem.GENERATE: Head(architecture="LlamaForCausalLM", layout=Layout.CHAT),
    },
)


@cache
def chat_tokenizer(template: str | None, texts: tuple[str, ...] = WORDS):
    """A byte-level BPE tokenizer trained on these texts, by default on the words of this file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_end|>", "<pad>", "<|im_start|>", "<end>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Human: Robot: " + text for text in texts * 5], trainer)
    tokens = {
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "additional_special_tokens": special[2:],
    }
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **tokens)


def chat_cell(task, **changes):
    recipe = Recipe(
        learning_rate=1e-3,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        precision="fp32",
        max_length=128,
        max_target_length=16,
        generation=Generation(num_beams=1, max_new_tokens=6),
    )
    return Cell(
        backbone=LLAMA,
        task=task,
        method=SFT,
        recipe=replace(recipe, **changes),
        head=LLAMA.heads[task.problem],
        optimizers=STUDY.optimizers,
        profile=Profile(id="full"),
    )


def chat_codec(template, task=SUM, **changes):
    return make_codec(chat_cell(task, **changes), chat_tokenizer(TEMPLATES[template]))


def tiny_llama(folder, text):
    """Saves an untrained two-layer Llama and a tokenizer with a chat template, as users do."""
    fast = chat_tokenizer(CHATML, tuple(text.read_text().splitlines()[:300]))
    fast.save_pretrained(folder)
    ids = {
        "bos_token_id": 0,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
        "tie_word_embeddings": True,
    }
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(fast), **SIZE, **ids)).save_pretrained(folder)
