"""A recipe's arguments: a few dataclasses, YAML spliced in as flags, errors that name the nearest flag.

Precedence: a method's own defaults < ``--config file.yaml`` < the flags on the command line.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from hf_transfer import methods
from hf_transfer.errors import UserError, nearest
from hf_transfer.statistics.metric import check_name


@dataclass
class DataArguments:
    """Which rows are read, and what each may be used for."""

    source: list[str] = field(
        metadata={
            "help": "Labelled source domain(s): csv, tsv, json, jsonl or parquet (also .gz), a folder of them, "
            "a save_to_disk folder, or a Hub id `name:config@revision`."
        }
    )
    target: str | None = field(
        default=None, metadata={"help": "Labelled target domain, same formats. Without it only the source is tested."}
    )
    target_unlabeled: str | None = field(
        default=None, metadata={"help": "Unlabelled target texts; checked and counted, used by adaptation methods."}
    )
    target_shots: str = field(
        default="0", metadata={"help": "Target labels per class that training may see: 0, a number, or 'all'."}
    )
    target_only: bool = field(
        default=False, metadata={"help": "Train on the target's labels alone: what the source has to add to."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column with the text; guessed when obvious."})
    label_column: str | None = field(default=None, metadata={"help": "Column with the label; guessed when obvious."})
    domain_column: str | None = field(
        default=None,
        metadata={"help": "Column that splits one --source table into domains; --target then names one of its values."},
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training rows held out to choose the checkpoint; 0 for none."}
    )
    test_fraction: float = field(
        default=0.2, metadata={"help": "Share of a domain held out for testing where training uses it; 0 for none."}
    )
    split_seed: int | None = field(
        default=None, metadata={"help": "Seed of the splits, where runs of several seeds share them; default: --seed."}
    )
    max_length: int = field(default=256, metadata={"help": "Longest text in tokens; the rest is cut and counted."})
    max_rows: int | None = field(
        default=None,
        metadata={
            "help": "Read at most this many rows of each domain (a value of --domain_column, else a file); labels and "
            "splits keep their shares (a quick try)."
        },
    )


@dataclass
class PretrainedArguments:
    """Where the pretrained weights come from."""

    model: str | None = field(
        default=None,
        metadata={"help": "Model folder or Hub id; default: the embedded all-MiniLM-L6-v2 if installed, else its id."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the Hub model."})


@dataclass
class TaskArguments(PretrainedArguments):
    """What is made of the pretrained weights, and how good that is."""

    task: str = field(default="text_classification", metadata={"help": "What the data means (hf-transfer list)."})
    metric: str | None = field(
        default=None,
        metadata={
            "help": "accuracy, macro_f1, balanced_accuracy or f1:LABEL: what is reported and chosen by. Default: "
            "accuracy, or macro_f1 where over 60%% of the rows have one label."
        },
    )


@dataclass
class ModelArguments(TaskArguments):
    """And how it is made."""

    method: str = field(default="full", metadata={"help": "Which weights move (hf-transfer list)."})


@dataclass
class TrainArguments(TrainingArguments):
    """`transformers.TrainingArguments` with this toolkit's defaults; every flag of it is accepted."""

    output_dir: str | None = field(default=None, metadata={"help": "The run folder; must not hold a run yet."})
    precision: str = field(
        default="auto",
        metadata={"help": "auto (bf16 where the hardware multiplies it natively, else fp32), bf16, fp16 or fp32."},
    )
    resume: bool = field(default=False, metadata={"help": "Continue the unfinished run of --output_dir."})
    early_stopping_patience: int = field(
        default=2, metadata={"help": "Stop after this many epochs without a better validation score; 0 never stops."}
    )
    class_weights: str = field(
        default="auto",
        metadata={"help": "balanced, none, or auto (balanced if the commonest label is 3x the rarest)."},
    )
    quiet: bool = field(default=False, metadata={"help": "No progress bars and no tables; errors still show."})
    profile: bool = field(default=False, metadata={"help": "Say where the time went, and what would shorten it."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Training texts per device and step."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Texts per device and step when predicting."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW weight decay."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1 a share of all steps."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "random, sequential, or group_by_length (least padding)."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to score the validation rows."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept beside the best one."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best validation checkpoint."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss."})

    def __post_init__(self) -> None:
        """Resolve device and precision before the parent validates them."""
        import torch

        if self.precision not in ("auto", "bf16", "fp16", "fp32"):
            raise UserError(f"--precision is '{self.precision}'; use auto, bf16, fp16 or fp32.")
        if self.class_weights not in ("auto", "balanced", "none"):
            raise UserError(f"--class_weights is '{self.class_weights}'; use auto, balanced or none.")
        if not torch.accelerator.is_available():
            self.use_cpu = True
            if self.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
                raise UserError("FSDP has no effect on CPUs (it would silently fall back to DDP); leave --fsdp out, "
                                "and start processes with hf-transfer run --num_processes N.")  # fmt: skip
            if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
                raise UserError("DeepSpeed needs GPUs, there are none here; leave --deepspeed out, and start processes "
                                "with hf-transfer run --num_processes N.")  # fmt: skip
        elif not self.use_cpu and int(os.environ.get("LOCAL_RANK", "0")) >= torch.accelerator.device_count():
            raise UserError(
                f"there are more processes than the {torch.accelerator.device_count()} device(s) here; lower "
                "--num_processes or add --use_cpu."
            )
        if not (self.bf16 or self.fp16):  # type: ignore[has-type]
            precision = best_precision() if self.precision == "auto" else self.precision
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        self.disable_tqdm = self.quiet or self.disable_tqdm  # type: ignore[has-type]
        super().__post_init__()
        if self.world_size > 1 and self.train_sampling_strategy == "group_by_length":
            # otherwise every process would shuffle by its own random state from the second epoch on
            self.accelerator_config.use_seedable_sampler = False


