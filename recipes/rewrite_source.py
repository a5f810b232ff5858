"""Rewrite a labelled source toward the target: its own words give way to what a model of target text puts there.

    hf-transfer run rewrite_source --source books.csv --target_unlabeled kitchen_raw.jsonl --model runs/dapt \
        --classifier runs/full --output books_as_kitchen.jsonl

`--model` comes from pretrain_domain, `--classifier` is a finished run. Labels are kept; a text that the classifier no
longer gives its label stays as it was. The new table says which are new, and what they were: a text that is also tested
in the target is left out of training, rewritten or not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from hf_transfer.console import Console
from hf_transfer.data import FEW_UNLABELED
from hf_transfer.errors import UserError, listed, reporting_errors
from hf_transfer.models import load_pretrained
from hf_transfer.objectives import mlm
from hf_transfer.predict import scorer
from hf_transfer.results import check_writable, load_run, write_atomically
from hf_transfer.rewriting import most_put_in, own_words, rewrite
from hf_transfer.tables import REWRITTEN_FROM, open_table, read_table

OFTEN = 0.2  # share of one word among those put in, which a model that knows the target has not
WRITERS = {
    ".csv": lambda frame: frame.to_csv(index=False),
    ".jsonl": lambda frame: frame.to_json(orient="records", lines=True, force_ascii=False),
    ".parquet": lambda frame: frame.to_parquet(index=False),
}


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Read, rewrite, check and write; returns the new table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="labelled table that is rewritten")
    parser.add_argument("--target_unlabeled", required=True, help="texts of the target")
    parser.add_argument("--model", required=True, help="model that has learnt to fill in words of the target")
    parser.add_argument("--classifier", required=True, help="finished run that knows the source's labels")
    parser.add_argument("--output", required=True, help=f"file to write: {', '.join(WRITERS)}")
    parser.add_argument("--text_column", help="column with the text; guessed when obvious")
    parser.add_argument("--label_column", help="column with the label; guessed when obvious")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, print nothing but errors")
    arguments = parser.parse_args(argv)
    console, output = Console(quiet=arguments.quiet), Path(arguments.output)
    if output.suffix not in WRITERS:
        raise UserError(f"--output {output} must end in {', '.join(WRITERS)}.")
    if output.exists():
        raise UserError(f"--output {output} is there already; remove it or name another file.")
    check_writable(output.parent, "--output")
    run = load_run(arguments.classifier)
    source = read_table(arguments.source, text_column=arguments.text_column, label_column=arguments.label_column)
    target = read_table(arguments.target_unlabeled, text_column=arguments.text_column, labelled=False)
    if unknown := sorted(set(source.rows["label"]) - set(run.label_names)):
        raise UserError(f"--classifier {run.folder} knows no label {listed(unknown)}; it knows "
                        f"{listed(run.label_names)}. Name a run with the source's labels.")  # fmt: skip
    if len(target.rows) < FEW_UNLABELED:
        console.say(f"note: only {len(target.rows)} unlabelled texts: {FEW_UNLABELED} or more tell more of a domain")
    loaded = load_pretrained(arguments.model, "main", mlm.AUTO_MODEL, 0)
    if loaded.new_parameters or loaded.tokenizer.mask_token is None:
        raise UserError(f"--model {arguments.model} has not learnt to fill in words; give one that "
                        "hf-transfer run pretrain_domain has made.")  # fmt: skip
    texts, theirs = (table.texts.select(table.rows["row"])["text"][:] for table in (source, target))
    origins, whole = texts, open_table(arguments.source, arguments.text_column)[0]
    if REWRITTEN_FROM in whole.column_names:  # what they were before they were ever rewritten
        before = whole.select(source.rows["row"])[REWRITTEN_FROM][:]
        origins = [one or text for one, text in zip(before, texts, strict=True)]
    own = own_words(texts, theirs)
    new = rewrite(texts, own, loaded, quiet=arguments.quiet)
    changed = np.array([one != other for one, other in zip(texts, new, strict=True)])
    labels = np.array(run.label_names)[scorer(run.folder)(new).argmax(axis=1)]
    kept = changed & (labels == source.rows["label"].to_numpy())
    columns = ["label", *(["split"] if "split" in source.rows else [])]
    frame = pd.DataFrame({"text": np.where(kept, new, texts), **source.rows[columns], "rewritten": kept,
                          REWRITTEN_FROM: origins})  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, WRITERS[output.suffix](frame))
    word, share = most_put_in(texts, new)
    if share > OFTEN:
        console.say(f"note: {share:.0%} of the words put in are '{word}': --model has learned little of the target; "
                    "give pretrain_domain more texts or epochs")  # fmt: skip
    console.say(f"{kept.sum()} of {len(frame)} texts rewritten; {(changed & ~kept).sum()} stay as they were, because "
                f"{run.folder} gives what became of them another label, and {(~changed).sum()} because they hold none "
                f"of the source's {len(own)} own words\nwritten: {output}")  # fmt: skip
    return frame


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
