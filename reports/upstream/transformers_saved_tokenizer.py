"""transformers: a saved tokenizer forgets its padding side and keeps its last call's truncation.

Prints both effects. The truncation shows if `tokenizers` reads the file, as servers do. Exits with
1 if a fault shows, with 0 if none does.
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
