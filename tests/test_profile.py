"""`--profile` says where the time went."""

from __future__ import annotations

import re
import time

import pytest

from hf_transfer.arguments import PretrainedArguments, parse
from hf_transfer.errors import UserError
from hf_transfer.pretraining import PoolArguments
from hf_transfer.profile import PARTS, advice, profile_table, total


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
    # the parts are within `train`, and are not counted twice
    assert run.seconds["total"] == pytest.approx(
        sum(value for name, value in run.seconds.items() if name != "total" and not name.startswith("train: "))
    )
    said = profile_table(run.seconds, advice(of("finetune")))
    avoidable = rf"up to {parts['optimiser']:.1f} s of (it|optimiser) can be avoided: take larger steps \(--grad"
    assert re.search(avoidable, said.splitlines()[-1])


def of(recipe, *more):
    """The arguments of a recipe."""
    if recipe == "pretrain_domain":
        return parse(["--target_unlabeled", "x", "--output_dir", "y", *more], data=PoolArguments,
                     model=PretrainedArguments)  # fmt: skip
    return parse(["--source", "x", "--target", "y", "--output_dir", "z", *more])


def last_line(seconds, *more):
    return profile_table(seconds | {"total": total(seconds)}, advice(of("finetune", *more))).splitlines()[-1]


def test_the_table_has_every_second_and_the_slowest_part_is_named():
    seconds = {"read": 1.0, "train": 6.0, "train: forward": 2.0, "train: backward": 3.5}
    assert total(seconds) == 7.0
    table = profile_table({**seconds, "total": 10.0}, advice(of("finetune")))
    assert table.splitlines() == [
        "read             1.00 s   10.0%",
        "train            6.00 s   60.0%",
        "  forward        2.00 s   20.0%",
        "  backward       3.50 s   35.0%",
        "  other          0.50 s    5.0%",
        "other            3.00 s   30.0%",
        "bottleneck: backward, 35 % of 10.0 s; up to 3.5 s of it can be avoided: train fewer layers (--method "
        "partial), or shorten texts (--max_length)",
    ]


@pytest.mark.parametrize("stage", ["read", "load model", "prepare", "save", "evaluate", "learn what is new"])
def test_a_stage_that_no_flag_shortens_gets_no_advice(stage):
    """The final saving is not that of checkpoints, nor the final scoring that of validation rows."""
    seconds = {"predict": 1.0, "train": 2.0, "train: save": 0.04, "train: evaluate": 0.1, "train: backward": 0.9}
    seconds[stage] = 30.0
    line = last_line(seconds)
    assert line.startswith(f"bottleneck: {stage}, 91 % of 33.0 s")
    assert "--" not in line, "what could be avoided is under 5 % of all"
    line = last_line(seconds | {stage: 3.0, "predict": 2.5})
    assert line.startswith(f"bottleneck: {stage}, 40 % of 7.5 s")
    assert line.endswith("; up to 2.5 s of predict can be avoided: test on fewer rows (--test_fraction, or a smaller "
                         "--target)")  # fmt: skip


def test_checkpoints_and_scoring_while_training_are_told_from_those_at_the_end():
    seconds = {"save": 1.0, "evaluate": 1.0, "predict": 0.5, "train": 9.0, "train: save": 6.0, "train: evaluate": 2.0}
    assert last_line(seconds).startswith("bottleneck: train: save, 52 % of 11.5 s; up to 6.0 s of it can be avoided: ")
    assert "(--save_strategy best)" in last_line(seconds)
    assert "(--save_strategy no)" in last_line(seconds, "--validation_fraction", "0")
    assert "up to 2.0 s of train: evaluate" in last_line(seconds, "--save_strategy", "best")


def test_training_between_its_parts_can_be_the_bottleneck():
    line = last_line({"train": 10.0, "train: backward": 2.0})
    assert line.startswith("bottleneck: train: other, 80 % of 10.0 s; up to 2.0 s of backward can be avoided")


def test_what_is_cached_is_said():
    line = last_line({"tokenise": 9.0, "read": 1.0})
    assert line == "bottleneck: tokenise, 90 % of 10.0 s, cached for the next run on these rows"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_training_has_advice(part):
    assert advice(of("finetune"))[f"train: {part}"]


def test_no_advice_names_a_flag_that_the_recipe_has_not_or_that_changes_nothing():
    assert "--method" not in " ".join(advice(of("pretrain_domain"))[f"train: {part}"] for part in PARTS)
    layers = advice(of("finetune", "--method", "partial"))
    assert "--method" not in " ".join(layers[f"train: {part}"] for part in PARTS)
    assert "--top_layers" in layers["train: backward"]
    assert "--top_layers" not in advice(of("finetune", "--method", "partial", "--top_layers", "0"))["train: backward"]
    assert "lora" not in advice(of("finetune", "--method", "lora"))["train: optimiser"]


def test_what_is_advised_is_accepted():
    """The flags go together: --save_strategy steps alone is refused where the best checkpoint is kept."""
    with pytest.raises(UserError, match="save and eval strategy to match"):
        of("finetune", "--save_strategy", "steps", "--save_steps", "4")
    for advised in advice(of("finetune")).values():
        flags = [part.split(")")[0] for part in advised.split("(")[1:]]
        for given in [text.replace("N", "4") for text in flags if "_strategy" in text]:
            of("finetune", *given.split())
    assert "--save_strategy steps" in advice(of("finetune"))["train: evaluate"]
