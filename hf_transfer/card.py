"""The model card: what a run showed, in plain words, how to use the model, and how to make it again.

Everything said is derived from the run; nothing is said that was not measured. Names of labels and domains are the
user's data: they are escaped wherever they appear.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_transfer.controls import CONSTANT
from hf_transfer.errors import UserError
from hf_transfer.happened import what_happened
from hf_transfer.report import target_labels, test_set, verdict
from hf_transfer.results import Run, longest_text
from hf_transfer.statistics import metric

if TYPE_CHECKING:
    from hf_transfer.base import Base

TEMPLATE = Path(__file__).with_name("card.md.jinja")
FEWEST = 20  # rows in common, below which two runs are not compared; also rows of a class, below which F1 says little
SMALL = 200  # test rows, below which the card warns
POOR_CALIBRATION = 0.05
KEY = ["set", "domain", "row"]
EMBEDDED = re.compile(r"(^|.*/)hf_transfer/corpus/(hotels|films|gadgets)\.labeled\.jsonl")


def render_card(
    run: Run,
    *,
    repo_id: str,
    base: Base,
    files: Literal["merged", "adapter"] = "merged",
    has_adapter: bool,
    license: str | None,
    revision: str | None = None,
    others: Sequence[Run] = (),
) -> str:
    """Return the README.md of the model repository, front matter included; the same run gives the same text.

    Args:
        run: a finished run without absolute paths; its folder holds the predictions and the tokenizer's config.
        repo_id: where the model is published, `owner/name`.
        base: the pretrained model.
        files: what is published: the merged model, or the adapter's files alone.
        has_adapter: whether the folder `adapter` is published beside the merged model.
        license: of the published model, by the Hub's name for it, if stated.
        revision: branch that it is published on, if not the main one.
        others: runs on the same test rows to compare with.

    Raises:
        UserError: another run has too few test rows in common with this one, or other labels for them.
    """
    from huggingface_hub import ModelCard

    which = test_set(run)
    scores = run.metrics[which]
    slices = scores["slices"]
    values = {
        "run": run,
        "base": base,
        "license": license,
        "repo_id": repo_id,
        "revision": revision,
        "title": repo_id.split("/")[-1],
        "merged": files == "merged",
        "adapter_subfolder": "adapter" if files == "merged" and has_adapter else None,
        "target": run.data["target"],
        "sources": sources(run),
        "labels_seen": target_labels(run),
        "verdict": verdict(run, escaped),
        "metric": metric.title(run.metric),
        "chosen_by": metric.title(run.chosen_by),
        "own_column": run.metric not in ("accuracy", "macro_f1"),
        "happened": [sentence for _, sentence in what_happened(run.choices)],
        "evidence": evidence_rows(run, others),
        "source_only_missing": target_labels(run) is not None and all(target_labels(other) for other in others),
        "scores": scores,
        "source": run.metrics.get("source_test"),
        "before": run.metrics.get("source_test_before"),
        "worst_slice": min(slices, key=lambda part: part["accuracy"]) if len(slices) > 1 else None,
        "longest": longest_text(run),
        "limits": limits(run),
        "embedded": from_embedded_corpus(run),
        "md": escaped,
        "scored": scored,
        "percent": percent,
        "fence": fence,
        "literal": literal,
    }
    data = card_data(run, repo_id=repo_id, base=base, files=files, license=license)
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **values)).rstrip() + "\n"


def card_data(run: Run, *, repo_id: str, base: Base, files: str, license: str | None) -> Any:
    """Return the card's front matter (`ModelCardData`), scores with their intervals included."""
    from huggingface_hub import EvalResult, ModelCardData

    from hf_transfer import tasks

    pipeline_tag = tasks.load(run.task).pipeline_tag
    results = []
    for which in ("target_test", "source_test"):
        if which not in run.metrics:
            continue
        scores = run.metrics[which]
        names = [run.data["target"]] if which == "target_test" else sources(run)
        own = [("f1" if run.metric.startswith(metric.OF_LABEL) else run.metric, metric.title(run.metric), run.metric)]
        for kind, name, key in (
            ("accuracy", "accuracy", "accuracy"),
            ("f1", "macro-F1", "macro_f1"),
            *(own if run.metric not in ("accuracy", "macro_f1") else []),
            ("calibration_error", "expected calibration error", "calibration_error"),
        ):
            more: dict[str, Any] = {"average": "macro"} if key == "macro_f1" else {}
            if interval := scores["intervals"].get(key):
                more["confidence_interval_95"] = [round(float(bound), 4) for bound in interval]
            results.append(
                EvalResult(
                    task_type=pipeline_tag,
                    task_name=pipeline_tag.replace("-", " "),
                    dataset_type="custom",  # a domain's own name would link to whatever data set on the Hub has it too
                    dataset_name=", ".join(one_line(part) for part in names),
                    dataset_split=which,
                    dataset_args={"fingerprint": run.data["fingerprint"]},
                    metric_type=kind,
                    metric_name=name,
                    metric_value=round(metric.of(scores, key), 4),
                    metric_args={**more, "n": int(scores["n"])},
                )
            )
    adapting = ["domain-adaptation"] if run.data["target"] else []
    return ModelCardData(
        library_name="transformers" if files == "merged" else "peft",
        pipeline_tag=pipeline_tag,
        license=license,
        base_model=base.name if base.revision else None,
        tags=["hf_transfer", *filter(None, run.adaptation.split("+")), run.method, *adapting, pipeline_tag],
        metrics=["accuracy", "f1"],
        model_name=repo_id.split("/")[-1],
        eval_results=results,
    )


