"""The command line: what it lists and copies; and the embedded corpus that the quickstart runs on."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest
from conftest import CORPUS, REPOSITORY

from hf_transfer.cli import EXAMPLES, _parser, main, recipe_file, recipe_names
from hf_transfer.plugins import first_line, load_plugin, plugin_names
from hf_transfer.texts import normalise

PACKAGE = REPOSITORY / "hf_transfer"
RECIPES = ["adapt_domain", "finetune", "pretrain_domain", "quickstart", "rewrite_source", "self_train"]
METHODS = ["adapter", "bitfit", "frozen", "full", "ia3", "lora", "partial", "prompt", "qlora"]
ALIGNMENTS = ["cdan", "coral", "dann", "jdot", "mmd", "udalm"]
OBJECTIVES = ["clm", "mlm", "tsdae"]
MAPS = ["coral", "moments", "subspace"]
TASKS = ["text_classification"]
DIAGNOSTICS = ["concept", "duplicates", "labels", "length", "mmd", "parts", "proxy_a_distance", "vocabulary"]
SCORES = ["agreement", "entropy", "neighbourhood_density", "reverse_validation", "source_validation",
          "thresholded_confidence", "weighted_validation"]  # fmt: skip
DOMAINS = ("films", "gadgets", "hotels")


def failure(argv, capsys):
    """Run what must fail with exit code 2; returns its one line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


# list


def listing(capsys):
    """Heading -> the (name, description) lines below it."""
    main(["list"])
    out, title = {}, ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            name, _, description = line.strip().partition(" ")
            out[title].append((name, description.strip()))
        else:
            title = line.rstrip(":")
            out[title] = []
    return out


def test_list_names_everything(capsys):
    found = listing(capsys)
    assert {title: [name for name, _ in lines] for title, lines in found.items()} == {
        "recipes": RECIPES,
        "methods": METHODS,
        "alignments": ALIGNMENTS,
        "objectives": OBJECTIVES,
        "feature maps": MAPS,
        "tasks": TASKS,
        "diagnostics": DIAGNOSTICS,
        "label-free scores": SCORES,
    }
    assert [len(lines) for lines in found.values()] == [6, 9, 6, 3, 3, 1, 8, 7]
    for name, description in itertools.chain(*found.values()):
        assert 15 < len(description) <= 120, name
        assert description.endswith("."), name
    descriptions = [description for lines in found.values() for _, description in lines]
    assert len(set(descriptions)) == 43


def test_list_is_what_can_be_loaded(capsys):
    found = listing(capsys)
    packages = {"alignments": "alignment", "feature maps": "feature_maps", "label-free scores": "label_free"}
    for kind in ("methods", "alignments", "objectives", "feature maps", "tasks", "diagnostics", "label-free scores"):
        package = packages.get(kind, kind)
        folder = PACKAGE / package
        names = plugin_names([str(folder)])
        assert names == [name for name, _ in found[kind]]
        for name, description in found[kind]:
            module = load_plugin(kind, f"hf_transfer.{package}", [str(folder)], name)
            assert module.__doc__.splitlines()[0] == description


def test_a_new_file_is_a_new_plugin(tmp_path):
    (tmp_path / "mine.py").write_text('"""What mine does.\n\nMore."""\nimport nothing_of_that_name\n')
    (tmp_path / "_hidden.py").write_text("")
    assert plugin_names([str(tmp_path)]) == ["mine"]
    assert first_line(tmp_path / "mine.py") == "What mine does."
    assert first_line(tmp_path / "_hidden.py") == ""


# copy


@pytest.mark.parametrize("name", RECIPES)
def test_copy(name, tmp_path, capsys):
    main(["copy", name, str(tmp_path / "my" / "recipes")])
    copied = tmp_path / "my" / "recipes" / f"{name}.py"
    assert copied.read_bytes() == (REPOSITORY / "recipes" / f"{name}.py").read_bytes()
    assert str(copied) in capsys.readouterr().out
    copied.write_text("mine now")
    assert "is there already" in failure(["copy", name, str(copied.parent)], capsys)
    assert copied.read_text() == "mine now"


def test_unknown_names_are_one_line(tmp_path, capsys):
    for argv in (["copy", "finetun", str(tmp_path / "new")], ["run", "finetun"]):
        line = failure(argv, capsys)
        assert line == "error: there is no recipe 'finetun' (did you mean 'finetune'?); there are: " + (
            ", ".join(RECIPES) + "."
        )
    assert not (tmp_path / "new").exists()
    assert "--num_processes is 0" in failure(["run", "--num_processes", "0", "finetune"], capsys)


# recipes


def commands(docstring):
    """The indented command lines of a docstring."""
    return [line.strip() for line in docstring.splitlines() if re.match(r" {4}(accelerate launch|hf-transfer) ", line)]


