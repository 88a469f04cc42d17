"""transformers: a new linear layer on T5's encoder starts with a standard deviation of 1.

T5's config has no `initializer_range`, so the library's general rule takes `initializer_factor`,
which is a multiplier, as the standard deviation. T5 starts its own heads with
`initializer_factor * d_model**-0.5`. Before 5.13 the layer was not initialized at all. Prints both
standard deviations. Exits with 1 if the fault shows, with 0 if it does not.
"""

import sys
from tempfile import TemporaryDirectory

import torch
import transformers
from torch import nn


class Classifier(transformers.T5EncoderModel):
    """T5's encoder with a new linear layer, as a user would write it."""

    def __init__(self, config: transformers.T5Config) -> None:
        """Build the encoder and the layer."""
        super().__init__(config)
        self.classifier = nn.Linear(config.d_model, 2)
        self.post_init()


torch.manual_seed(0)
transformers.logging.set_verbosity_error()
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
config = transformers.T5Config(
    d_model=512, d_kv=64, d_ff=512, num_layers=1, num_heads=8, vocab_size=100
)
expected = config.initializer_factor * config.d_model**-0.5
with TemporaryDirectory() as folder:
    transformers.T5EncoderModel(config).save_pretrained(folder)
    found = Classifier.from_pretrained(folder).classifier.weight.std().item()
print(f"standard deviation of the new layer: {found:.3g}; T5's own heads start with {expected:.3g}")
sys.exit(int(not 0.5 * expected < found < 2 * expected))
