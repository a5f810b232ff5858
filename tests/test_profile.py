"""`--profile` says where the time went."""

from __future__ import annotations

import time

import pytest

from hf_transfer.profile import ADVICE, PARTS, profile_table


@pytest.mark.recipe
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_parts_of_a_step_add_up_and_a_slow_one_is_seen(accumulate, tiny, tables, recipe, tmp_path, monkeypatch):
    from torch.optim import AdamW

    original = AdamW.step

    def slow(self, *args, **kwargs):
        time.sleep(0.2)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AdamW, "step", slow)
    run = recipe(["--model", str(tiny), "--source", str(tables["source"]), "--target", str(tables["target"]), "--quiet",
                  "--output_dir", str(tmp_path / "run"), "--max_length", "32", "--precision", "fp32", "--profile",
                  "--num_train_epochs", "2", "--per_device_train_batch_size", "8",
                  "--gradient_accumulation_steps", str(accumulate)])  # fmt: skip
    parts = {part: run.seconds[f"train: {part}"] for part in PARTS}
    assert all(value > 0 for value in parts.values())
    assert sum(parts.values()) <= run.seconds["train"]
    steps = run.history[-1]["step"]
    assert parts["optimiser"] >= 0.2 * steps
    assert "bottleneck: optimiser" in profile_table(run.seconds)
    assert ADVICE["optimiser"] in profile_table(run.seconds)


def test_every_part_has_advice_and_the_rest_is_named():
    assert set(PARTS) < set(ADVICE)
    table = profile_table({"read": 1.0, "train": 6.0, "train: forward": 2.0, "train: backward": 3.5, "total": 10.0})
    assert table.splitlines()[:5] == [
        "read             1.00 s   10.0%",
        "train            6.00 s   60.0%",
        "  forward        2.00 s   20.0%",
        "  backward       3.50 s   35.0%",
        "other            3.00 s   30.0%",
    ]
    assert table.splitlines()[5].startswith("bottleneck: backward, 35% of 10.0 s; to shorten it: train fewer layers")
