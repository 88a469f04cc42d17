"""A stand-in for a backbone's tokenizer that makes token ids without text, for runs without a checkpoint."""

from random import Random

from tunegrid.grid.backbones import Backbone


class SyntheticTokenizer:
    """The ids of a backbone's true tokenizer, special ones by name, but no words: `Codec.synthetic` needs none."""

    pad_token_id: int | None = None
    eos_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    def __init__(self, backbone: Backbone) -> None:
        """The true vocabulary's size and special tokens."""
        vars(self).update(backbone.special_tokens)
        self._size = backbone.vocabulary
        self._special = set(backbone.special_tokens.values())
        self._added: dict[str, int] = {}

    def __len__(self) -> int:
        """How many ids there are, added ones included."""
        return self._size + len(self._added)

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> None:
        """Give each the next free id."""
        for token in tokens:
            self._added.setdefault(token, len(self))

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of an added token."""
        return self._added[token]

    def draw(self, rng: Random, count: int) -> list[int]:
        """So many random ids, special ones left out."""
        words: list[int] = []
        while len(words) < count:
            token = rng.randrange(self._size)
            if token not in self._special:
                words.append(token)
        return words