def best_precision() -> str:
    """Return ``bf16`` where this machine multiplies bfloat16 natively, else ``fp32``."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if torch.accelerator.is_available():
        return "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


@dataclass(frozen=True)
class Arguments:
    """One recipe call, parsed: the dataclasses, the method module, and the flags as they were given."""

    data: DataArguments
    model: ModelArguments
    method: Any
    train: TrainArguments
    method_module: ModuleType
    argv: list[str]
    more: tuple[Any, ...] = ()

    @property
    def precision(self) -> str:
        """The precision in force: bf16, fp16 or fp32."""
        return "bf16" if self.train.bf16 else "fp16" if self.train.fp16 else "fp32"

    def training_line(self) -> str:
        """Return the settings worth seeing before training, in one line."""
        train = self.train
        if not self.method_module.DEFAULTS:
            return self.precision
        length = f"{train.max_steps} steps" if train.max_steps > 0 else f"{train.num_train_epochs:g} epochs"
        size = train.per_device_train_batch_size * train.gradient_accumulation_steps * train.world_size
        return f"learning rate {train.learning_rate:g}, {length}, batch {size}, {self.precision}"


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help.")


def parse(
    argv: list[str] | None = None,
    description: str | None = None,
    more: tuple[type, ...] = (),
    data: Any = DataArguments,
    model: Any = ModelArguments,
) -> Arguments:
    """Parse a recipe's command line.

    Args:
        argv: flags; the process's own by default.
        description: the text above the flags in ``--help``.
        more: the recipe's own dataclasses, filled into `Arguments.more`.
        data: dataclass of what is read; has at least `validation_fraction`, `max_length` and `max_rows`.
        model: dataclass of what is trained; without a `method` every weight is.

    Raises:
        UserError: unknown flag or key, wrong type, value out of range, unreadable YAML.
    """
    argv = expand(sys.argv[1:] if argv is None else list(argv))
    method = methods.load(flag(argv, "--method", "full"))
    parser = _Parser(
        [data, model, method.Arguments, TrainArguments, *more],
        description=description,
        allow_abbrev=False,
    )
    parser.set_defaults(**method.DEFAULTS)
    if flag(argv, "--validation_fraction", "") in ("0", "0.0"):  # nothing to choose by: the last checkpoint is kept
        parser.set_defaults(load_best_model_at_end=False, eval_strategy="no")
    known = [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for word in argv:
        name = word[2:].split("=")[0]
        if word.startswith("--") and name not in known:
            used = f" for method '{flag(argv, '--method', 'full')}'" if "method" in known else ""
            owner = next((m for m in methods.names() if name in _field_names(methods.load(m).Arguments)), None)
            hint = f" (it is one of --method {owner})" if owner else nearest(name, known)
            raise UserError(f"unknown flag --{name}{used}{hint}; see --help.")
    try:
        given, pretrained, method_args, train, *others, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:  # TrainingArguments' own checks
        text = " ".join(str(error).split()).rstrip(" .:")
        raise UserError(f"{text[:250]}; see --help.") from error
    if rest:
        raise UserError(f"can't place '{' '.join(rest)}' on the command line; see --help.")
    arguments = Arguments(given, pretrained, method_args, train, method, argv, tuple(others))
    _check(arguments)
    if data is DataArguments:
        _check_splits(arguments.data)
    return arguments


def _field_names(kind: Any) -> list[str]:
    return [f.name for f in fields(kind)]


def expand(argv: list[str]) -> list[str]:
    """Replace ``--config file.yaml`` by the flags it stands for, before all others (so the user's own win).

    Values stay text until their flag's type reads them: ``learning_rate: 1e-3`` is 0.001, though YAML reads a string.
    """
    out: list[str] = []
    spliced: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or next(words, "")
            spliced += _read_config(path)
        else:
            out.append(word)
    return spliced + out


def _read_config(path: str) -> list[str]:
    if not path or not Path(path).is_file():
        raise UserError(f"--config: there is no file '{path}'; give the path of a YAML file.")
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path} is not readable YAML: save it as UTF-8.") from error
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), " ".join(str(getattr(error, "problem", error)).split())
        where = f"correct it near line {mark.line + 1}" if mark else "correct it"
        raise UserError(f"--config {path} is not readable YAML: {what[:150]}; {where}.") from error
    if not isinstance(config, dict):
        got = "nothing" if config is None else f"a {type(config).__name__}"
        raise UserError(f"--config {path} must hold `flag: value` lines, got {got}.")
    flags: list[str] = []
    for key, value in config.items():
        if value is None:
            continue
        flags.append(f"--{key}")
        if isinstance(value, dict):
            flags.append(json.dumps(value))
        else:
            flags += [str(item) for item in (value if isinstance(value, list) else [value])]
    return flags


def flag(argv: list[str], name: str, default: str) -> str:
    """Return the value of a flag before the command line is parsed; the last one counts."""
    value = default
    for here, after in zip(argv, [*argv[1:], ""], strict=False):  # of no words, none
        if here == name:
            value = after
        elif here.startswith(f"{name}="):
            value = here.partition("=")[2]
    return value


def _check(arguments: Arguments) -> None:
    data, train = arguments.data, arguments.train
    if (metric := getattr(arguments.model, "metric", None)) is not None:
        check_name(metric)
    if train.output_dir in (None, "", "trainer_output"):
        raise UserError("--output_dir is missing; name the folder that the run is written to.")
    _check_share("validation_fraction", data.validation_fraction)
    positive = {
        "--learning_rate": train.learning_rate,
        "--num_train_epochs": train.num_train_epochs if train.max_steps <= 0 else 1,
        "--per_device_train_batch_size": train.per_device_train_batch_size,
        "--per_device_eval_batch_size": train.per_device_eval_batch_size,
        "--gradient_accumulation_steps": train.gradient_accumulation_steps,
        "--max_rows": 1 if data.max_rows is None else data.max_rows,
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name} is {value}; it must be above 0.")
    for name, value in {"--weight_decay": train.weight_decay, "--seed": train.seed}.items():
        if not 0 <= value < 2**32:
            raise UserError(f"{name} is {value}; it must be 0 or more.")
    installed = get_available_reporting_integrations()
    for name in train.report_to:
        if name not in installed:
            raise UserError(f"--report_to {name} is unknown or not installed; use none, or install it. There are: "
                            f"{', '.join(installed) or 'no others'}.")  # fmt: skip
    if data.max_length < 4:
        raise UserError(f"--max_length is {data.max_length}; texts need at least 4 tokens.")


def _check_splits(data: DataArguments) -> None:
    if not (data.target_shots == "all" or data.target_shots.isdecimal()):
        raise UserError(f"--target_shots is '{data.target_shots}'; use 0, a whole number per class, or 'all'.")
    if data.target_only and (data.target is None or data.target_shots == "0"):
        raise UserError("--target_only needs target labels to train on; give --target, and --target_shots above 0.")
    _check_share("test_fraction", data.test_fraction)
    if data.validation_fraction + data.test_fraction > 0.9:
        raise UserError(
            "--validation_fraction and --test_fraction together leave under 10 % of the rows to train on; lower one."
        )


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 0.9:
        raise UserError(f"--{name} is {share}; use a share from 0 to 0.9.")


def is_hub_flag(name: str) -> bool:
    """Whether a training flag says where the result is pushed: it changes no result."""
    return name == "push_to_hub" or name.startswith("hub_")


def as_dict(arguments: Arguments) -> dict[str, Any]:
    """Return our own flags and those training flags that differ from the library's defaults, ready for JSON.

    Left out is what changes no result: secrets, places and what is shown.
    """
    shown = ("output_dir", "resume", "quiet", "profile", "disable_tqdm", "report_to", "run_name")
    stock = {f.name: f.default for f in fields(TrainingArguments)}
    train = {
        key: value
        for key, value in arguments.train.to_dict().items()
        if value != stock.get(key) and not key.endswith("_token") and key not in shown and not is_hub_flag(key)
    }
    own = {**vars(arguments.data), **vars(arguments.model), **vars(arguments.method)}
    for part in arguments.more:
        own |= vars(part)
    return {**own, **train, "world_size": arguments.train.world_size}
