"""Bugs of text and rows, put back into the libraries: offsets, decoding, tables."""

from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def first_offset_is_late(monkeypatch: Any) -> None:
    """The first token's offset starts at its second character: a space is trimmed that is not there."""
    convert = PreTrainedTokenizerFast._convert_encoding

    def late(self: Any, *args: Any, **options: Any) -> Any:
        encoded, encodings = convert(self, *args, **options)
        for offsets in encoded.get("offset_mapping", []):
            offsets[:1] = [(start + 1, end) for start, end in offsets[:1]]
        return encoded, encodings

    monkeypatch.setattr(PreTrainedTokenizerFast, "_convert_encoding", late)


def decoding_cleans_up(monkeypatch: Any) -> None:
    """`decode` takes away the spaces before punctuation and short forms, though the tokenizer says that it must not."""
    decode = PreTrainedTokenizerFast._decode

    def cleaned(self: Any, *args: Any, **options: Any) -> str:
        return PreTrainedTokenizerBase.clean_up_tokenization(self, decode(self, *args, **options))

    monkeypatch.setattr(PreTrainedTokenizerFast, "_decode", cleaned)


def rows_before_the_mapping(monkeypatch: Any) -> None:
    """The indices that were selected are forgotten: as many rows come back, from the start of the table."""
    select = datasets.Dataset.select

    def forgetful(self: Any, indices: Any, **options: Any) -> Any:
        return select(self, range(len(indices)), **options)

    monkeypatch.setattr(datasets.Dataset, "select", forgetful)