def evidence_rows(run: Run, others: Sequence[Run] = ()) -> list[dict[str, Any]]:
    """Return one dict a row of the evidence table: the references, the controls, the `others`, this model.

    Keys: `name`, `n`, `accuracy`, `macro_f1`, `score` (in the metric in force) and their `..._interval` (None for
    references), `collapsed`, `source_accuracy` (None if not measured) and `difference`: this model's score minus the
    row's on the same rows, paired (`value`, `low`, `high`), or None.

    Raises:
        UserError: another run has too few test rows in common with this one, or other labels for them.
    """
    which = test_set(run)
    rows = []
    for name, known in run.metrics["references"][which].items():
        scores = {**known, "n": run.metrics[which]["n"]}
        rows.append(_row(known["name"], scores, None, run.metrics["differences"][which][name], run.metric))
    for name, control in run.metrics["controls"].items():
        difference = run.metrics["differences"][which][name]
        rows.append(_row(control["name"], control[which], control.get("source_test"), difference, run.metric))
    rows += [_other_row(run, other, which) for other in others]
    seen = target_labels(run)
    how = "adapted without target labels" if run.adaptation else "source-only: no target labels were used"
    label = "this model" if seen else f"this model ({how})"
    return [*rows, _row(label, run.metrics[which], run.metrics.get("source_test"), None, run.metric)]


def _row(
    name: str, scores: dict[str, Any], source: dict[str, Any] | None, difference: dict[str, Any] | None, by: str
) -> dict[str, Any]:
    found = scores.get("intervals", {})
    return {
        "name": name,
        "n": scores["n"],
        "accuracy": scores["accuracy"],
        "accuracy_interval": found.get("accuracy"),
        "macro_f1": scores["macro_f1"],
        "macro_f1_interval": found.get("macro_f1"),
        "score": metric.of(scores, by) if "per_class" in scores else scores[by],
        "score_interval": found.get(by),
        "collapsed": scores.get("collapsed", ""),
        "source_accuracy": source["accuracy"] if source else None,
        "difference": difference,
    }


def _other_row(run: Run, other: Run, which: str) -> dict[str, Any]:
    """Score `other` on the test rows that it shares with `run`."""
    from hf_transfer.evaluation import collapse, intervals, paired_difference

    common = _predictions(run).merge(_predictions(other), on=KEY, suffixes=("", "_other"))
    wrong = int((common["label"] != common["label_other"]).sum())
    if wrong:
        raise UserError(f"{other.folder}: {wrong} of the {len(common)} test rows that it shares with {run.folder} have "
                        "another label there; give a run on the same data.")  # fmt: skip
    rows = common[common["set"] == which]
    if len(rows) < FEWEST:
        raise UserError(f"{other.folder} shares {len(rows)} {which.replace('_', ' ')} rows with {run.folder}, at least "
                        f"{FEWEST} are needed; give a run on the same data and --seed.")  # fmt: skip
    names = list(dict.fromkeys([*run.label_names, *rows["prediction_other"]]))
    columns = ("label", "prediction", "prediction_other")
    labels, own, predictions = (np.array([names.index(n) for n in rows[column]]) for column in columns)
    by = metric.load(run.metric, names)
    shown = [by, *(metric.load(name, names) for name in metric.NAMES)]
    scores = {
        "n": len(rows),
        **{one.name: one.score(predictions, labels) for one in shown},
        "intervals": intervals(predictions, labels, run.seed, (by,)),
        "collapsed": collapse(predictions, labels, names),
    }
    source = common[common["set"] == "source_test"]
    on_source = {"accuracy": float((source["prediction_other"] == source["label"]).mean())}
    seen = target_labels(other)
    name = f"{other.arm} on {', '.join(sources(other))}, " + (f"with {seen}" if seen else "no target labels")
    return _row(
        f"another run: {name}" if seen or other.adaptation else f"source-only: {name}",
        scores,
        on_source if len(source) >= FEWEST else None,
        paired_difference(own, predictions, labels, by),
        run.metric,
    )


def _predictions(run: Run) -> Any:
    """Return a run's test predictions, without rows that its file and row number do not tell apart."""
    import pandas as pd

    try:
        rows = pd.read_parquet(run.folder / "predictions.parquet", columns=[*KEY, "label", "prediction"])
    except (OSError, ValueError) as error:
        raise UserError(f"{run.folder} has no readable predictions.parquet; make the run again.") from error
    return rows.drop_duplicates(KEY, keep=False)


