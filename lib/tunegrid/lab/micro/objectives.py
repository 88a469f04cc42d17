"""Tokenizers, and pretraining objectives: batches of `Document`s, and losses for a backbone that has none.

BERT: masked LM and next-sentence prediction (Devlin et al. 2018). GPT-2: next token. T5: span corruption (Raffel et al.
2020). The words that need understanding (`Document.focus`, `echo`) are hidden more often than others, as in salient span
masking (Guu et al. 2020).

Encoders also name what they have read, where it stands: a review's verdict at its full stops, and T5's which values of a
passage answer a question. Two of T5's three tasks have no decoder, so its encoder must know by itself what it has read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import log
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from tunegrid.lab.micro.corpus import REACTIONS, Document

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
    return _wrap(tokenizer, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **special)


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
    return _wrap(tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", unk_token="<|endoftext|>")


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
    return _wrap(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=list(SENTINELS))


def _wrap(tokenizer: Tokenizer, **special: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


IGNORED = -100
# How a gist is announced in running text: several ways, so that what follows depends on none of them.
ANNOUNCEMENTS = ("in short :", "gist :", "to sum up :", "the news in brief :", "highlights :")
Batch = dict[str, Tensor]
Spans = Sequence[tuple[int, int]]


def covered_tokens(offsets: Spans, spans: Spans) -> list[int]:
    """Positions of the tokens that overlap one of the character spans."""
    return [i for i, (start, end) in enumerate(offsets) if any(start < stop and end > begin for begin, stop in spans)]


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of ids, right-padded to the longest: (batch, length)."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def add_mask(input_ids: Tensor, padding: int) -> Batch:
    """The ids, and which of them are no padding."""
    return {"input_ids": input_ids, "attention_mask": (input_ids != padding).long()}


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoding["input_ids"], encoding["offset_mapping"]


def masked_lm(documents: Sequence[Document], tokenizer: Any, rng: Random, *, judged: bool = False) -> Batch:
    """[CLS] first [SEP] second [SEP]; now and then the foil stands in, and the pooled output has to notice.

    Only the happy reaction is ever shown: whether it fits is then told by the review alone, so that the pooled output
    learns to read a review. If `judged`, a review's verdict is to be named at its full stops, too.
    """
    rows = []
    for document in documents:
        is_torn = rng.random() < 0.1
        if document.kind == "reaction":
            is_torn, document = document.second == REACTIONS[False], replace(document, focus=())
        elif document.kind == "passage" and rng.random() < 0.4:
            document = grade(document, rng)
        ids, positions, shift = _pair(document, document.foil if is_torn else document.second, tokenizer, rng, (0.08, 1))
        verdicts = _verdict_names(document, ids[:shift], tokenizer) if judged else {}
        ids = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        labels = [verdicts.get(i - 1, IGNORED) for i in range(len(ids))]
        for i in (1 + i for i in positions):
            labels[i] = ids[i]
            draw = rng.random()  # 80 % masked, 10 % another token, 10 % kept: Devlin et al. 2018, section 3.1
            ids[i] = tokenizer.mask_token_id if draw < 0.8 else rng.randrange(len(tokenizer)) if draw < 0.9 else ids[i]
        rows.append((ids, labels, [0] * (1 + shift) + [1] * (len(ids) - shift - 1), int(is_torn)))
    all_ids, all_labels, all_types, all_torn = zip(*rows, strict=True)
    batch = add_mask(pad(all_ids, tokenizer.pad_token_id), tokenizer.pad_token_id)
    second = {"token_type_ids": pad(all_types, 0), "next_sentence_label": torch.tensor(all_torn)}
    return batch | second | {"labels": pad(all_labels, IGNORED)}


def _pair(
    document: Document, second: str, tokenizer: Any, rng: Random, noise: tuple[float, int]
) -> tuple[list[int], set[int], int]:
    """Ids of first + separator + second, the positions to hide, and where the second begins.

    `noise` is the chance that a hidden span starts at a token, and its longest length.
    """
    (left, left_offsets), (right, right_offsets) = (_encode(tokenizer, text) for text in (document.first, second))
    shift = len(left) + 1
    ids = [*left, tokenizer.sep_token_id or tokenizer.eos_token_id, *right]
    starts = (i for i in range(len(ids)) if rng.random() < noise[0])
    positions = {i for start in starts for i in range(start, min(start + rng.randint(1, noise[1]), len(ids)))}
    if second == document.second:
        first_spans, second_spans = _salient_spans(document, rng)
        positions |= {i for i in covered_tokens(left_offsets, first_spans)}
        share = rng.choice((0.5, 1.0)) if document.kind == "article" else 1.0  # a gist has easy words too
        positions |= {shift + i for i in covered_tokens(right_offsets, second_spans) if rng.random() < share}
    return ids, positions - {shift - 1}, shift


def _salient_spans(document: Document, rng: Random) -> tuple[Spans, Spans]:
    """Spans to hide in the first and in the second text: a repeated answer on one of its two sides only."""
    if document.kind == "asked":
        return [], []
    if document.echo and rng.random() < 0.3:
        return [document.echo], []
    if document.kind in ("review", "graded"):
        return [], [span for span in document.focus if rng.random() < 0.8]
    return [], [*document.focus, *(span for span in document.others if rng.random() < 0.4)]


def _verdict_names(document: Document, first: Sequence[int], tokenizer: Any) -> dict[int, int]:
    """What to name in a review, by position: its verdict at each full stop."""
    if not document.verdict:
        return {}
    stop, verdict = tokenizer(f". {document.verdict}", add_special_tokens=False)["input_ids"]
    return {i: verdict for i, token in enumerate(first) if token == stop}


def _answer_names(document: Document, tokenizer: Any) -> dict[int, int]:
    """What to name in a passage, by position in it: the answer's first token `(` and its last `)`, of one token `*`;
    `-` at the first and the last token of every other value.
    """
    _, offsets = _encode(tokenizer, document.second)
    first, last, only, other = tokenizer.convert_tokens_to_ids(["(", ")", "*", "-"])
    names = {tokens[end]: other for span in document.others for end in (0, -1) if (tokens := covered_tokens(offsets, [span]))}
    answer = covered_tokens(offsets, document.focus)
    return names | ({answer[0]: only} if len(answer) == 1 else {answer[0]: first, answer[-1]: last})


def query_text(document: Document) -> str:
    """A passage's question without its answer."""
    ((start, end),) = document.focus
    return document.first.removesuffix(f" {document.second[start:end]}")


