"""What the README shows is what happens."""

from __future__ import annotations

import re

import conftest
import torch

from hf_transfer import methods


def test_the_method_in_one_file_works(tiny, tables, recipe, tmp_path, monkeypatch):
    readme = (conftest.REPOSITORY / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "norms.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    assert "norms" in methods.names()
    run = recipe(["--method", "norms", "--model", str(tiny), "--source", str(tables["source"]), "--target",
                  str(tables["target"]), "--output_dir", str(tmp_path / "run"), "--max_length", "48", "--quiet",
                  "--precision", "fp32", "--num_train_epochs", "1"])  # fmt: skip
    from transformers import AutoModel, AutoModelForSequenceClassification

    before = AutoModel.from_pretrained(tiny).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(run.folder).base_model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "LayerNorm" in name}
    assert len(moved) == 14


def test_every_command_of_the_readme_exists():
    from hf_transfer.cli import _parser

    readme = (conftest.REPOSITORY / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"hf-transfer (\w+)", readme)) & {"quickstart", "run", "predict", "report", "list", "copy"}
    assert used == {"run", "predict", "report", "list", "copy"} | ({"quickstart"} & used)
    known = _parser().format_help()
    assert all(f"    {name} " in known for name in used)
    assert "_TABLE" not in readme
