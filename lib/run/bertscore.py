"""BERTScore (Zhang et al. 2020) with any BERT encoder. In: references and candidates. Out: precision, recall, F1 in points.

No idf weights and no rescaling, as `bert_score`'s defaults. The encoder is not that package's default: compare scores only
among runs that name the same encoder.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

BATCH = 64
MAX_TOKENS = 256


class BertScorer:
    """Matches tokens of two texts by the cosine of their contextual embeddings."""

    def __init__(self, name: str, tokenizer: Any, encoder: Any) -> None:
        """An encoder with its tokenizer; `name` goes into the record."""
        self.name, self._tokenizer, self._encoder = name, tokenizer, encoder.eval()
        # bert_score takes layer 9 of bert-base's 12, which correlates best with human judgement: three quarters up.
        self._layer = round(0.75 * encoder.config.num_hidden_layers)

    def examples(self, references: Sequence[str], candidates: Sequence[str]) -> dict[str, list[float]]:
        """Points of each example; an empty candidate scores 0."""
        triples = [
            greedy_match(candidate, reference)
            for candidate, reference in zip(self._embedded(candidates), self._embedded(references), strict=True)
        ]
        names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
        return {name: [100 * triple[place] for triple in triples] for place, name in enumerate(names)}

    def _embedded(self, texts: Sequence[str]) -> list[Tensor]:
        """Unit vectors (tokens, width) of each text, without special tokens."""
        vectors: list[Tensor] = []
        for start in range(0, len(texts), BATCH):
            batch = self._tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            with torch.inference_mode():
                output = self._encoder(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
            states = normalize(output.hidden_states[self._layer].float(), dim=-1)
            special = torch.tensor(self._tokenizer.all_special_ids)
            vectors += [row[~torch.isin(ids, special)] for row, ids in zip(states, batch["input_ids"], strict=True)]
        return vectors


def greedy_match(candidate: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of unit vectors (C, width) against (R, width), from 0 to 1.

    Precision is the mean over candidate tokens of their best cosine with a reference token; recall the other way round.
    """
    if not len(candidate) or not len(reference):
        return 0.0, 0.0, 0.0
    cosines = candidate @ reference.T
    precision, recall = float(cosines.max(1).values.mean()), float(cosines.max(0).values.mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
