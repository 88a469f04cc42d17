"""Trains the three micro tokenizers, each of the kind that the true backbone has."""

from collections import Counter
from collections.abc import Sequence
from math import log
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(40))  # the longest corrupted document needs about 25
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!'\"()-*"


def _counts(texts: Sequence[str]) -> Counter[str]:
    """How often each space-separated word occurs, most frequent first and ties in alphabetical order."""
    counts = Counter(word for text in texts for word in text.lower().split())
    return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def wordpiece(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Lower-casing WordPiece as bert-base-uncased; pieces are whole words and, for anything else, characters."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    pieces = dict.fromkeys([*special.values(), *_counts(texts), *ALPHABET, *(f"##{letter}" for letter in ALPHABET)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(*((token, vocabulary[token]) for token in ("[SEP]", "[CLS]")))
    return _wrapped(tokenizer, **special)


def byte_level_bpe(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one special token, as gpt2; merges are learned until every word is one piece."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", unk_token="<|endoftext|>")


def unigram(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """SentencePiece-style Unigram with sentinels, as t5-small; scores are log frequencies of words, characters last."""
    special = ["<pad>", "</s>", "<unk>", *SENTINELS]
    counts = _counts([*texts, "summarize: "])  # T5's own vocabulary knows its task prefixes too
    words = {f"▁{word}": log(count / counts.total()) for word, count in counts.items()}
    rest = {letter: -20.0 for letter in ["▁", *ALPHABET, *ALPHABET[:26].upper()]}
    tokenizer = Tokenizer(models.Unigram([*((piece, 0.0) for piece in special), *(words | rest).items()], unk_id=2))
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrapped(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=list(SENTINELS))


def _wrapped(tokenizer: Tokenizer, **special: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
