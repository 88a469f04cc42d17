"""What questions that a trained cell was asked say: parts of a record."""

from typing import Annotated, Literal

from pydantic import Field

from tunegrid.grid.recipes import Amount, Count, Positive
from tunegrid.record.parts import Estimate, ExamplesRecord, Part, Points


class CalibrationFigures(Part):
    """How well confidence fits hits: of test rows, the prediction's probability and whether it is right."""

    confidence: Annotated[Points, Field(description="mean, in points; the share of hits is a score")]
    ece: Annotated[
        Estimate, Field(description="points: mean distance of confidence and share of hits, over 15 bins of equal width")
    ]
    adaptive_ece: Annotated[Estimate, Field(description="points: the same over 15 bins of equally many rows")]
    expected_ece: Annotated[
        Points,
        Field(description="small-sample bias: the mean `ece` of so many rows that are hits with just their confidence"),
    ]
    brier: Annotated[Estimate, Field(description="mean square of confidence minus hit, 0 to 1")]
    nll: Annotated[Estimate, Field(description="nats: mean of -log of what was said of the outcome, hit or miss")]


class CalibrationRecord(Part):
    """How well a model knows when it is right; the temperature is fitted on validation rows."""

    hits: Annotated[str, Field(description="the score by which a prediction is a hit, where it has 100 points")]
    unscaled: CalibrationFigures
    scaled: Annotated[CalibrationFigures | None, Field(description="at the temperature; null: none could be fitted")]
    temperature: Annotated[
        float | None,
        Field(gt=0, description="by which scores are divided; null: all validation rows are hits, or all misses"),
    ]
    validation_rows: Annotated[Count, Field(description="rows that it was fitted on, at most 384")]
    validation_nll: Annotated[Amount | None, Field(description="nats, before scaling; null: no temperature was fitted")]
    scaled_validation_nll: Annotated[Amount | None, Field(description="the same at the temperature: never higher")]


BaseKind = Literal["packed", "unpacked", "original"]  # packed to 4 bits; these 4 bits as numbers; the checkpoint's own numbers


class MergedRecord(Part):
    """An adapter merged onto one base, beside the adapter that is served over its packed base."""

    base: Annotated[BaseKind | None, Field(description="by the weights of its layers; null: none of these, or not merged")]
    score: Annotated[Points | None, Field(description="the main score; null: not merged, or not a number")]
    flips: Annotated[Count | None, Field(description="test rows that are predicted otherwise")]
    largest_difference: Annotated[Amount | None, Field(description="of logits")]
    mean_difference: Annotated[Amount | None, Field(description="of logits, without their signs")]
    layers: Annotated[int, Field(ge=0, description="layers that were held to the adapter")]
    unlike: Annotated[list[str], Field(description="those that do not compute what the adapter computes over this base")]
    refused: Annotated[str | None, Field(description="why it could not be merged")]


class MergesRecord(Part):
    """An adapter over a packed base, served as it is and merged in three ways."""

    rows: Annotated[Positive, Field(description="test rows that were scored and compared")]
    sampled: Annotated[Positive, Field(description="those of them whose logits were compared")]
    served: Annotated[Points | None, Field(description="the main score of the adapter, saved and loaded again")]
    largest_logit: Annotated[Amount, Field(description="that the served adapter gives the sampled rows")]
    packed: Annotated[MergedRecord, Field(description="merged into the packed base, whose layers PEFT packs again")]
    unpacked: Annotated[MergedRecord, Field(description="merged onto the packed base's numbers")]
    original: Annotated[MergedRecord, Field(description="merged onto the checkpoint, which was never packed")]


class ForgettingRecord(Part):
    """The backbone's own pretraining loss on texts of the other tasks, before and after training, in nats a token."""

    objective: Annotated[
        Literal["masked", "causal", "spans"] | None,
        Field(description="that the backbone was pretrained with; null: not declared"),
    ]
    texts: Annotated[dict[str, Count], Field(description="how many, by the task that they are of")]
    tokens: Annotated[Count, Field(description="that were to be predicted")]
    frozen: Annotated[bool | None, Field(description="nothing that the loss depends on trains; null: not asked")]
    before: Annotated[Estimate | None, Field(description="of the model as it starts; null: not asked, or no finite number")]
    after: Annotated[Estimate | None, Field(description="of the trained model, adapter included; null: as above")]
    change: Annotated[Estimate | None, Field(description="after minus before, paired text by text")]
    refused: Annotated[str | None, Field(description="why it could not be asked, as that the checkpoint has no such head")]


class ShiftRecord(Part):
    """What the trained model scores on rows as one shift changes them, which have the same answers."""

    meaning: str
    changed: Annotated[Positive, Field(description="rows of another text; a shift that changes none is not listed")]
    read: Annotated[Count, Field(description="of these, rows of other tokens: what the tokenizer ignores, it does not change")]
    score: Annotated[Points, Field(description="mean points of all rows, the unchanged ones included")]
    change: Annotated[Estimate, Field(description="against the rows as they are, in points, paired row by row")]


class ContrastRecord(Part):
    """What the trained model answers where a shift turns the right answer: it must follow."""

    meaning: str
    pairs: Annotated[Positive, Field(description="rows that have such a twin")]
    right: Annotated[Count, Field(description="pairs of which the row itself is answered rightly")]
    both: Annotated[Count, Field(description="pairs of which its twin is, too")]


class ShiftedRecord(Part):
    """How robust the trained model is: scores on changed rows."""

    metric: Annotated[str, Field(description="whose points by row are compared")]
    rows: Annotated[Positive, Field(description="test rows that were changed and scored: some, where there are many")]
    score: Annotated[Points, Field(description="of these rows as they are")]
    repeated: Annotated[
        bool, Field(description="scored again without any change, each row has the same points to the last bit")
    ]
    unmoved: Annotated[list[str], Field(description="shifts that change no token, and yet points")]
    shifts: Annotated[dict[str, ShiftRecord], Field(description="by the shift's id")]
    contrasts: Annotated[dict[str, ContrastRecord], Field(description="by the id of the shift that turns the answer")]
    examples: Annotated[
        ExamplesRecord | None, Field(description="points of each row, by shift, and `plain`; null: could not be kept")
    ]
