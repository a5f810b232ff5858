"""A run and its run.json: all that report, predict and publishing need to know."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_transfer.errors import UserError, listed

FILE = "run.json"
STOPPED = "alignment_stopped"  # among `choices`: when and why an alignment was given up
FORMAT = 4  # of run.json; raised when what readers rely on is new in it


@dataclass
class Run:
    """One finished training.

    Attributes:
        folder: where it lies; not written into run.json.
        task, method, model, model_revision: what was adapted, and how.
        adaptation: what used the target's unlabelled texts, if anything did.
        weights_sha256: of a base model from a local folder, file by file, by which the Hub's can be told; else empty.
        label_names: in logit order.
        arguments: every argument that differs from a library default.
        command: what to type to reproduce it.
        data: rows, label mix, duplicates, leaks and fingerprint.
        verdict: what the test rows show, in words.
        metric: what is reported and what words are about.
        chosen_by: the metric that chose layers, checkpoints and settings; it was fixed without a look at test rows.
        metrics: scores by set, each with `intervals`; `controls`, `references` (see `statistics.references`) and paired
            `differences` to both.
        choices: what the method decided by itself.
        happened: what went another way than was asked for, each in a few words (`hf_transfer.happened`).
        trainable_parameters, parameters: counts.
        seconds: by stage, and `total`.
        peak_memory_mb: of this process; `device_peak_memory_mb` where there is an accelerator.
        world_size: number of processes that trained.
        precision, seed, hardware, versions, created: the circumstances.
        format: version of this file's layout.
    """

    folder: Path
    task: str
    method: str
    model: str
    model_revision: str
    weights_sha256: dict[str, str]
    label_names: list[str]
    arguments: dict[str, Any]
    command: str
    data: dict[str, Any]
    metrics: dict[str, Any]
    choices: dict[str, Any]
    trainable_parameters: int
    parameters: int
    seconds: dict[str, float]
    peak_memory_mb: int
    device_peak_memory_mb: int | None
    world_size: int
    precision: str
    seed: int
    hardware: str
    versions: dict[str, str]
    created: str
    history: list[dict[str, Any]] = field(default_factory=list)
    adaptation: str = ""
    verdict: str = ""
    metric: str = "accuracy"
    chosen_by: str = "accuracy"
    happened: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def arm(self) -> str:
        """The run's name among others: what adapted it to the target, its method, and in brackets what happened."""
        name = f"{self.adaptation}+{self.method}" if self.adaptation else self.method
        return f"{name} ({'; '.join(self.happened)})" if self.happened else name

    def save(self, folder: Path) -> None:
        """Write run.json into `folder`."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_atomically(folder / FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def load_run(folder: str | Path) -> Run:
    """Read the run in `folder`.

    Raises:
        UserError: there is no finished run, or run.json is damaged or of another version.
    """
    folder = Path(folder)
    file = folder / FILE
    if not file.is_file() or folder.name.endswith(".partial"):
        more = " (unfinished: it ends in .partial)" if folder.with_name(folder.name + ".partial").is_dir() else ""
        within = [str(below.parent) for below in sorted(folder.glob(f"*/{FILE}"))]
        give = f"Give one of the runs in it: {listed(within)}." if within else "Give the --output_dir of a run."
        raise UserError(f"{folder} holds no finished run{more}: {FILE} is missing. {give}")
    try:
        run = Run(folder=folder, **json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} can't be read as a run ({str(error)[:100]}); make the run again.") from error
    if run.format != FORMAT:
        raise UserError(f"{file} was made by another version (format {run.format}, this one reads {FORMAT}); make the "
                        "run again.")  # fmt: skip
    return run


def longest_text(run: Run) -> int:
    """Return after how many tokens a text is cut; tokens that prompt tuning puts before it do not count.

    Raises:
        UserError: the folder's tokenizer doesn't say.
    """
    file = run.folder / "tokenizer_config.json"
    try:
        length = int(json.loads(file.read_text(encoding="utf-8"))["model_max_length"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} can't be read, or names no model_max_length ({str(error)[:100]}); make the run "
                        "again.") from error  # fmt: skip
    return length - run.arguments.get("prompt_tokens", 0)


def check_writable(path: Path, flag: str) -> Path:
    """Return the nearest folder above `path`, or `path` itself, that exists; whatever is missing can be made there.

    Raises:
        UserError: a file is in the way, or the folder can't be written; `flag` is what to change.
    """
    here = path.absolute()
    there = next(folder for folder in (here, *here.parents) if os.path.lexists(folder))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return there
    reason = "allows no writing" if there.is_dir() else "is a file"
    raise UserError(f"{flag}: {path} can't be written, {'it' if there == here else there} {reason}; choose another.")


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file beside `file`, then rename it, so that no half file is ever seen."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
