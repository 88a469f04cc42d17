"""`python -m lib` of versions before 0.13 says what to write now."""

import sys

sys.exit(f"python -m lib is now tunegrid: write `tunegrid {' '.join(sys.argv[1:]) or '--help'}` (after `pip install -e .`)")
