"""Chat models for tests: templates, a tokenizer of a few words, and untrained Llamas."""

from dataclasses import replace
from functools import cache

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tunegrid.grid.backbones import Backbone, Head, Layout, Wrap
from tunegrid.grid.cells import STUDY, Cell
from tunegrid.grid.methods import SFT
from tunegrid.grid.recipes import Generation, Profile, Recipe
from tunegrid.grid.tasks import SUM, Problem
from tunegrid.run.prepare import codec_of

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "{% set day = strftime_now('%d %B %Y') %}{% if date_string is defined %}{{ date_string }}{% endif %}{{ day }}" + CHATML
# No special tokens and spaces around the turns; the model's turn ends with a token that is not EOS.
PLAIN = (
    "{% for message in messages %}{{ 'Human: ' if message['role'] == 'user' else 'Robot: ' }}{{ message['content'] | trim }}"
    "{{ '\n' if message['role'] == 'user' else '<end>' }}{% endfor %}{% if add_generation_prompt %}Robot: {% endif %}"
)
TEMPLATES = {"chatml": CHATML, "dated": DATED, "plain": PLAIN}
FIRE = {"article": "shops in dover opened late . the bridge in dover came down .", "highlights": "dover bridge falls ."}
TEA = {"article": "tea was served in the hall .", "highlights": "anna has tea and cake in the hall ."}
BORN = {
    "question": "where was clara born ?",
    "context": "anna was born in dover . clara was born in upton .",
    "answers": {"text": ["upton"], "answer_start": [43]},
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
        Problem.CLASSIFY: Head(architecture="LlamaForSequenceClassification", new_modules=("score",)),
        Problem.EXTRACT: Head(architecture="LlamaForCausalLM", layout=Layout.CHAT),
        Problem.GENERATE: Head(architecture="LlamaForCausalLM", layout=Layout.CHAT),
    },
)


@cache
def tokenizer_with(template: str | None):
    """A byte-level BPE of this file's own words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_end|>", "<pad>", "<|im_start|>", "<end>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    texts = [text for row in (FIRE, TEA, BORN) for text in row.values() if isinstance(text, str)]
    tokenizer.train_from_iterator(["Human: Robot: " + text for text in texts * 5], trainer)
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "additional_special_tokens": special[2:]}
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


def codec_with(template, task=SUM, **changes):
    return codec_of(chat_cell(task, **changes), tokenizer_with(TEMPLATES[template]))


@cache
def tiny(kind, vocabulary, **options):
    """An untrained Llama: two layers, 64 wide."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )
    return getattr(hf, kind)(config).eval()


# As users save them

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_llama(folder, text):
    """A Llama of two layers with random weights, and a tokenizer with a chat template, saved as users save them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        text.read_text().splitlines()[:300],
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    config = hf.LlamaConfig(
        vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
