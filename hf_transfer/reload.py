"""Load a model folder as a stranger would: plain transformers (and PEFT) in a process where hf_transfer can't be had.

Run by its file name, never imported: a job as JSON on stdin, logits and label names as JSON in the last line of stdout.
"""

import json
import sys

sys.modules["hf_transfer"] = None  # type: ignore[assignment]  # importing it fails from here on


def main() -> None:
    """Answer one job: {"texts", "folder" or None, "base" or None, "adapter" or None, "label_names", "max_length"}."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    job = json.load(sys.stdin)
    answer = {}
    if job["folder"]:
        answer["merged"] = merged(job)
    if job["adapter"]:
        answer["adapter"] = adapter(job)
    print("\n" + json.dumps(answer))


def merged(job: dict) -> dict:
    """Label the texts with `pipeline`; the folder's own label names and logits in their order."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=job["folder"], device="cpu")
    id2label = classify.model.config.id2label
    names = [id2label[i] for i in sorted(id2label)]
    rows = classify(job["texts"], top_k=None, function_to_apply="none", truncation=True)
    return {"label_names": names, "logits": [in_order(row, names) for row in rows]}


def in_order(row: list, names: list) -> list:
    """Return a text's scores in the order of `names`."""
    scores = {entry["label"]: entry["score"] for entry in row}
    return [scores[name] for name in names]


def adapter(job: dict) -> dict:
    """Label the texts with the adapter on its base model, as the card tells users to."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = dict(enumerate(job["label_names"]))
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = AutoModelForSequenceClassification.from_pretrained(
        job["base"], id2label=names, num_labels=len(names), ignore_mismatched_sizes=True, use_safetensors=True,
        dtype=torch.float32, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = PeftModel.from_pretrained(base, job["adapter"]).eval()
    logits = []
    with torch.inference_mode():
        for text in job["texts"]:
            inputs = tokenizer(text, truncation=True, max_length=job["max_length"], return_tensors="pt")
            logits.append(model(**inputs).logits[0].tolist())
    return {"logits": logits}


main()
