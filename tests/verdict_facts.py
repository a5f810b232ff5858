"""What a comparison with made-up predictions finds: everything but training and reading folders is the real thing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from datasets import Dataset

from hf_transfer import findings, tasks
from hf_transfer.arms import RANDOM, TARGET_ONLY, read_arm
from hf_transfer.budget import Rows
from hf_transfer.evaluation import choose_metrics

SIMPLE = ("majority", "tfidf", "tfidf on the target")
SECONDS = {"majority": 0.1, "tfidf": 1.5, "tfidf on the target": 0.6, "frozen": 20.0}


def found(predictions, labels, names, *, metric=None, arms=("frozen", "full"), happened=None, shots=0, failed=None):
    """Return the facts of a verdict.

    Args:
        predictions: name of an arm or control -> (seeds, rows) or (rows,) class indices.
        labels: (rows,) class indices of the target's test rows.
        names: of the labels.
        metric: the user's, or None.
        arms: names of those that were asked for.
        happened: name -> what happened in its runs.
        shots: labels of the target that training saw.
        failed: run -> why it was not finished.
    """
    rows, classes = len(labels), len(names)
    table = Dataset.from_dict({"label": labels.tolist(), "domain": ["target"] * rows, "row": list(range(rows))})
    counts = {name: int((labels == i).sum()) for i, name in enumerate(names)}
    even = dict.fromkeys(names, 100)
    facts = {"domains": {"source": 100 * classes, "target": rows}, "target": "target",
             "labels": {"train": even, "validation": {}, "source_test": {}, "target_test": counts}}  # fmt: skip
    domains = SimpleNamespace(
        label_names=names, test=table, target_test=table, source_test=table.select([]), validation=table.select([]),
        facts=facts, notes=[],
    )  # fmt: skip
    reported, chosen_by, _ = choose_metrics(metric, facts)
    job = SimpleNamespace(
        domains=domains, setup=SimpleNamespace(metric=reported, chosen_by=chosen_by),
        arguments=SimpleNamespace(model=SimpleNamespace(metric=metric), train=SimpleNamespace(seed=0)),
        arms=[read_arm(name) for name in arms], controls=[], rows=Rows(100 * classes, 20, shots, 0),
        state={"failed": failed or {}, "seconds": {}, "started": {}, "again": [],
               "plan": {"share": 1.0, "arms": [], "left_out": [], "seconds": 60.0, "screened": [], "keep": 0}},
        lengths=np.arange(rows) % 60 + 5, columns={}, task=tasks.load("text_classification"), budget=600.0, spent=300.0,
    )  # fmt: skip
    tested = [_tested(name, np.atleast_2d(one), classes, (happened or {}).get(name, []))
              for name, one in predictions.items()]  # fmt: skip
    with (
        mock.patch.object(findings, "_tested", return_value=tested),
        mock.patch.object(findings, "what_next", return_value={"texts": [], "expected": []}),
    ):
        return findings.find(job)


def _tested(name, answers, classes, happened):
    logits = {"target_test": np.eye(classes)[answers] * 2.0}
    runs = []
    if name not in SIMPLE:
        runs = [SimpleNamespace(folder=Path(f"runs/{name}-seed{seed}"), choices={}, command="hf-transfer run finetune",
                                metrics={"target_test": {"n": answers.shape[1]}}, seconds={"predict": 1.0},
                                happened=happened, model="tiny/encoder") for seed in range(len(answers))]  # fmt: skip
    parameters = 20_000 if name in SIMPLE else 4_226 if name == "frozen" else 22_713_986
    return findings.Tested(name, logits, runs, 0.0, SECONDS.get(name, 120.0), parameters * 8 / 1e6, parameters, 900)


def answering(labels, recalls, seed, alike=0.7):
    """Predictions that find such shares of each label's rows; models find the same rows hard, mostly."""
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    hard, drawn, other = common.random(len(labels)), own.random((2, len(labels))), common.random(len(labels))
    right = np.where(drawn[0] < alike, hard, drawn[1]) < np.array(recalls)[labels]
    classes = len(recalls)
    wrong = (labels + 1 + (other * (classes - 1)).astype(int)) % classes
    return np.where(right, labels, wrong)


def cases():
    """Five verdicts that a reader must not get wrong: name -> keyword arguments of `found`."""
    even = np.arange(600) % 2
    mixed = np.random.default_rng(0).choice(2, 500, p=(0.87, 0.13))
    three = np.random.default_rng(1).choice(3, 400, p=(0.1, 0.25, 0.65))
    zeros = np.zeros_like
    return {
        "helps": {"labels": even, "names": ["negative", "positive"], "predictions": {
            "majority": zeros(even), "tfidf": answering(even, (0.76, 0.78), 1),
            "frozen": answering(even, (0.86, 0.88), 2), "full": answering(even, (0.9, 0.92), 3),
            RANDOM: answering(even, (0.7, 0.72), 4)}},
        "hurts": {"labels": even, "names": ["negative", "positive"], "shots": 64, "predictions": {
            "majority": zeros(even), "tfidf": answering(even, (0.6, 0.62), 1),
            "tfidf on the target": answering(even, (0.8, 0.82), 5), "frozen": answering(even, (0.63, 0.64), 2),
            "full": answering(even, (0.61, 0.63), 3), RANDOM: answering(even, (0.58, 0.6), 4),
            TARGET_ONLY: answering(even, (0.9, 0.92), 6)}},
        "nothing shown": {"labels": even[:60], "names": ["negative", "positive"], "predictions": {
            "majority": zeros(even[:60]), "tfidf": answering(even[:60], (0.8, 0.8), 1),
            "frozen": answering(even[:60], (0.84, 0.83), 2), "full": answering(even[:60], (0.82, 0.83), 3),
            RANDOM: answering(even[:60], (0.75, 0.76), 4)}},
        "collapsed control": {"labels": mixed, "names": ["ham", "spam"], "metric": "macro_f1", "predictions": {
            "majority": zeros(mixed), "tfidf": answering(mixed, (0.9, 0.5), 1),
            "frozen": answering(mixed, (0.93, 0.88), 2), "full": answering(mixed, (0.95, 0.9), 3),
            RANDOM: zeros(mixed)}},
        "metrics disagree": {"labels": three, "names": ["anger", "joy", "neutral"], "predictions": {
            "majority": zeros(three), "tfidf": answering(three, (0.5, 0.5, 0.5), 1),
            "frozen": answering(three, (0.8, 0.75, 0.45), 2), "full": answering(three, (0.8, 0.72, 0.44), 3),
            RANDOM: answering(three, (0.3, 0.3, 0.4), 4)}},
    }  # fmt: skip
