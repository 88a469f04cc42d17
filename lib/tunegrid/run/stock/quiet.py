"""Lets the libraries print nothing but errors: what they log, and bars of what takes no time here."""

import datasets
import transformers as hf


def quiet() -> None:
    """For the rest of this process."""
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    datasets.disable_progress_bars()
