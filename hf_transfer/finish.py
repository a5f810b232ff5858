"""Test a trained model, compare it with the controls, and write the run folder."""

from __future__ import annotations

import datetime
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.arguments import as_dict, is_hub_flag
from hf_transfer.controls import CONSTANT, Control
from hf_transfer.evaluation import collapse, intervals, paired_difference, reference_difference, slices
from hf_transfer.happened import what_happened
from hf_transfer.inference import exact_logits
from hf_transfer.leaks import KEYS
from hf_transfer.methods import Prepared, Setup
from hf_transfer.models import longest_input, public_name
from hf_transfer.profile import advice, profile_table, total
from hf_transfer.publish import push_run
from hf_transfer.record import record_domain, record_logits
from hf_transfer.resources import Meter, hardware, versions
from hf_transfer.results import Run
from hf_transfer.statistics import metric
from hf_transfer.statistics.references import references

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.arguments import Arguments
    from hf_transfer.begin import Job
    from hf_transfer.data import Domains
    from hf_transfer.tasks import Task

TESTED = ("validation", "source_test", "target_test")


def score(
    model: Any,
    encoded: dict[str, Dataset],
    domains: Domains,
    setup: Setup,
    task: Task,
    arguments: Arguments,
    sets: tuple[str, ...],
    meter: Meter,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return scores with intervals, and logits in input order, for each of `sets` that has rows."""
    scores, logits = {}, {}
    for name in sets:
        if not len(encoded[name]):
            continue
        with meter.stage("predict"):
            logits[name] = exact_logits(
                model, encoded[name], setup.collator, precision=setup.precision,
                batch_size=arguments.train.per_device_eval_batch_size, quiet=setup.quiet,
            )  # fmt: skip
        with meter.stage("evaluate"):
            labels = np.array(encoded[name]["labels"][:])
            scores[name] = task.compute_metrics(logits[name], labels, domains.label_names)
            predicted = logits[name].argmax(axis=1)
            by = metric.load(setup.metric, domains.label_names)
            scores[name]["intervals"] = intervals(predicted, labels, setup.seed, (by,))
            scores[name]["collapsed"] = collapse(predicted, labels, domains.label_names)
            if name.endswith("_test"):
                lengths, names = np.array(encoded[name]["length"][:]), getattr(domains, name)["domain"][:]
                scores[name]["slices"] = slices(predicted == labels, lengths, names, seed=setup.seed)
    return scores, logits


def compare(
    controls: dict[str, Control], domains: Domains, setup: Setup, task: Task, logits: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return what the model is compared with.

    `controls` have their scores and costs, `references` their expected scores by test set; `differences` are this model
    minus each of both, paired, by test set.
    """
    scores: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    by = metric.load(setup.metric, domains.label_names)
    for name, control in controls.items():
        scores[name] = {
            "name": control.name,
            "seconds": control.seconds,
            "trainable_parameters": control.trainable_parameters,
            "peak_memory_mb": control.peak_memory_mb,
        }
        for which, output in control.logits.items():
            labels = np.array(getattr(domains, which)["label"][:])
            scores[name][which] = task.compute_metrics(output, labels, domains.label_names)
            predicted, answers = logits[which].argmax(axis=1), output.argmax(axis=1)
            scores[name][which]["intervals"] = intervals(answers, labels, setup.seed, (by,))
            if name != CONSTANT:
                scores[name][which]["collapsed"] = collapse(answers, labels, domains.label_names)
            differences.setdefault(which, {})[name] = paired_difference(predicted, answers, labels, by)
    known: dict[str, Any] = {}
    shown = [by, *(metric.load(name, domains.label_names) for name in metric.NAMES)]
    for which in differences:
        labels = np.array(getattr(domains, which)["label"][:])
        for reference in references(labels, domains.label_names, by, which.replace("_test", "")):
            scored = {one.name: reference.score(one) for one in shown}
            known.setdefault(which, {})[reference.name] = {"name": reference.words, **scored}
            differences[which][reference.name] = reference_difference(logits[which].argmax(axis=1), reference, by)
    return {"controls": scores, "references": known, "differences": differences}


def finish(
    job: Job,
    prepared: Prepared,
    *,
    recipe: str,
    history: list[dict[str, Any]],
    before: dict[str, Any] | None = None,
    adaptation: str = "",
) -> Run:
    """Merge, test, compare with the controls, write the run folder, say so, and push it where that was asked for.

    The folder gets its name when it is complete.

    Args:
        job: what was trained on.
        prepared: the trained model and how to merge it.
        recipe: name of the recipe, for the command that reproduces the run.
        history: the training log.
        before: source scores before training.
        adaptation: what used the target's unlabelled texts.
    """
    run = _write(job, prepared, recipe=recipe, history=history, before=before, adaptation=adaptation)
    if job.arguments.train.profile:
        job.console.say(profile_table(run.seconds, advice(job.arguments)))
    job.console.finished(run)
    if pushed := push_run(job.arguments, run):
        job.console.say(pushed)
    return run


def _write(
    job: Job,
    prepared: Prepared,
    *,
    recipe: str,
    history: list[dict[str, Any]],
    before: dict[str, Any] | None,
    adaptation: str,
) -> Run:
    import torch

    arguments, meter, partial, task = job.arguments, job.meter, job.partial, job.task
    domains, encoded, setup = job.domains, job.encoded, job.setup
    main = arguments.train.process_index == 0
    trainable = sum(p.numel() for p in prepared.model.parameters() if p.requires_grad)
    device_peak = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else None
    peak = meter.peak_memory // 2**20
    with meter.stage("save"):
        adapter = getattr(prepared.model, "peft_config", None)
        if adapter and prepared.keep_adapter and main:
            for config in adapter.values():
                config.base_model_name_or_path = public_name(setup.loaded.name)
            prepared.model.save_pretrained(partial / "adapter", save_embedding_layers=False)  # no look-up
        specials = setup.loaded.tokenizer.num_special_tokens_to_add()
        model, tokenizer = prepared.merge(prepared.model, setup.loaded.tokenizer)
        model.eval()
    added = tokenizer.num_special_tokens_to_add() - specials
    length = min(arguments.data.max_length + added, longest_input(setup.loaded))
    tokenizer.model_max_length = length  # so that `pipeline(..., truncation=True)` cuts where training did
    if added:  # the merged model wants tokens that the training rows did not have
        tested = {name: getattr(domains, name) for name in TESTED}
        encoded = {n: task.encode(tokenizer, rows, length)[0] if len(rows) else rows for n, rows in tested.items()}
    scores, logits = score(model, encoded, domains, setup, task, arguments, TESTED, meter)
    with meter.stage("evaluate"):
        compared = compare(job.controls, domains, setup, task, logits)
    choices = dict(prepared.choices)
    if setup.class_weights is not None:
        choices["class_weights"] = [round(weight, 4) for weight in setup.class_weights]
    with meter.stage("save"):
        if main:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            _predictions(domains, logits, partial / "predictions.parquet")
            _record(model, tokenizer, domains, setup, task, logits, partial)
            if (known := Path(setup.loaded.name).expanduser() / KEYS).is_file():  # as long as it is trained on
                shutil.copyfile(known, partial / KEYS)
    seconds = {**meter.seconds, "total": total(meter.seconds)}
    run = Run(
        folder=Path(str(arguments.train.output_dir)),
        task=arguments.model.task,
        method=arguments.model.method,
        model=public_name(setup.loaded.name),
        model_revision=setup.loaded.revision,
        weights_sha256=setup.loaded.weights_sha256,
        label_names=domains.label_names,
        arguments={**as_dict(arguments), "model": public_name(setup.loaded.name)},
        command=_command(recipe, arguments),
        data=domains.facts,
        metrics={**scores, **({"source_test_before": before} if before else {}), **compared},
        choices=choices,
        trainable_parameters=trainable or int(choices.get("head_parameters", 0)),
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=seconds,
        peak_memory_mb=peak,
        device_peak_memory_mb=device_peak,
        world_size=arguments.train.world_size,
        precision=setup.precision,
        seed=arguments.train.seed,
        hardware=hardware(),
        versions=versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        history=history,
        adaptation=adaptation,
        metric=setup.metric,
        chosen_by=setup.chosen_by or task.headline,
        happened=[words for words, _ in what_happened(choices)],
    )
    if main:
        from hf_transfer.report import plot_run, run_report, test_set, verdict

        run.verdict = verdict(run)
        (partial / "report.md").write_text(run_report(run), encoding="utf-8")
        labels = np.array(domains.test["label"][:])
        plot_run(run, logits[test_set(run)], labels, partial / "report.png")
        if (logs := partial / "checkpoints" / "runs").is_dir():  # where --report_to tensorboard writes
            logs.rename(partial / "runs")
        shutil.rmtree(partial / "checkpoints", ignore_errors=True)
        run.save(partial)
        close_folder(partial, run.folder)
    return run


def close_folder(partial: Path, folder: Path) -> None:
    """Give the grown folder its final name."""
    mode = (partial / "config.json").stat().st_mode
    for file in partial.rglob("*.safetensors"):  # which that library writes for the owner alone
        file.chmod(mode)
    if folder.is_dir():
        folder.rmdir()
    partial.rename(folder)
    (folder / "arguments.json").unlink()  # last: until here the run counts as unfinished


def _record(
    model: Any, tokenizer: Any, domains: Domains, setup: Setup, task: Task, logits: dict[str, np.ndarray], folder: Path
) -> None:
    """Write what verifying, the demo and the export of the run need."""
    which = "target_test" if "target_test" in logits else "source_test"
    right = logits[which].argmax(axis=1) == np.array(domains.test["label"][:])
    record_logits(model, tokenizer, domains, folder / "recorded.jsonl", setup.seed)
    record_domain(
        model,
        tokenizer,
        task,
        domains,
        right,
        folder / "domain.safetensors",
        precision=setup.precision,
        seed=setup.seed,
    )


def _command(recipe: str, arguments: Arguments) -> str:
    """Return what to type to get this run again, without secrets and without pushing."""
    words, hidden = [], False
    for word in arguments.argv:
        if word.startswith("--"):  # its values follow it
            name = word[2:].split("=")[0].replace("-", "_")  # both spellings are taken
            hidden = name.endswith("_token") or name == "resume" or is_hub_flag(name)
        if not hidden:
            words.append(word)
    world = arguments.train.world_size
    return f"hf-transfer run {f'--num_processes {world} ' if world > 1 else ''}{recipe} {shlex.join(words)}"


def _predictions(domains: Domains, logits: dict[str, np.ndarray], file: Path) -> None:
    """Write one row a tested text: set, domain, row in its file, label, prediction, and a probability a label."""
    import pandas as pd
    import scipy.special

    parts = []
    for name, values in logits.items():
        rows: Dataset = getattr(domains, name)
        frame = rows.select_columns(["domain", "row", "label"]).to_pandas()
        frame.insert(0, "set", name)
        frame["prediction"] = values.argmax(axis=1)
        for column in ("label", "prediction"):
            frame[column] = [domains.label_names[int(i)] for i in frame[column]]
        probabilities = scipy.special.softmax(values, axis=1)
        for i, label in enumerate(domains.label_names):
            frame[f"p_{label}"] = probabilities[:, i]
        parts.append(frame)
    pd.concat(parts, ignore_index=True).to_parquet(file, index=False)
