"""Compares decoded tokens with a text by what tokenizers keep of it."""

import re
import unicodedata


def alphanumeric(text: str) -> str:
    """A text's ASCII letters and digits, lower case and without accents: what every tokenizer keeps."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text.lower()))


def same_alphanumeric(tokens: str, text: str, unknown: str | None) -> bool:
    """Whether decoded tokens hold a text. They may reach beyond it, and an `unknown` token may stand for any part of it."""
    return alphanumeric(text) in alphanumeric(tokens) or bool(unknown and unknown in tokens)
