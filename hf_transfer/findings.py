"""What the finished runs of a comparison show: everything that its pages say, ready for JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer import verdict
from hf_transfer.arms import FROZEN, RANDOM, SELF_TRAIN, SOURCE_ONLY, TARGET_ONLY, Arm, read_arm
from hf_transfer.calibration import calibration
from hf_transfer.comparison import resting
from hf_transfer.controls import CONSTANT
from hf_transfer.errors import UserError
from hf_transfer.evaluation import choose_metrics, collapse, length_parts
from hf_transfer.report import training_seconds
from hf_transfer.results import Run, load_run
from hf_transfer.statistics import metric
from hf_transfer.statistics.metric import Metric
from hf_transfer.statistics.references import references
from hf_transfer.what_next import what_next

if TYPE_CHECKING:
    from hf_transfer.comparison import Comparison

WORDS = {
    CONSTANT: "the commonest label of the training rows for every text.",
    "tfidf": "TF-IDF + logistic regression.",
    "tfidf on the target": "TF-IDF + logistic regression on the target's labels alone.",
    FROZEN: "a head on the frozen encoder, trained on the labelled training rows alone.",
    SOURCE_ONLY: "fine-tuned on the labelled training rows alone.",
    RANDOM: "full from random weights: full minus this is what pretraining gave.",
    TARGET_ONLY: "fine-tuned on the target's labels alone: what did the source give?",
}
WITHOUT_TRANSFER = [name for name in WORDS if name not in (FROZEN, SOURCE_ONLY)]


@dataclass(frozen=True)
class Tested:
    """An arm or control, tested.

    Attributes:
        name: of it.
        logits: set -> (seeds, rows, classes), in the order of that set's rows.
        runs: a finished run a seed; none for the simple controls.
        shared_seconds: of what it needed and shares with others: teachers, continued pretraining.
        seconds, megabytes, parameters, memory: of one run.
    """

    name: str
    logits: dict[str, np.ndarray]
    runs: list[Run]
    shared_seconds: float
    seconds: float
    megabytes: float
    parameters: int
    memory: int


def find(job: Comparison) -> dict[str, Any]:
    """Return the verdict with all that it rests on."""
    everything = {one.name: one for one in _tested(job)}
    arms = [arm for arm in job.arms if arm.name in everything]
    which = "target_test" if len(job.domains.target_test) else "source_test"
    labels = np.array(job.domains.test["label"][:])
    candidates = [
        verdict.Candidate(one.name, one.logits[which].argmax(2), one.seconds + one.shared_seconds, one.megabytes,
                          control=one.name in WITHOUT_TRANSFER, seeded=bool(one.runs))
        for one in everything.values()
    ]  # fmt: skip
    names = job.domains.label_names
    by = metric.load(job.setup.metric, names)
    settled = job.arguments.model.metric is not None
    known = references(labels, names, by, "target" if which == "target_test" else "source")
    judged = verdict.judge(candidates, labels, _against(everything), metric=by, references=known, settled=settled)
    scores = verdict.scores(candidates, labels, by)
    beside = next((name for name in (SOURCE_ONLY, "tfidf") if name in everything), "tfidf")
    minus = verdict.differences(candidates, labels, by, beside)
    chosen = everything[judged.recommended] if judged.recommended else None
    best_run = chosen if chosen and chosen.runs else _best_run(everything, labels, which, by)
    estimates = None if len(job.domains.target_test) else _estimated(everything, job)
    if estimates and estimates["recommended"]:
        best_run = everything[estimates["recommended"]]
    return {
        "source": [name for name in job.domains.facts["domains"] if name != job.domains.facts["target"]],
        "target": job.domains.facts["target"],
        "target_labels": bool(len(job.domains.target_test)),
        "test_rows": len(labels),
        "test_labels": {name: int((labels == i).sum()) for i, name in enumerate(names)},
        "metric": {
            "name": by.name,
            "title": by.title,
            "settled": settled,
            "chosen_by": metric.title(job.setup.chosen_by),
            "why": choose_metrics(job.arguments.model.metric, job.domains.facts)[2],
        },
        "model": next(one.runs[0].model for one in everything.values() if one.runs),
        "references": [
            {"name": one.words, "key": one.name, "score": one.score(by)}
            | {name: one.score(metric.load(name, names)) for name in metric.NAMES}
            for one in known
        ],
        "rows": vars(job.rows),
        "seeds": max(len(one.runs) for one in everything.values()),
        "verdict": {
            "adapt": judged.adapt,
            "helping": judged.helping,
            "recommended": judged.recommended,
            "conflicts": [asdict(one) for one in judged.conflicts],
            "folder": str(chosen.runs[0].folder) if chosen and chosen.runs else None,
            "best_run": str(best_run.runs[0].folder),
        },
        "beside": beside,
        "candidates": [
            _described(one, job, which, labels, scores[one.name], by) | {"minus": minus.get(one.name)}
            for one in everything.values()
        ],
        "comparisons": [asdict(one) for one in judged.comparisons],
        "against_references": [asdict(one) for one in judged.references],
        "forgetting": _forgetting(everything, arms, job) if which == "target_test" else {},
        "slices": {"of": best_run.name, "parts": [asdict(part) for part in _slices(best_run, job, which, labels)]},
        "estimates": estimates,
        "next": what_next(job, best_run.runs[0], scores[chosen.name][0] if chosen and judged.adapt else None),
        "screening": job.state.get("screening", {}),
        "left_out": job.state["failed"],
        "time": _time(job),
        "notes": job.domains.notes,
    }


def _against(everything: dict[str, Tested]) -> dict[str, list[str]]:
    """Return whom each arm is compared with: controls without transfer, and what trains on labelled rows alone."""
    plain = [name for name in everything if name in WITHOUT_TRANSFER]
    trained = [name for name in (FROZEN, SOURCE_ONLY) if name in everything]
    return {
        name: plain + [other for other in trained if other != name and name != FROZEN]
        for name in everything
        if name not in WITHOUT_TRANSFER
    }


def _tested(job: Comparison) -> list[Tested]:
    """Return simple controls, trained ones, and arms, as far as there are finished runs of them."""
    out = []
    for name, control in job.simple.items():
        logits = {which: values[None] for which, values in control.logits.items()}
        megabytes = control.trainable_parameters * 8 / 1e6  # numbers of 8 bytes
        out.append(Tested(name, logits, [], 0.0, control.seconds, megabytes, control.trainable_parameters,
                          control.peak_memory_mb))  # fmt: skip
    seed, found = job.arguments.train.seed, {}
    for arm in dict.fromkeys([*job.controls, *job.arms]):
        if arm.name in resting(job):
            continue
        folders = [job.path(arm, number) for number in range(seed, seed + job.how.seeds)]
        if runs := [load_run(folder) for folder in folders if (folder / "run.json").is_file()]:
            found[arm.name] = runs
    for name, runs in found.items():
        arm = read_arm(name)
        shared = 0.0
        if arm.adaptation == SELF_TRAIN:
            shared = sum(training_seconds(found[teacher][0]) for teacher in (SOURCE_ONLY, FROZEN) if teacher in found)
        elif arm.pretraining is not None:
            shared = job.state["seconds"].get(f"pretrained/{arm.pretraining or 'default'}", 0.0)
        outputs = [_logits(run, job) for run in runs]
        out.append(Tested(
            name,
            {which: np.stack([one[which] for one in outputs]) for which in outputs[0]},
            runs,
            shared,
            float(np.mean([training_seconds(run) for run in runs])),
            sum(file.stat().st_size for file in runs[0].folder.glob("*.safetensors")) / 1e6,
            runs[0].trainable_parameters,
            max(run.device_peak_memory_mb or run.peak_memory_mb for run in runs),
        ))  # fmt: skip
    return out


def _logits(run: Run, job: Comparison) -> dict[str, np.ndarray]:
    """Return the recorded outputs of a run, as log-probabilities (rows, classes) in the comparison's order of labels.

    Raises:
        UserError: the run was tested on other rows than the comparison.
    """
    import pandas as pd

    frame = pd.read_parquet(run.folder / "predictions.parquet")
    out = {}
    for name, part in frame.groupby("set", sort=False):
        rows = getattr(job.domains, str(name))
        same = part["row"].tolist() == rows["row"][:] and part["domain"].tolist() == rows["domain"][:]
        if not same and str(name).endswith("_test"):
            raise UserError(f"{run.folder} was tested on other rows than this comparison; remove that folder and run "
                            "the same command again.")  # fmt: skip
        if same:
            columns = part[[f"p_{label}" for label in job.domains.label_names]]
            out[str(name)] = np.log(np.clip(columns.to_numpy(dtype=np.float64), 1e-9, 1.0))
    return out


def _best_run(everything: dict[str, Tested], labels: np.ndarray, which: str, by: Metric) -> Tested:
    """Return the best of those that have a run folder, where the recommended one has none."""
    return max(
        (one for one in everything.values() if one.runs),
        key=lambda one: np.mean([by.score(answers, labels) for answers in one.logits[which].argmax(2)]),
    )


def _described(
    one: Tested, job: Comparison, which: str, labels: np.ndarray, score: tuple[float, float, float], by: Metric
) -> dict[str, Any]:
    """Return the scores and costs of an arm or control."""
    logits = one.logits[which]
    names = job.domains.label_names
    scores = [job.task.compute_metrics(values, labels, names) for values in logits]
    collapses = [collapse(values.argmax(1), labels, names) for values in logits if one.name != CONSTANT]
    out: dict[str, Any] = {
        "name": one.name,
        "words": WORDS.get(one.name, ""),
        "control": one.name in WORDS,
        "arm": one.name in {arm.name for arm in job.arms},
        "seeds": len(logits),
        "score": score[0],
        "score_by_seed": [metric.of(found, by.name) for found in scores],
        "interval": score[1:],
        **{name: float(np.mean([found[name] for found in scores])) for name in metric.NAMES},
        "recall": {
            label: float(np.mean([found["per_class"][label]["recall"] for found in scores]))
            for label in names
            if scores[0]["per_class"][label]["support"]
        },
        "collapsed": next(filter(None, collapses), ""),
        "seeds_collapsed": len(list(filter(None, collapses))),
        "source_accuracy": None,
        "seconds": one.seconds,
        "shared_seconds": one.shared_seconds,
        "peak_memory_mb": one.memory,
        "trainable_parameters": one.parameters,
        "megabytes": one.megabytes,
        "milliseconds_a_text": None,
        "calibration": None,
        "happened": list(dict.fromkeys(words for run in one.runs for words in run.happened)),
        "folders": [str(run.folder) for run in one.runs],
        "commands": [run.command for run in one.runs],
    }
    if "source_test" in one.logits and which != "source_test":
        truth = np.array(job.domains.source_test["label"][:])
        out["source_accuracy"] = float((one.logits["source_test"].argmax(2) == truth).mean())
    if one.runs:
        tested = sum(run.metrics[name]["n"] for run in one.runs for name in one.logits if name in run.metrics)
        out["milliseconds_a_text"] = 1000 * sum(run.seconds["predict"] for run in one.runs) / max(tested, 1)
    if "validation" in one.logits and len(job.domains.validation):
        known = np.array(job.domains.validation["label"][:])
        out["calibration"] = calibration(one.logits["validation"][0], known, logits[0], labels)
    return out


def _estimated(everything: dict[str, Tested], job: Comparison) -> dict[str, Any] | None:
    """Return what `choose` estimates of the first run of every arm from the target's texts alone, by the arm's name."""
    from hf_transfer.choose import choose_run

    if not job.rows.pool:
        return None
    runs = {one.runs[0].folder.name: one.name for one in everything.values() if one.runs}
    folders = [str(one.runs[0].folder) for one in everything.values() if one.runs]
    data = job.arguments.data
    choose_run(
        folders, str(job.pool), backtest=job.how.backtest, text_column=data.text_column,
        label_column=data.label_column, output_dir=str(job.folder / "estimates"), seed=job.arguments.train.seed,
        quiet=True,
    )  # fmt: skip
    facts: dict[str, Any] = json.loads((job.folder / "estimates" / "choose.json").read_text(encoding="utf-8"))
    facts["recommended"] = runs.get(facts["recommended"])
    for run in facts["runs"]:
        run["name"] = runs[run["name"]]
    for one in facts["disagreements"]:
        one["run"] = runs[one["run"]]
    if facts["undecided"]:
        facts["undecided"]["runs"] = [runs[name] for name in facts["undecided"]["runs"]]
    return facts


def _forgetting(everything: dict[str, Tested], arms: list[Arm], job: Comparison) -> dict[str, Any]:
    """Return what each adaptation lost on the source's test rows against its method on the labelled rows alone.

    Where that is not an arm, against full fine-tuning.
    """
    if not len(job.domains.source_test):
        return {}
    labels, out = np.array(job.domains.source_test["label"][:]), {}
    for arm in arms:
        before = everything.get(arm.method) or everything.get(SOURCE_ONLY)
        if before is None or not arm.adaptation or arm.name in WITHOUT_TRANSFER:
            continue
        first, then = (one.logits["source_test"].argmax(2) for one in (before, everything[arm.name]))
        parts = verdict.forgetting(first, then, labels, job.domains.label_names)
        out[arm.name] = {"before": before.name, "parts": [asdict(part) for part in parts]}
    return out


def _slices(one: Tested, job: Comparison, which: str, labels: np.ndarray) -> list[verdict.Part]:
    """Return the first run's accuracy on parts of the test rows: by length, label, and columns that were asked for."""
    right = one.logits[which][0].argmax(1) == labels
    parts = length_parts(job.lengths)
    parts |= {f"label: {name}": labels == i for i, name in enumerate(job.domains.label_names)}
    for column, values in job.columns.items():
        parts |= {f"{column}: {value}": values == value for value in np.unique(values)}
    return verdict.gaps(right, parts)


def _time(job: Comparison) -> dict[str, Any]:
    """Return what was planned, at first and again with the time left over, and what it took."""
    real = job.state["seconds"]
    both = {name: {"expected": one["expected"], "seconds": real[name]}
            for name, one in job.state["started"].items() if one["expected"] and name in real}  # fmt: skip
    ratios = [one["seconds"] / one["expected"] for one in both.values()]
    shares = [one["share"] for name, one in job.state["started"].items() if (job.folder / "runs" / name).is_dir()]
    return {
        "budget": job.budget,
        "spent": round(job.spent, 1),
        "plan": job.state["plan"],
        "share": min(shares, default=1.0),
        "again": job.state["again"],
        "runs": both,
        "median_ratio": float(np.median(ratios)) if ratios else None,
    }
