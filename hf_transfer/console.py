"""What a recipe says on the terminal: plain lines, nothing at all with --quiet."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_transfer.results import Run


class Console:
    """Print for people, unless `quiet`; also hushes other libraries' chatter (their errors still show).

    Args:
        quiet: print nothing and draw no progress bars.
    """

    def __init__(self, *, quiet: bool) -> None:
        import datasets
        import transformers

        self.quiet = quiet
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()  # loading weights takes a blink
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        logging.getLogger("accelerate").setLevel(logging.ERROR)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        # a known oddity of torch's scheduler order under accelerate, which is no fault of the user's
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        # peft 0.21 still asks transformers by the old name
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

    def say(self, text: str) -> None:
        """Print `text`."""
        if not self.quiet:
            print(text, flush=True)

    def finished(self, run: Run) -> None:
        """Print the result of `run` and what to do next."""
        from hf_transfer.report import rows_of, table, verdict

        self.say(f"\n{table(rows_of([run]))}\n{verdict(run)}\n")
        self.say(f"run folder: {run.folder}\nnext: hf-transfer predict {run.folder} new.csv --output scored.csv\n"
                 f"      hf-transfer report {run.folder.parent}/*")  # fmt: skip
        if run.adaptation:
            self.say("whether the adaptation helped: hf-transfer compare, paired with the same on the source alone")
