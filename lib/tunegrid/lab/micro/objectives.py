"""Defines tokenizers and pretraining objectives: how `Document`s become batches, and the losses.

BERT learns masked LM and next-sentence prediction (Devlin et al. 2018), GPT-2 next-token
prediction, and T5 span corruption (Raffel et al. 2020). Words that need understanding
(`Document.focus`, `echo`) are hidden more often than others, as in salient span masking (Guu et al.
2020).

Encoders also learn token labels: a review's verdict at its full stops and, in T5, which values of a
passage answer its question. Two of T5's three tasks use no decoder, so its encoder must understand
a text on its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import log
from random import Random
from typing import Any, NamedTuple

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from tunegrid.codecs.base import IGNORED, Batch, pad
from tunegrid.lab.micro.corpus import REACTIONS, Document

# The longest corrupted document needs about 25
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(40))
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!'\"()-*"


def _counts(texts: Sequence[str]) -> Counter[str]:
    """Counts of lower-cased words, most frequent first, ties in alphabetical order."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text.lower().split())
    ranking = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Counter(dict(ranking))


def wordpiece(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer like bert-base-uncased's; pieces are whole words and characters."""
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    endings = [f"##{letter}" for letter in ALPHABET]
    pieces = dict.fromkeys([*special.values(), *_counts(texts), *ALPHABET, *endings])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]),
        ("[CLS]", vocabulary["[CLS]"]),
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return _wrap(tokenizer, model_input_names=inputs, **special)