def grade(document: Document, rng: Random) -> Document:
    """The question, and the passage as a teacher marks it: `*` at the answer, `-` at every other value."""
    (answer,) = document.focus
    mark_after = rng.random() < 0.5
    text, marks, cursor = "", [], 0
    for span in sorted([answer, *document.others]):
        cut, mark = span[mark_after], "*" if span == answer else "-"
        text += document.second[cursor:cut] + (f" {mark}" if mark_after else f"{mark} ")
        place = len(text) - (1 if mark_after else 2)
        marks.append((place, place + 1))
        cursor = cut
    text += document.second[cursor:]
    return replace(document, kind="graded", first=query_text(document), second=text, focus=tuple(marks), echo=None, others=())


def causal_lm(documents: Sequence[Document], tokenizer: Any, rng: Random, *, announced: bool = False) -> Batch:
    """Next-token prediction on the document as one text; `announced` says whether a review's digest is, too."""
    texts = [_reading_text(document, tokenizer, rng, announced) for document in documents]
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    input_ids = pad(rows, tokenizer.eos_token_id)
    mask = pad([[1] * len(row) for row in rows], 0)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, IGNORED)}


def _reading_text(document: Document, tokenizer: Any, rng: Random, announced: bool) -> str:
    """The document in reading order; a passage has its question first and the answer starred, or asked for at the end."""
    if document.kind == "review" and not announced:
        return f"{document.first} {document.second}"
    if document.kind in ("review", "article"):
        return f"{document.first}\n{rng.choice(ANNOUNCEMENTS)} {document.second}"
    ((start, end),), question = document.focus, query_text(document)
    if rng.random() < 0.3:
        return f"{question}{tokenizer.eos_token}{document.second}\nanswer : {document.second[start:end]}"
    cut, mark = (end, " *") if rng.random() < 0.5 else (start, "* ")
    return f"{question}{tokenizer.eos_token}{document.second[:cut]}{mark}{document.second[cut:]}"


def span_corruption(documents: Sequence[Document], tokenizer: Any, rng: Random) -> Batch:
    """Spans become sentinels in the input; the target spells them out. `named` (B, L) is what the encoder names, where."""
    sources, targets, names = zip(*(_corrupt(d, tokenizer, rng) for d in documents), strict=True)
    batch = add_mask(pad(sources, tokenizer.pad_token_id), tokenizer.pad_token_id)
    return batch | {"labels": pad(targets, IGNORED), "named": pad(names, IGNORED)}


def _corrupt(document: Document, tokenizer: Any, rng: Random) -> tuple[list[int], list[int], list[int]]:
    """Source, target, and what to name at each token of the source.

    Where nothing is hidden there is no target: the decoder shall not learn to say nothing to a plain text.
    """
    if document.kind == "passage" and (draw := rng.random()) < 0.65:
        document = grade(document, rng) if draw < 0.3 else replace(document, kind="asked", first=query_text(document))
    elif document.kind == "review" and rng.random() < 0.3:
        document = replace(document, second="", focus=())  # as cells read it
    ids, positions, shift = _pair(document, document.second, tokenizer, rng, (0.03, 3))
    names_by_position = _verdict_names(document, ids[:shift], tokenizer)
    if document.kind == "asked":
        names_by_position = {shift + i: token for i, token in _answer_names(document, tokenizer).items()}
    sentinels = iter(tokenizer.convert_tokens_to_ids(list(SENTINELS)))
    source: list[tuple[int, int]] = []
    target: list[int] = []
    for i, token in enumerate(ids if document.second else ids[:-1]):
        if i in positions and i - 1 not in positions:
            source.append((sentinel := next(sentinels), IGNORED))
            target.append(sentinel)
        if i in positions:
            target.append(token)
        else:
            source.append((token, names_by_position.get(i, IGNORED)))
    tokens, names = zip(*source, (tokenizer.eos_token_id, IGNORED), strict=True)
    return list(tokens), [*target, tokenizer.eos_token_id] if target else [], list(names)


def own_loss(model: Any, batch: Batch) -> Tensor:
    """The backbone's own loss, in nats a token."""
    loss: Tensor = model(**batch).loss
    return loss


def t5_loss(model: Any, batch: Batch) -> Tensor:
    """T5's own loss, and that of the encoder's names: read off with the decoder's output layer, scaled as the decoder's."""
    output = model(**{name: tensor for name, tensor in batch.items() if name != "named"})
    mask = batch["named"] != IGNORED
    logits = model.lm_head(output.encoder_last_hidden_state[mask] * model.model_dim**-0.5)
    loss = cross_entropy(logits, batch["named"][mask], reduction="sum") / mask.sum().clamp(min=1)  # a batch of reports has none
    total: Tensor = output.loss + loss
    return total
