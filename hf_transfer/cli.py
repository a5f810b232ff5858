"""The `hf-transfer` command: thin, and without any heavy import until a subcommand needs one."""

from __future__ import annotations

import argparse
import io
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from hf_transfer.errors import UserError, nearest, reporting_errors

EXAMPLES = """\
examples:
  hf-transfer quickstart --output_dir runs/quickstart
  hf-transfer gap --source books.csv --target kitchen.csv
  hf-transfer compare --source books.csv --target kitchen.csv --budget 10m --output_dir runs/verdict
  hf-transfer rank --models bert-base-uncased ./my-encoder --source books.csv
  hf-transfer run finetune --method lora --source books.csv --target kitchen.csv --output_dir runs/lora
  hf-transfer run --num_processes 2 finetune --config recipes/configs/amazon_lora.yaml --output_dir runs/lora
  hf-transfer predict runs/lora reviews.csv --output scored.csv
  hf-transfer why runs/lora target_test:17
  hf-transfer choose runs/lora runs/full --target_unlabeled kitchen_raw.jsonl
  hf-transfer report runs/*
  hf-transfer demo runs/lora
  hf-transfer publish runs/lora me/kitchen-sentiment --private --space
  hf-transfer export runs/lora --format onnx --quantize int8
"""


def main(argv: list[str] | None = None) -> None:
    """Run one subcommand; a user error prints one line and exits with 2."""
    with reporting_errors():
        arguments = _parser().parse_args(argv)
        arguments.action(arguments)