def test_recipes_show_a_command_to_copy():
    assert recipe_names() == RECIPES
    seen = 0
    for name in RECIPES:
        lines = commands(ast.get_docstring(ast.parse(recipe_file(name).read_text(encoding="utf-8"))))
        assert lines, name
        for line in lines:
            words = shlex.split(line)
            seen += 1
            assert name in words or f"recipes/{name}.py" in words, line
            if words[0] == "accelerate":
                assert (REPOSITORY / words[2]).is_file(), line
            else:
                assert _parser().parse_args(words[1:]).action, line
            for word in words:
                if word.startswith("recipes/configs/"):
                    assert (REPOSITORY / word).is_file(), line
        assert any("--output" in line or "--config" in line for line in lines)
    assert seen == 11


def test_recipe_flags_in_examples_exist():
    """Every --flag of an example command is one of the parser's own."""
    from hf_transfer.arguments import DataArguments, ModelArguments, TrainArguments

    known = {name for kind in (DataArguments, ModelArguments, TrainArguments) for name in kind.__dataclass_fields__}
    known |= {"config"}
    text = ast.get_docstring(ast.parse(recipe_file("finetune").read_text(encoding="utf-8")))
    lines = [line for line in commands(text) + EXAMPLES.splitlines() if "finetune" in line]
    assert len(lines) == 4
    flags = [flag for line in lines for flag in re.findall(r"--(\w+)", line.partition("finetune")[2])]
    assert len(flags) == 12
    assert set(flags) <= known


def test_examples_of_the_help_parse():
    lines = [line.strip() for line in EXAMPLES.splitlines() if line.startswith("  hf-transfer ")]
    assert len(lines) == 13
    actions = [_parser().parse_args(shlex.split(line)[1:]).action.__name__ for line in lines]
    assert actions == ["_quickstart", "_gap", "_compare", "_rank", "_run", "_run", "_predict", "_why", "_choose",
                       "_report", "_demo", "_publish", "_export"]  # fmt: skip


# the embedded corpus


@cache
def corpus(domain, kind):
    with (CORPUS / f"{domain}.{kind}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_corpus_is_complete():
    files = sorted(file.name for file in CORPUS.glob("*.jsonl"))
    assert files == sorted(f"{domain}.{kind}.jsonl" for domain in DOMAINS for kind in ("labeled", "unlabeled"))
    assert len(files) == 6


@pytest.mark.parametrize("domain", DOMAINS)
def test_corpus_is_balanced(domain):
    labelled, unlabelled = corpus(domain, "labeled"), corpus(domain, "unlabeled")
    assert Counter(row["label"] for row in labelled) == {"positive": 100, "negative": 100}
    assert len(unlabelled) == 60
    assert {tuple(sorted(row)) for row in labelled} == {("label", "text")}
    assert {tuple(sorted(row)) for row in unlabelled} == {("text",)}
    # no run of one label, such as a file of all positives first would have
    halves = Counter(row["label"] for row in labelled[:100])
    assert 30 <= halves["positive"] <= 70


@pytest.mark.parametrize("domain", DOMAINS)
def test_corpus_texts_are_short_and_clean(domain):
    texts = [row["text"] for row in corpus(domain, "labeled") + corpus(domain, "unlabeled")]
    assert len(texts) == 260
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 15
    assert max(lengths) <= 60
    for text in texts:
        assert text == " ".join(text.split())
        assert text.isprintable()


@pytest.mark.parametrize("domain", DOMAINS)
def test_corpus_has_no_near_duplicates(domain):
    """Every pair of a domain's texts shares less than half of its character 5-grams."""
    texts = [normalise(row["text"]) for row in corpus(domain, "labeled") + corpus(domain, "unlabeled")]
    grams = [{text[i : i + 5] for i in range(len(text) - 4)} for text in texts]
    assert all(len(gram) > 40 for gram in grams)
    pairs, worst = 0, 0.0
    for one, other in itertools.combinations(grams, 2):
        shared = len(one & other)
        worst = max(worst, shared / (len(one) + len(other) - shared))
        pairs += 1
    assert pairs == 260 * 259 // 2
    assert worst < 0.5


def test_no_corpus_text_has_two_labels():
    """Nor does one occur twice at all, over all domains, labelled or not."""
    labels = {}
    for domain in DOMAINS:
        for row in corpus(domain, "labeled") + corpus(domain, "unlabeled"):
            labels.setdefault(normalise(row["text"]), []).append(row.get("label"))
    assert len(labels) == 3 * 260
    assert [text for text, found in labels.items() if len(found) > 1] == []


def test_a_package_that_hides_ours_is_named(tmp_path):
    """In an editable install PyPI's `hf_transfer` comes first on the path, and nothing of ours can be imported."""
    (tmp_path / "hf_transfer").mkdir()
    (tmp_path / "hf_transfer" / "__init__.py").write_text("")
    (tmp_path / "hf_transfer_nlp.py").write_text((REPOSITORY / "hf_transfer_nlp.py").read_text())
    done = subprocess.run(
        [sys.executable, "-c", "import hf_transfer_nlp; hf_transfer_nlp.main()"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the unrelated package hf_transfer")
    assert len(done.stderr.splitlines()) == 1
