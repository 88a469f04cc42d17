"""BERTScore (Zhang et al. 2020) with any BERT encoder: precision, recall and F1 in points.

No idf weights and no rescaling, as `bert_score`'s defaults; on one encoder the two agree within 1e-4. The encoder is not that
package's default: compare scores only among runs that name the same encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A text's tokens.

    Attributes:
        vectors: unit vectors (tokens, width) of all tokens; any of them may be a partner.
        counted: which of them (tokens,) count in a mean: all but [CLS] and [SEP], which stand in every text.
    """

    vectors: Tensor
    counted: Tensor


class BertScorer:
    """Matches tokens of two texts by the cosine of their contextual embeddings."""

    def __init__(self, name: str, tokenizer: Any, encoder: Any) -> None:
        """An encoder with its tokenizer; `name` goes into the record."""
        self.name, self._tokenizer, self._encoder = name, tokenizer, encoder.eval()
        # bert_score takes layer 9 of bert-base's 12, which correlates best with human judgement: three quarters up.
        self._layer = round(0.75 * encoder.config.num_hidden_layers)
        self._window = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    def examples(self, references: Sequence[str], candidates: Sequence[str]) -> dict[str, list[float]]:
        """Points of each example; an empty text scores 0."""
        triples = [
            greedy_match(candidate, reference)
            for candidate, reference in zip(self._embedded(candidates), self._embedded(references), strict=True)
        ]
        names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
        return {name: [100 * triple[index] for triple in triples] for index, name in enumerate(names)}

    def _embedded(self, texts: Sequence[str]) -> list[Embedded]:
        """The tokens of each text, as far as the encoder's window reaches."""
        frame = torch.tensor([self._tokenizer.cls_token_id, self._tokenizer.sep_token_id])
        embedded: list[Embedded] = []
        for start in range(0, len(texts), BATCH):
            batch = self._tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=self._window, return_tensors="pt"
            )
            mask = batch["attention_mask"]
            with torch.inference_mode():
                output = self._encoder(batch["input_ids"], attention_mask=mask, output_hidden_states=True)
            states = normalize(output.hidden_states[self._layer].float(), dim=-1)
            for row, ids, real in zip(states, batch["input_ids"], mask.bool(), strict=True):
                embedded.append(Embedded(vectors=row[real], counted=~torch.isin(ids[real], frame)))
        return embedded


def greedy_match(candidate: Embedded, reference: Embedded) -> tuple[float, float, float]:
    """Precision, recall and F1 of two texts, from 0 to 1.

    Precision is the mean over counted candidate tokens of their best cosine with any reference token; recall the other way
    round.
    """
    if not candidate.counted.any() or not reference.counted.any():
        return 0.0, 0.0, 0.0
    cosines = candidate.vectors @ reference.vectors.T
    precision = float(cosines.max(1).values[candidate.counted].mean())
    recall = float(cosines.max(0).values[reference.counted].mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