def recipes_folder() -> Path:
    """Return where the recipe scripts are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(file.stem for file in recipes_folder().glob("*.py"))


def recipe_file(name: str) -> Path:
    """Return the script of recipe `name`.

    Raises:
        UserError: there is no such recipe.
    """
    if name not in recipe_names():
        raise UserError(f"there is no recipe '{name}'{nearest(name, recipe_names())}; there are: "
                        f"{', '.join(recipe_names())}.")  # fmt: skip
    return recipes_folder() / f"{name}.py"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hf-transfer",
        description="Adapt a pretrained language model to a new domain or task, and know whether it helped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    quick = commands.add_parser("quickstart", help="compare three methods on the embedded corpus, offline, in minutes")
    quick.add_argument("--output_dir", default="runs/quickstart", help="where the runs go (default: %(default)s)")
    quick.add_argument("--quiet", action="store_true", help="print the table only")
    quick.set_defaults(action=_quickstart)

    gap = commands.add_parser("gap", help="how far two domains are apart, and in what: look before you train")
    gap.add_argument(
        "--source", required=True, help="table, folder or Hub dataset id; labels are used if there are any"
    )
    gap.add_argument("--target", required=True, help="likewise")
    gap.add_argument("--model", help="whose features are compared; default: the embedded encoder")
    gap.set_defaults(action=_gap)
    rank = commands.add_parser("rank", help="which pretrained model and layer fit the labels, before any training")
    rank.add_argument("--models", nargs="+", default=[], help="model folders or Hub ids; default: the embedded encoder")
    rank.add_argument("--source", required=True, help="labelled table, folder or Hub dataset id")
    rank.set_defaults(action=_rank)
    choose = commands.add_parser("choose", help="which of several runs fits a target best, without its labels")
    choose.add_argument("runs", nargs="+", help="run folders")
    choose.add_argument(
        "--target_unlabeled", required=True, help="table of the target's texts; its labels are not read"
    )
    choose.add_argument("--backtest", nargs="+", default=[], help="labelled tables of domains that are neither the "
                        "target nor a run's source: how well do the scores choose there?")  # fmt: skip
    choose.set_defaults(action=_choose)
    for looking in (gap, rank, choose):
        looking.add_argument("--text_column", help="column with the text; guessed when obvious")
        looking.add_argument("--label_column", help="column with the label; guessed when obvious")
        looking.add_argument("--output_dir", help="folder for the report, also as JSON; default: print it only")
        looking.add_argument("--seed", type=int, default=0, help="of samples and tests (default: %(default)s)")
        looking.add_argument("--quiet", action="store_true", help="no progress bar")

    compare = commands.add_parser("compare", add_help=False, prefix_chars="\0", help="which adaptation is best for "
                                  "your data, within a time, and did transfer help at all")  # fmt: skip
    compare.add_argument("flags", nargs="*")  # all words, which are those of a recipe and its own few
    compare.set_defaults(action=_compare)

    run = commands.add_parser("run", help="run a recipe by name", description="Run a recipe by name; its own flags "
                              "follow (hf-transfer run finetune --help).")  # fmt: skip
    run.add_argument("--num_processes", type=int, default=1, help="processes to train with, on CPUs too")
    run.add_argument("recipe", help="name of the recipe (hf-transfer list)")
    run.add_argument("flags", nargs=argparse.REMAINDER, help="the recipe's own flags")
    run.set_defaults(action=_run)

    predict = commands.add_parser("predict", help="label a table with a run's model")
    predict.add_argument("run", help="run folder")
    predict.add_argument("data", help="csv, tsv, json, jsonl or parquet file (also .gz), folder, or Hub dataset id")
    predict.add_argument("--output", required=True, help="file to write: .csv, .tsv, .jsonl or .parquet")
    predict.add_argument("--text_column", help="column with the text; guessed when obvious")
    predict.add_argument("--batch_size", type=int, default=32, help="texts at a time (default: %(default)s)")
    predict.add_argument("--engine", choices=["torch", "onnx"], default="torch", help="onnx: what `export` wrote "
                         "(default: %(default)s)")  # fmt: skip
    predict.add_argument("--label_prior", choices=["em", "bbse"], help="estimate the rows' mix of labels, which may be "
                         "another than in training, and correct the predictions by it")  # fmt: skip
    predict.add_argument("--quiet", action="store_true", help="no progress bar")
    predict.set_defaults(action=_predict)

    why = commands.add_parser("why", help="trace one text through a run: tokens, scores, words that decided, time",
                              description="Trace one text through a run: tokens, logits, loss, the words that decided, "
                              "the nearest training rows, the time of each stage.")  # fmt: skip
    why.add_argument("run", help="run folder")
    why.add_argument("row", nargs="?", help="a tested row, as in predictions.parquet: 17, or if that is ambiguous "
                     "target_test:17 or target_test:kitchen:17")  # fmt: skip
    why.add_argument("--text", help="any text, in place of a row")
    why.add_argument("--output_dir", help="folder for the report, also as JSON; default: print it only")
    why.add_argument("--quiet", action="store_true", help="no progress bar")
    why.set_defaults(action=_why)

    report = commands.add_parser("report", help="compare finished runs: table, JSON and plot")
    report.add_argument("runs", nargs="+", help="run folders; others among them are passed over")
    report.add_argument(
        "--output_dir", help="where report.md, report.json and report.png go (default: beside the runs)"
    )
    report.set_defaults(action=_report)

    demo = commands.add_parser("demo", help="try models in a browser, side by side if several",
                               description="The app of a published Space, on 127.0.0.1.")  # fmt: skip
    demo.add_argument("runs", nargs="+", help="run folders")
    demo.add_argument("--port", type=int, help="default: the first free one from 7860")
    demo.add_argument("--mcp", action="store_true", help="serve language-model clients too (Model Context Protocol)")
    demo.add_argument("--corrections", help="file that users' corrections are appended to, or dataset:OWNER/NAME")
    demo.set_defaults(action=_demo)

    publish = commands.add_parser("publish", help="share a run on the Hub: verified, with its evidence, maybe a Space",
                                  description="Verify a run in a fresh process, then push model, card and adapter in "
                                  "one commit. The token comes from HF_TOKEN or `hf auth login`.")  # fmt: skip
    publish.add_argument("run", help="run folder")
    publish.add_argument("repo", help="owner/name on the Hub")
    publish.add_argument("--private", action="store_true", help="nobody else sees it")
    publish.add_argument("--space", action="store_true", help="also a Space with the demo")
    publish.add_argument("--no_examples", action="store_true", help="show no test texts in the Space")
    publish.add_argument("--adapter_only", action="store_true", help="the adapter without the merged model")
    publish.add_argument("--revision", help="branch to push to; made if there is none")
    publish.add_argument("--create_pr", action="store_true", help="propose the commit instead")
    publish.add_argument("--dry_run", action="store_true", help="push nothing; show every file, its size, and the card")
    publish.add_argument("--license", help="of the model, by the Hub's name for it (apache-2.0, cc-by-4.0, ...)")
    publish.add_argument("--against", nargs="+", default=[], metavar="RUN", help="other runs on the same test rows, "
                         "for the card's table")  # fmt: skip
    publish.add_argument("--quiet", action="store_true", help="print nothing but errors")
    publish.set_defaults(action=_publish)

    export = commands.add_parser("export", help="write a run's model for ONNX Runtime, into its folder onnx/")
    export.add_argument("run", help="run folder")
    export.add_argument("--format", choices=["onnx"], default="onnx", help="default: %(default)s")
    export.add_argument("--quantize", choices=["int8"], help="8-bit weights: smaller, faster, measured on the test set")
    export.add_argument("--force", action="store_true", help="also if int8 loses over 1 point or can't be measured")
    export.add_argument("--quiet", action="store_true", help="no progress bar, print nothing but errors")
    export.set_defaults(action=_export)

    listing = commands.add_parser("list", help="recipes, methods and all else that goes by a name, one line each")
    listing.set_defaults(action=_list)

    copy = commands.add_parser("copy", help="copy a recipe to own and change it")
    copy.add_argument("recipe", help="name of the recipe")
    copy.add_argument("folder", help="folder to copy it into")
    copy.set_defaults(action=_copy)
    return parser


def _quickstart(arguments: argparse.Namespace) -> None:
    flags = ["--output_dir", arguments.output_dir, *(["--quiet"] if arguments.quiet else [])]
    _script(recipe_file("quickstart"), flags)


def _gap(arguments: argparse.Namespace) -> None:
    from hf_transfer.gap import domain_gap

    print(domain_gap(arguments.source, arguments.target, model=arguments.model, **_looking(arguments)))


def _rank(arguments: argparse.Namespace) -> None:
    from hf_transfer.rank import rank_models

    print(rank_models(arguments.models, arguments.source, **_looking(arguments)))


def _choose(arguments: argparse.Namespace) -> None:
    from hf_transfer.choose import choose_run

    print(choose_run(arguments.runs, arguments.target_unlabeled, backtest=arguments.backtest, **_looking(arguments)))


def _looking(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("text_column", "label_column", "output_dir", "seed", "quiet")}


def _compare(arguments: argparse.Namespace) -> None:
    from hf_transfer.compare import compare

    try:
        compare(arguments.flags)
    except KeyboardInterrupt:
        print("interrupted; what was finished stays, and the same command goes on.", file=sys.stderr)
        sys.exit(130)


def _run(arguments: argparse.Namespace) -> None:
    script = recipe_file(arguments.recipe)
    if arguments.num_processes < 1:
        raise UserError(f"--num_processes is {arguments.num_processes}; it must be at least 1.")
    if arguments.num_processes == 1:
        _script(script, arguments.flags)
        return
    # `accelerate launch --num_processes N` starts one process on a machine without GPUs; torchrun starts N everywhere
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // arguments.num_processes))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [*launch, str(arguments.num_processes), str(script), *arguments.flags]
    errors: list[str] = []
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in io.TextIOWrapper(process.stderr, errors="replace", newline=""):  # a bar's lines end in \r: keep it
            if line.startswith("error: "):
                errors.append(line.removeprefix("error: ").strip())
            elif not errors:  # torchrun wraps every failure in a long report of its own
                sys.stderr.write(line)
                sys.stderr.flush()
    if process.returncode and errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    sys.exit(process.returncode)


def _script(file: Path, flags: list[str]) -> None:
    sys.argv = [str(file), *flags]
    sys.path.insert(0, str(file.parent))
    runpy.run_path(str(file), run_name="__main__")


def _predict(arguments: argparse.Namespace) -> None:
    from hf_transfer.predict import predict_rows

    summary = predict_rows(
        arguments.run,
        arguments.data,
        arguments.output,
        text_column=arguments.text_column,
        batch_size=arguments.batch_size,
        engine=arguments.engine,
        label_prior=arguments.label_prior,
        quiet=arguments.quiet,
    )
    if not arguments.quiet:
        print(summary)


def _why(arguments: argparse.Namespace) -> None:
    from hf_transfer.why import why_row

    print(why_row(arguments.run, arguments.row, text=arguments.text, output_dir=arguments.output_dir,
                  quiet=arguments.quiet))  # fmt: skip


def _report(arguments: argparse.Namespace) -> None:
    from hf_transfer.report import write_report

    text, files = write_report(arguments.runs, arguments.output_dir)
    print(text)
    print("\nwritten: " + ", ".join(map(str, files)))


def _demo(arguments: argparse.Namespace) -> None:
    from hf_transfer.demo import run_demo

    run_demo(arguments.runs, port=arguments.port, mcp=arguments.mcp, corrections=arguments.corrections)


def _publish(arguments: argparse.Namespace) -> None:
    from hf_transfer.publish import publish

    said = publish(
        arguments.run,
        arguments.repo,
        private=arguments.private,
        space=arguments.space,
        adapter_only=arguments.adapter_only,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        dry_run=arguments.dry_run,
        license=arguments.license,
        against=arguments.against,
        examples=not arguments.no_examples,
        quiet=arguments.quiet,
    )
    if not arguments.quiet:
        print(said)


def _export(arguments: argparse.Namespace) -> None:
    from hf_transfer.export import export_run

    said = export_run(arguments.run, quantize=arguments.quantize, force=arguments.force, quiet=arguments.quiet)
    if not arguments.quiet:
        print(said)


def _list(arguments: argparse.Namespace) -> None:
    from hf_transfer.plugins import first_line

    package = Path(__file__).parent
    for title, folder in (
        ("recipes", recipes_folder()),
        ("methods", package / "methods"),
        ("alignments", package / "alignment"),
        ("objectives", package / "objectives"),
        ("feature maps", package / "feature_maps"),
        ("tasks", package / "tasks"),
        ("diagnostics", package / "diagnostics"),
        ("label-free scores", package / "label_free"),
    ):
        print(f"{title}:")
        for file in sorted(folder.glob("*.py")):
            if not file.stem.startswith("_"):
                print(f"  {file.stem:22} {first_line(file)}")


def _copy(arguments: argparse.Namespace) -> None:
    from hf_transfer.results import check_writable

    source = recipe_file(arguments.recipe)
    target = Path(arguments.folder) / source.name
    if target.exists():
        raise UserError(f"{target} is there already; remove it or copy into another folder.")
    check_writable(target.parent, "folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"copied to {target}; run it with: accelerate launch {target} --help")


if __name__ == "__main__":
    main()
