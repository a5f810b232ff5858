"""Compare frozen, LoRA and full fine-tuning with two controls, on the embedded corpus and encoder, offline.

    hf-transfer quickstart --output_dir runs/quickstart

Source domains are hotels and films, the target is kitchen gadgets, whose labels no method sees. Each arm is the very
command that is printed; the runs it leaves are ordinary run folders.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import subprocess
import sys
import time
from pathlib import Path

from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.report import write_report

METHODS = ("frozen", "lora", "full")


def main(argv: list[str] | None = None) -> None:
    """Run the arms one after the other, then print the table and what to type next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/quickstart", help="where the runs go")
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output_dir)
    for method in METHODS:
        if (output / method).exists() or (output / f"{method}.partial").exists():
            raise UserError(f"--output_dir {output} holds an earlier quickstart; remove it or name another folder.")
    spec = importlib.util.find_spec("hf_transfer")
    corpus = Path(spec.submodule_search_locations[0]) / "corpus"  # type: ignore[union-attr,index]
    start = time.perf_counter()
    for number, method in enumerate(METHODS, start=1):
        flags = ["--method", method, "--output_dir", str(output / method)]
        flags += ["--source", *[str(corpus / f"{name}.labeled.jsonl") for name in ("hotels", "films")]]
        flags += ["--target", str(corpus / "gadgets.labeled.jsonl")]
        if arguments.quiet:
            flags.append("--quiet")
        if not arguments.quiet:
            print(f"\n[{number}/{len(METHODS)}] hf-transfer run finetune {shlex.join(flags)}", flush=True)
        script = Path(__file__).with_name("finetune.py")
        if code := subprocess.run([sys.executable, str(script), *flags]).returncode:
            sys.exit(code)
    text, files = write_report([str(output / method) for method in METHODS])
    print(f"\n{text}\n\nScores in %, with 95 % bootstrap intervals; {time.perf_counter() - start:.0f} s in all.")
    print(f"written: {', '.join(map(str, files))}\nnext: hf-transfer predict {output / 'frozen'} your.csv --output "
          f"scored.csv\n      hf-transfer report {output}/*\n"
          "      hf-transfer run finetune --method lora --source your_source.csv --target your_target.csv "
          "--output_dir runs/mine")  # fmt: skip


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
