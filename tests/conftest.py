"""Tiny seeded models, small tables, and a private cache: nothing here reaches the network or the user's files."""

from __future__ import annotations

import os
import tempfile

_HOME = tempfile.mkdtemp(prefix="hf-transfer-tests-")
os.environ.update(
    HF_HOME=_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_TRANSFER_CACHE=os.path.join(_HOME, "features"),  # noqa: PTH118
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

import gc  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import warm  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
CORPUS = REPOSITORY / "hf_transfer" / "corpus"
torch.set_num_threads(1)


def pytest_sessionfinish():
    warm.close()
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _libraries_stay():
    """Every training collects garbage, which takes longer than a tiny one if it looks at all libraries each time."""
    gc.collect()
    gc.freeze()


def corpus_texts(domain: str = "hotels") -> list[str]:
    with (CORPUS / f"{domain}.labeled.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def make_tokenizer(kind: str):
    """A word-level tokenizer over the embedded corpus, with the special tokens of BERT, RoBERTa or a decoder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "roberta": ["<s>", "<pad>", "</s>", "<unk>"],
               "decoder": ["<unk>", "<eos>"]}[kind]  # fmt: skip
    unknown = next(token for token in special if "unk" in token.lower())
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = corpus_texts("hotels") + corpus_texts("gadgets")
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=600, special_tokens=special))
    if kind == "decoder":
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>",
                                       model_max_length=64)  # fmt: skip
    first, last, pad = ("[CLS]", "[SEP]", "[PAD]") if kind == "bert" else ("<s>", "</s>", "<pad>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token=first, sep_token=last, pad_token=pad,
                                   unk_token=unknown, model_max_length=64)  # fmt: skip


def make_model(folder: Path, kind: str = "bert", layers: int = 3) -> Path:
    """Save a tiny seeded pretrained model (a trunk without a head) and its tokenizer; returns the folder."""
    from transformers import (
        AutoModel,
        BertConfig,
        DistilBertConfig,
        GPT2Config,
        LlamaConfig,
        ModernBertConfig,
        RobertaConfig,
    )

    family = {"roberta": "roberta", "gpt2": "decoder", "llama": "decoder"}.get(kind, "bert")
    tokenizer = make_tokenizer(family)
    size = {"vocab_size": len(tokenizer)}
    common = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = {
        "bert": lambda: BertConfig(**size, **common, max_position_embeddings=64, pad_token_id=0),
        "roberta": lambda: RobertaConfig(**size, **common, max_position_embeddings=66, pad_token_id=1),
        "distilbert": lambda: DistilBertConfig(**size, dim=32, n_layers=layers, n_heads=4, hidden_dim=48,
                                               max_position_embeddings=64, pad_token_id=0),
        "modernbert": lambda: ModernBertConfig(**size, **common, max_position_embeddings=64, pad_token_id=0,
                                               cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
        "gpt2": lambda: GPT2Config(**size, n_embd=32, n_layer=layers, n_head=4, n_positions=64, bos_token_id=1,
                                   eos_token_id=1),
        "llama": lambda: LlamaConfig(**size, **common, num_key_value_heads=2, max_position_embeddings=64,
                                     bos_token_id=1, eos_token_id=1),
    }[kind]()  # fmt: skip
    model = AutoModel.from_config(config)
    with torch.no_grad():  # random weights of the usual size hardly react to their input
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny BERT."""
    return make_model(tmp_path_factory.mktemp("tiny-bert"))


def with_close_labels(trunk: Path, folder: Path) -> Path:
    """Save the model in `trunk` with a head whose logits are large and alike: rounding swaps many rows' labels."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = ["negative", "positive"]
    tokenizer = AutoTokenizer.from_pretrained(trunk)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        trunk, id2label=dict(enumerate(names)), label2id={"negative": 0, "positive": 1},
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    head = model.score if hasattr(model, "score") else model.classifier
    with torch.no_grad():
        head.weight += 2 * torch.randn(1, head.in_features)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_texts(count: int) -> list[dict]:
    """Short texts of random words, labels in turn."""
    rng = np.random.default_rng(0)
    words = " ".join(corpus_texts("gadgets")).split()
    return [{"text": " ".join(rng.choice(words, rng.integers(3, 12))), "label": ("negative", "positive")[i % 2]}
            for i in range(count)]  # fmt: skip


@pytest.fixture(scope="session")
def recipe():
    """The finetune recipe's `main`."""
    return load_recipe("finetune")


def load_recipe(name: str):
    """The `main` of a recipe."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.main


def write_table(file: Path, rows: list[dict]) -> Path:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tables(tmp_path_factory) -> dict[str, Path]:
    """Two small labelled tables of corpus texts, `source` (60 rows) and `target` (40 rows)."""
    folder = tmp_path_factory.mktemp("tables")
    out = {}
    for name, domain, count in (("source", "hotels", 60), ("target", "gadgets", 40)):
        with (CORPUS / f"{domain}.labeled.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        half = count // 2
        rows = [r for r in rows if r["label"] == "positive"][:half] + [r for r in rows if r["label"] == "negative"][
            :half
        ]
        out[name] = write_table(folder / f"{name}.jsonl", rows)
    return out