def byte_level_bpe(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like gpt2's; merges make every frequent word one piece."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=2400,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer, eos_token=end, bos_token=end, unk_token=end)


def unigram(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A SentencePiece-style Unigram tokenizer with sentinels, like t5-small's.

    Scores are log frequencies of words; characters have the lowest score.
    """
    counts = _counts([*texts, "summarize: "])  # T5's own vocabulary also contains its task prefixes
    total = counts.total()
    scores = {f"▁{word}": log(count / total) for word, count in counts.items()}
    scores |= dict.fromkeys(["▁", *ALPHABET, *ALPHABET[:26].upper()], -20.0)
    special = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", *SENTINELS)]
    tokenizer = Tokenizer(models.Unigram([*special, *scores.items()], unk_id=2))
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrap(
        tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=list(SENTINELS),
    )


def _wrap(tokenizer: Tokenizer, **special: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **special,
    )


# Phrases that announce a gist in running text. There are several, so that the text that follows
# depends on none of them.
ANNOUNCEMENTS = ("in short :", "gist :", "to sum up :", "the news in brief :", "highlights :")
Spans = Sequence[tuple[int, int]]


class JoinedTexts(NamedTuple):
    """Token ids of two joined texts, and the positions that an objective hides."""

    ids: list[int]
    positions: set[int]  # to hide
    shift: int  # where the second text begins


def covered_tokens(offsets: Spans, spans: Spans) -> list[int]:
    """Positions of the tokens that overlap any of the character spans."""
    covered = []
    for position, (start, end) in enumerate(offsets):
        if any(start < stop and end > begin for begin, stop in spans):
            covered.append(position)
    return covered


def pad_with_mask(rows: Sequence[Sequence[int]], padding: int) -> Batch:
    """Pad rows of ids and add an attention mask."""
    input_ids = pad(rows, padding)
    return {"input_ids": input_ids, "attention_mask": (input_ids != padding).long()}


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoding["input_ids"], encoding["offset_mapping"]


def masked_lm(
    documents: Sequence[Document],
    tokenizer: Any,
    rng: Random,
    *,
    judged: bool = False,
) -> Batch:
    """Mask tokens of [CLS] first [SEP] second [SEP]; the pooled output must detect foils.

    Of the two reactions, only the happy one is shown. Whether it fits depends on the review alone,
    so the pooled output learns to read reviews. If `judged`, a review's full stops are labelled
    with its verdict.
    """
    all_ids = []
    all_labels = []
    all_types = []
    all_torn = []
    for document in documents:
        is_torn = rng.random() < 0.1
        if document.kind == "reaction":
            is_torn = document.second == REACTIONS[False]
            document = replace(document, focus=())
        elif document.kind == "passage" and rng.random() < 0.4:
            document = grade(document, rng)
        second = document.foil if is_torn else document.second
        texts = _join(document, second, tokenizer, rng, hidden_share=0.08, longest=1)
        first = texts.ids[: texts.shift]
        verdicts = _verdict_names(document, first, tokenizer) if judged else {}
        ids = [tokenizer.cls_token_id, *texts.ids, tokenizer.sep_token_id]
        labels = [verdicts.get(i - 1, IGNORED) for i in range(len(ids))]
        for position in texts.positions:
            i = position + 1
            labels[i] = ids[i]
            # 80 % masked, 10 % another token, 10 % unchanged: Devlin et al. 2018, section 3.1.
            draw = rng.random()
            if draw < 0.8:
                ids[i] = tokenizer.mask_token_id
            elif draw < 0.9:
                ids[i] = rng.randrange(len(tokenizer))
        first_length = 1 + texts.shift
        all_ids.append(ids)
        all_labels.append(labels)
        all_types.append([0] * first_length + [1] * (len(ids) - first_length))
        all_torn.append(int(is_torn))
    batch = pad_with_mask(all_ids, tokenizer.pad_token_id)
    batch["token_type_ids"] = pad(all_types, 0)
    batch["next_sentence_label"] = torch.tensor(all_torn)
    batch["labels"] = pad(all_labels, IGNORED)
    return batch


def _join(
    document: Document,
    second: str,
    tokenizer: Any,
    rng: Random,
    *,
    hidden_share: float,
    longest: int,
) -> JoinedTexts:
    """Join a document's first text, a separator and a second text, and choose positions to hide.

    `hidden_share` is the chance that a random span starts at a token, and `longest` its maximum
    number of tokens. Salient spans are hidden as well, unless `second` is a foil.
    """
    left, left_offsets = _encode(tokenizer, document.first)
    right, right_offsets = _encode(tokenizer, second)
    shift = len(left) + 1
    ids = [*left, tokenizer.sep_token_id or tokenizer.eos_token_id, *right]
    # Random draws follow this set's order, so building it differently would change the batches.
    positions: set[int] = set()
    for start in range(len(ids)):
        if rng.random() < hidden_share:
            end = min(start + rng.randint(1, longest), len(ids))
            positions.update(range(start, end))
    if second == document.second:
        first_spans, second_spans = _salient_spans(document, rng)
        positions |= set(covered_tokens(left_offsets, first_spans))
        share = 1.0
        if document.kind == "article":
            share = rng.choice((0.5, 1.0))  # a gist has easy words too
        tokens = covered_tokens(right_offsets, second_spans)
        positions |= {shift + token for token in tokens if rng.random() < share}
    return JoinedTexts(ids, positions - {shift - 1}, shift)


def _salient_spans(document: Document, rng: Random) -> tuple[Spans, Spans]:
    """Choose spans to hide in the first and second text; an answer in both is hidden in one."""
    if document.kind == "asked":
        return [], []
    if document.echo and rng.random() < 0.3:
        return [document.echo], []
    if document.kind in ("review", "graded"):
        return [], [span for span in document.focus if rng.random() < 0.8]
    foils = [span for span in document.others if rng.random() < 0.4]
    return [], [*document.focus, *foils]


def _verdict_names(document: Document, first: Sequence[int], tokenizer: Any) -> dict[int, int]:
    """The token id of a review's verdict at each of its full stops, by position."""
    if not document.verdict:
        return {}
    words = f". {document.verdict}"
    stop, verdict = tokenizer(words, add_special_tokens=False)["input_ids"]
    return {i: verdict for i, token in enumerate(first) if token == stop}


def _answer_names(document: Document, tokenizer: Any) -> dict[int, int]:
    """The labels of a passage, by their position in it.

    The answer's first token is labelled `(` and its last `)`; a single token is labelled `*`. The
    first and last tokens of every other value are labelled `-`.
    """
    _, offsets = _encode(tokenizer, document.second)
    first, last, only, foil = tokenizer.convert_tokens_to_ids(["(", ")", "*", "-"])
    names = {}
    for span in document.others:
        tokens = covered_tokens(offsets, [span])
        if tokens:
            names[tokens[0]] = foil
            names[tokens[-1]] = foil
    answer = covered_tokens(offsets, document.focus)
    if len(answer) == 1:
        names[answer[0]] = only
    else:
        names[answer[0]] = first
        names[answer[-1]] = last
    return names


def query_text(document: Document) -> str:
    """A passage's question without its answer."""
    ((start, end),) = document.focus
    return document.first.removesuffix(f" {document.second[start:end]}")


def grade(document: Document, rng: Random) -> Document:
    """The question and the passage, with `*` at the answer and `-` at every other value."""
    (answer,) = document.focus
    is_mark_last = rng.random() < 0.5
    text = ""
    marks = []
    cursor = 0
    for span in sorted([answer, *document.others]):
        start, end = span
        cut = end if is_mark_last else start
        text += document.second[cursor:cut]
        if is_mark_last:
            text += " "
        marks.append((len(text), len(text) + 1))
        mark = "*" if span == answer else "-"
        text += mark
        if not is_mark_last:
            text += " "
        cursor = cut
    text += document.second[cursor:]
    return replace(
        document,
        kind="graded",
        first=query_text(document),
        second=text,
        focus=tuple(marks),
        echo=None,
        others=(),
    )


def causal_lm(
    documents: Sequence[Document],
    tokenizer: Any,
    rng: Random,
    *,
    announced: bool = False,
) -> Batch:
    """Predict the next token of running text; if `announced`, a phrase introduces each digest."""
    rows = []
    for document in documents:
        text = _reading_text(document, tokenizer, rng, announced)
        rows.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    input_ids = pad(rows, tokenizer.eos_token_id)
    mask = pad([[1] * len(row) for row in rows], 0)
    labels = input_ids.masked_fill(mask == 0, IGNORED)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def _reading_text(document: Document, tokenizer: Any, rng: Random, announced: bool) -> str:
    """The document as running text.

    A passage comes after its question; the answer is marked with an asterisk before or after it, or
    repeated at the end after "answer :".
    """
    if document.kind == "review" and not announced:
        return f"{document.first} {document.second}"
    if document.kind in ("review", "article"):
        return f"{document.first}\n{rng.choice(ANNOUNCEMENTS)} {document.second}"
    ((start, end),) = document.focus
    text = document.second
    opening = f"{query_text(document)}{tokenizer.eos_token}"
    if rng.random() < 0.3:
        return f"{opening}{text}\nanswer : {text[start:end]}"
    if rng.random() < 0.5:
        return f"{opening}{text[:end]} *{text[end:]}"
    return f"{opening}{text[:start]}* {text[start:]}"


def span_corruption(documents: Sequence[Document], tokenizer: Any, rng: Random) -> Batch:
    """Replace spans with sentinels in the input; the target spells the spans out.

    `named` (B, L) holds the encoder's labels.
    """
    corrupted = [_corrupt(document, tokenizer, rng) for document in documents]
    sources, targets, names = zip(*corrupted, strict=True)
    batch = pad_with_mask(sources, tokenizer.pad_token_id)
    return batch | {"labels": pad(targets, IGNORED), "named": pad(names, IGNORED)}


def _corrupt(
    document: Document,
    tokenizer: Any,
    rng: Random,
) -> tuple[list[int], list[int], list[int]]:
    """Mask spans of a document; return source ids, target ids and a label for each source token.

    If nothing is masked, the target is empty, so that the decoder does not learn to stop
    immediately on unmasked text.
    """
    if document.kind == "passage":
        draw = rng.random()
        if draw < 0.3:
            document = grade(document, rng)
        elif draw < 0.65:
            document = replace(document, kind="asked", first=query_text(document))
    elif document.kind == "review" and rng.random() < 0.3:
        document = replace(document, second="", focus=())  # as cells read it
    texts = _join(document, document.second, tokenizer, rng, hidden_share=0.03, longest=3)
    labels = _verdict_names(document, texts.ids[: texts.shift], tokenizer)
    if document.kind == "asked":
        answer_labels = _answer_names(document, tokenizer)
        labels = {texts.shift + i: token for i, token in answer_labels.items()}
    ids = texts.ids if document.second else texts.ids[:-1]
    sentinels = iter(tokenizer.convert_tokens_to_ids(list(SENTINELS)))
    source = []
    names = []
    target = []
    for i, token in enumerate(ids):
        if i not in texts.positions:
            source.append(token)
            names.append(labels.get(i, IGNORED))
            continue
        if i - 1 not in texts.positions:
            sentinel = next(sentinels)
            source.append(sentinel)
            names.append(IGNORED)
            target.append(sentinel)
        target.append(token)
    source.append(tokenizer.eos_token_id)
    names.append(IGNORED)
    if target:
        target.append(tokenizer.eos_token_id)
    return source, target, names


def own_loss(model: Any, batch: Batch) -> Tensor:
    """The model's own loss, in nats."""
    loss: Tensor = model(**batch).loss
    return loss


def t5_loss(model: Any, batch: Batch) -> Tensor:
    """T5's own loss plus the encoder's mean cross-entropy on its labels, in nats.

    The decoder's output layer predicts the labels, with the decoder's scaling.
    """
    names = batch["named"]
    output = model(**{name: tensor for name, tensor in batch.items() if name != "named"})
    mask = names != IGNORED
    logits = model.lm_head(output.encoder_last_hidden_state[mask] * model.model_dim**-0.5)
    loss = cross_entropy(logits, names[mask], reduction="sum")
    total: Tensor = output.loss + loss / mask.sum().clamp(min=1)  # a batch of reports has no labels
    return total
