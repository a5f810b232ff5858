"""Prompt tuning: learned tokens before the text and the head move (Lester et al. 2021).

Afterwards the learned vectors become tokens of the vocabulary that the tokenizer puts before every text, so that
plain transformers computes the very same logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_transfer.errors import UserError
from hf_transfer.methods import Prepared, Setup, head_modules
from hf_transfer.models import longest_input, scores_last_token

DEFAULTS = {"learning_rate": 1e-2, "num_train_epochs": 10}


@dataclass
class Arguments:
    """How many tokens are learned."""

    prompt_tokens: int = field(default=20, metadata={"help": "Learned tokens before each text."})


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Wrap the model with prompt tuning, started from the embeddings of random words of the vocabulary.

    Raises:
        UserError: no tokens, no room for them beside the longest text, or a decoder, which scores a text's last token:
            behind learned embeddings transformers takes the last of a padded batch for it.
    """
    import torch
    from peft import PromptTuningConfig, get_peft_model

    count, room = args.prompt_tokens, longest_input(setup.loaded)
    if count < 1:
        raise UserError(f"--prompt_tokens is {count}; it must be at least 1.")
    if scores_last_token(setup.loaded.model):
        raise UserError(f"--method prompt is for encoders, and a {setup.loaded.model.config.model_type} model scores "
                        "its last token; use --method lora.")  # fmt: skip
    longest = max([*setup.train["length"][:], *(setup.validation["length"][:] if len(setup.validation) else [])])
    if longest + count > room:
        other = f" or --max_length to {room - count}" if room - count > 3 else ""
        raise UserError(
            f"--prompt_tokens {count} and texts of {longest} tokens exceed the model's {room}; lower it{other}."
        )
    model = setup.loaded.model
    words = model.get_input_embeddings().weight.detach()
    picked = torch.randint(len(words), (count,), generator=torch.Generator().manual_seed(setup.seed))
    config = PromptTuningConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=count,
        modules_to_save=head_modules(setup.loaded),
    )
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(words[picked])
    return Prepared(wrapped, _merge)


def _merge(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    import torch
    from transformers import PreTrainedTokenizerFast

    learned = model.prompt_encoder["default"].embedding.weight.detach()
    base = model.base_model
    for name in [n for n, m in base.named_modules() if type(m).__name__ == "ModulesToSaveWrapper"]:
        wrapper = base.get_submodule(name)
        base.set_submodule(name, wrapper.modules_to_save["default"])
    tokens = [f"<prompt-{i}>" for i in range(len(learned))]
    tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    base.resize_token_embeddings(max(len(tokenizer), base.config.vocab_size), mean_resizing=False)
    with torch.no_grad():
        base.get_input_embeddings().weight[ids] = learned
    _put_before(tokenizer, tokens, ids)
    # a model's own tokenizer class would build its template anew when loaded; the generic one keeps what it is given
    generic = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        **tokenizer.special_tokens_map,
    )
    return base, generic


def _put_before(tokenizer: Any, tokens: list[str], ids: list[int]) -> None:
    """Make the tokenizer's template start with `tokens`."""
    from tokenizers.processors import TemplateProcessing

    first = tokenizer("x")["input_ids"]
    content = tokenizer("x", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(first)) if first[i : i + len(content)] == content)
    before, after = first[:start], first[start + len(content) :]
    names = {i: tokenizer.convert_ids_to_tokens(i) for i in {*before, *after}}
    head, tail = [names[i] for i in before], [names[i] for i in after]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*tokens, *head, "$A", *tail],
        pair=[*tokens, *head, "$A", *tail, "$B:1", *[f"{name}:1" for name in tail]],
        special_tokens=[*zip(tokens, ids, strict=True), *((name, i) for i, name in names.items())],
    )
