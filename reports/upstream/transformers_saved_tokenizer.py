"""transformers: a saved tokenizer forgets the side that it was set to pad on, and keeps the
truncation of its last call.

Prints both. The second shows where the file is read by `tokenizers`, as servers do. Exit code 1
shows a fault, 0 a version without one.
"""

import sys
import tempfile
from pathlib import Path

import tokenizers
import transformers

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
source = Path(__file__).parents[2] / "fixtures" / "backbones" / "gpt2-micro"
text = "one two three four five six"

tokenizer = transformers.AutoTokenizer.from_pretrained(source)
whole = len(tokenizer(text)["input_ids"])
tokenizer.padding_side = "left"
with tempfile.TemporaryDirectory() as folder:
    tokenizer.save_pretrained(folder)
    side = transformers.AutoTokenizer.from_pretrained(folder).padding_side
    tokenizer(text, truncation=True, max_length=2)
    tokenizer.save_pretrained(folder)
    read = len(tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids)
print(f"set to pad on the left, the saved tokenizer pads on the {side}")
print(f"saved after a call that cut, it reads {read} tokens of {whole}")
sys.exit(int(side != "left" or read != whole))