def sources(run: Run) -> list[str]:
    """Return the names of the source domains."""
    return [name for name in run.data["domains"] if name != run.data["target"]]


def from_embedded_corpus(run: Run) -> bool:
    """Whether all labelled rows came from the reviews that ship with this package, which are CC0."""
    target = run.arguments["target"]
    specs = [*run.arguments["source"], *([target] if target else [])]
    return all(EMBEDDED.fullmatch(spec) for spec in specs)


def limits(run: Run) -> list[str]:
    """Return what the numbers do not show or speak against, one Markdown sentence each."""
    which = test_set(run)
    scores, n = run.metrics[which], run.metrics[which]["n"]
    difference, tfidf = run.metrics["differences"][which], run.metrics["controls"]["tfidf"]["name"]
    low, high = scores["intervals"][run.metric]
    by = escaped(metric.title(run.metric))
    source = run.metrics.get("source_test")
    classes = {name: part for name, part in scores["per_class"].items() if part["support"]}
    worst = min(classes, key=lambda name: classes[name]["f1"])
    rare = [name for name, part in scores["per_class"].items() if part["support"] < FEWEST]
    out = []
    if difference["tfidf"]["high"] < 0:
        out.append(f"{tfidf} is better on these rows, by {by}.")
    elif difference["tfidf"]["low"] <= 0:
        out.append(f"No gain over {tfidf} is shown on {n} rows: the interval of the difference holds 0.")
    constants = {CONSTANT: run.metrics["controls"][CONSTANT], **run.metrics["references"][which]}
    if below := [name for name in constants if difference[name]["low"] <= 0]:
        name = min(below, key=lambda name: difference[name]["value"])
        how = "is worse than" if difference[name]["high"] < 0 else "is not shown to be better than"
        out.append(f"By {by} it {how} what reads no text: {escaped(constants[name]['name'])}.")
    if n < SMALL:
        out.append(f"Only {n} test rows: {by} may be anywhere from {percent(low)} % to {percent(high)} %.")
    if classes[worst]["f1"] < max(part["f1"] for part in classes.values()):
        part = classes[worst]
        out.append(f"It is weakest on the label {escaped(worst)}: F1 {percent(part['f1'])} %, it finds "
                   f"{percent(part['recall'])} % of the {part['support']:.0f} rows that have it.")  # fmt: skip
    if rare:
        counts = ", ".join(f"{escaped(name)} ({scores['per_class'][name]['support']:.0f})" for name in rare)
        out.append(f"Labels with fewer than {FEWEST} test rows, whose scores say little: {counts}.")
    for part in scores["slices"]:
        if part["high"] < scores["accuracy"]:
            out.append(f"It is less accurate than overall on {escaped(part['slice'])}: "
                       f"{scored(part['accuracy'], part['low'], part['high'])} %.")  # fmt: skip
    if which == "target_test" and source and scores["intervals"]["accuracy"][1] < source["intervals"]["accuracy"][0]:
        out.append("It is less accurate on the target than on the source: the intervals do not overlap.")
    if scores["calibration_error"] >= POOR_CALIBRATION:
        out.append(f"Its probabilities are off by {percent(scores['calibration_error'])} points on average (expected "
                   "calibration error): use them to rank texts rather than as chances.")  # fmt: skip
    if conflicts := run.data["conflicting_labels"]:
        out.append(f"The source's labels are not all consistent: {conflicts} texts occur with different ones.")
    out.append(f"Texts longer than {longest_text(run)} tokens are cut; what follows is not read.")
    tested = [*([run.data["target"]] if which == "target_test" else []), *(sources(run) if source else [])]
    out.append(f"It was tested on {', '.join(map(escaped, tested))}, and on no other domain.")
    out.append(f"It was trained once, with seed {run.seed}: the intervals cover the choice of test rows, not of seeds.")
    return out


def one_line(text: str) -> str:
    """Return `text` on one line, without characters that can't be seen."""
    visible = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    return " ".join(visible.split()) or "(blank)"


def escaped(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, on one line and in tables, if it does not start that line."""
    return re.sub(r"[\\`*_\[\]<>#|~$@&]|:(?=\S)", r"\\\g<0>", one_line(text))


def literal(text: str) -> str:
    """Return `text` as a Python string, in double quotes where it can stand in them as it is."""
    return f'"{text}"' if text.isprintable() and not {'"', "\\"} & set(text) else repr(text)


def fence(text: str) -> str:
    """Return a code fence that nothing in `text` can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def percent(value: float) -> str:
    """Return a share in per cent, with one decimal."""
    return f"{100 * value:.1f}"


def scored(value: float, low: float, high: float, sign: str = "") -> str:
    """Return a share with its interval, in per cent; `sign` "+" shows the sign."""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
