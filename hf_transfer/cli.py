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
from typing import NoReturn

from hf_transfer.errors import UserError, nearest, reporting_errors

EXAMPLES = """\
examples:
  hf-transfer quickstart --output_dir runs/quickstart
  hf-transfer run finetune --method lora --source books.csv --target kitchen.csv --output_dir runs/lora
  hf-transfer run --num_processes 2 finetune --config recipes/configs/amazon_lora.yaml --output_dir runs/lora
  hf-transfer predict runs/lora reviews.csv --output scored.csv
  hf-transfer report runs/*
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
    predict.add_argument("--quiet", action="store_true", help="no progress bar")
    predict.set_defaults(action=_predict)

    report = commands.add_parser("report", help="compare finished runs: table, JSON and plot")
    report.add_argument("runs", nargs="+", help="run folders; others among them are passed over")
    report.add_argument(
        "--output_dir", help="where report.md, report.json and report.png go (default: beside the runs)"
    )
    report.set_defaults(action=_report)

    listing = commands.add_parser("list", help="recipes, methods and tasks, one line each")
    listing.set_defaults(action=_list)

    copy = commands.add_parser("copy", help="copy a recipe to own and change it")
    copy.add_argument("recipe", help="name of the recipe")
    copy.add_argument("folder", help="folder to copy it into")
    copy.set_defaults(action=_copy)
    return parser


def _quickstart(arguments: argparse.Namespace) -> None:
    flags = ["--output_dir", arguments.output_dir, *(["--quiet"] if arguments.quiet else [])]
    _script(recipe_file("quickstart"), flags)


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
        quiet=arguments.quiet,
    )
    if not arguments.quiet:
        print(summary)


def _report(arguments: argparse.Namespace) -> None:
    from hf_transfer.report import write_report

    text, files = write_report(arguments.runs, arguments.output_dir)
    print(text)
    print("\nwritten: " + ", ".join(map(str, files)))


def _list(arguments: argparse.Namespace) -> None:
    from hf_transfer.plugins import first_line

    package = Path(__file__).parent
    for title, folder in (
        ("recipes", recipes_folder()),
        ("methods", package / "methods"),
        ("tasks", package / "tasks"),
    ):
        print(f"{title}:")
        for file in sorted(folder.glob("*.py")):
            if file.stem != "__init__":
                print(f"  {file.stem:20} {first_line(file)}")


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
