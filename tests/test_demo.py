"""The demo: in a real browser, through its API, and piece by piece."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import torch
from demo_app import DEMO, serving

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and importlib.util.find_spec("gradio") is None,
    reason="needs the demo's packages: pip install 'hf-transfer-nlp[demo]'",
)
sys.path.append(str(DEMO))
CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip
REVIEW = "The bedroom was spotless and the staff don't hurry you, but our breakfast was cold."


@pytest.fixture(scope="module")
def runs(tiny, recipe, tmp_path_factory):
    """Two run folders, `frozen` and `lora`."""
    folder = tmp_path_factory.mktemp("demo")
    for method in ("frozen", "lora"):
        recipe(["--model", str(tiny), "--source", str(conftest.CORPUS / "hotels.labeled.jsonl"),
                "--target", str(conftest.CORPUS / "gadgets.labeled.jsonl"), "--validation_fraction", "0.2",
                "--method", method, "--output_dir", str(folder / method), "--max_length", "48", "--precision", "fp32",
                *(["--num_train_epochs", "1"] if method == "lora" else []), "--quiet"])  # fmt: skip
    return [folder / "frozen", folder / "lora"]


@pytest.fixture(scope="module")
def app(runs, tmp_path_factory):
    """The address of the app with both runs, and the file that takes corrections."""
    file = tmp_path_factory.mktemp("corrections") / "new" / "corrections.jsonl"
    with serving("-m", "hf_transfer.cli", "demo", *map(str, runs), "--corrections", str(file)) as url:
        yield url, file


@pytest.fixture(scope="module")
def client(app, tmp_path_factory):
    from gradio_client import Client

    return Client(app[0], verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="module")
def model(runs):
    from models import Model

    return Model("frozen", runs[0])


def read(file, delimiter=","):
    with Path(file).open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.reader(stream, delimiter=delimiter))


# In a browser


@pytest.fixture(scope="module")
def browser():
    if not os.environ.get("CI"):
        pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
        if CHROMIUM is None:
            pytest.skip("needs chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(app, browser):
    """The app's page; afterwards nothing has failed, left this machine or stuck out."""
    context = browser.new_context(viewport={"width": 1000, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    trouble: list[str] = []

    def said(message):
        # gradio's API page asks whether there is an MCP server by looking
        if message.type == "error" and not message.location["url"].endswith("/gradio_api/mcp/schema"):
            trouble.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    # aborted: by the page itself, which ends a stream of events once it has the last one
    page.on("requestfailed", lambda request: None if request.failure == "net::ERR_ABORTED"
            else trouble.append(f"failed: {request.url} {request.failure}"))  # fmt: skip
    context.on("request", lambda request: None if request.url.startswith((app[0], "data:", "blob:"))
               else trouble.append(f"outside: {request.url}"))  # fmt: skip
    page.goto(app[0])
    page.get_by_role("button", name="Label it", exact=True).wait_for()
    yield page
    assert trouble == []
    for width in (1000, 400):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
    context.close()


def words(page):
    """The highlighted words, once they are there."""
    words = page.get_by_test_id("highlighted-text:textfield").locator(".token.highlighted")
    words.first.wait_for()
    return words


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").locator("visible=true")


def upload(panel, file):
    """Choose a file; its name is there earlier than the file, and then in two parts."""
    panel.locator("input[type=file]").set_input_files(file)
    panel.locator("a[download]").wait_for()


def test_label_and_words_of_a_review(page, model):
    page.get_by_label("Text").locator("visible=true").fill(REVIEW)
    page.get_by_role("button", name="Label it", exact=True).click()
    expected = model.predict(REVIEW)
    page.get_by_test_id("label-output-value").get_by_text(expected.label).wait_for()
    share = f"{100 * expected.probabilities[expected.label]:.0f}%"
    page.locator(".confidence").first.get_by_text(share).wait_for()
    page.locator("#usual").get_by_text(re.compile("(Typical|Unusual|Outside).*training texts")).wait_for()
    page.locator("#summary").get_by_text("add up to").wait_for()
    shown = [word.strip() for word in words(page).all_inner_texts()]
    assert "don't" in shown
    assert "spotless" in shown
    colours = words(page).evaluate_all("spans => spans.map(s => getComputedStyle(s).backgroundColor)")
    assert len(set(colours)) > 3


def test_try_with_the_keyboard_alone(page, model):
    def focused():
        return page.evaluate("document.activeElement.tagName + ' ' + (document.activeElement.innerText || '')")

    def tab_to(name):
        for _ in range(25):
            if focused().startswith(name):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{name} can't be reached by Tab")

    tab_to("TEXTAREA")
    page.keyboard.type(REVIEW)
    page.keyboard.press("Shift+Enter")
    page.get_by_test_id("label-output-value").get_by_text(model.predict(REVIEW).label).wait_for()
    page.locator("#summary").get_by_text("add up to").wait_for()
    page.keyboard.press("Control+A")
    page.keyboard.type("Dreadful.")
    tab_to("BUTTON Label it")
    page.keyboard.press("Enter")
    page.get_by_test_id("label-output-value").get_by_text(model.predict("Dreadful.").label).wait_for()
    words(page).get_by_text("Dreadful").wait_for()


def test_an_example_fills_in_and_runs(page, runs):
    texts = [json.loads(line)["text"] for line in (runs[0] / "recorded.jsonl").read_text().split("\n") if line]
    page.locator(".gallery-item").first.click()
    page.locator("#summary").get_by_text("add up to").wait_for()
    assert page.get_by_label("Text").locator("visible=true").input_value() in texts


def test_nothing_to_label_is_said(page):
    page.get_by_role("button", name="Label it", exact=True).click()
    page.get_by_text("There is no text; type or paste one first.").wait_for()


def test_names_in_a_complaint_are_text(page, tmp_path):
    (tmp_path / "a.csv").write_text("<img src=http://evil.example/p.png>,b\n1,2\n", encoding="utf-8")
    panel = open_tab(page, "Batch")
    upload(panel, tmp_path / "a.csv")
    panel.get_by_role("button", name="Label all rows").click()
    page.get_by_text("one of: <img src=http://evil.example/p.png>, b.").wait_for()


def test_batch_file_comes_back_labelled(page, tmp_path, model):
    file = tmp_path / "reviews.csv"
    file.write_text("id,review\n1,A lovely stay\n2,\n3,=1+1\n", encoding="utf-8")
    panel = open_tab(page, "Batch")
    upload(panel, file)
    panel.get_by_role("button", name="Label all rows").click()
    panel.get_by_text("3 rows labelled").wait_for()
    with page.expect_download() as download:
        panel.locator("a[download]").last.click()
    rows = read(download.value.path())
    assert download.value.suggested_filename == "reviews-labelled.csv"
    assert rows[0] == ["id", "review", "prediction", "confidence"]
    assert [row[:2] for row in rows[1:]] == [["1", "A lovely stay"], ["2", ""], ["3", "'=1+1"]]
    assert [row[2] for row in rows[1:]] == [model.predict("A lovely stay").label, "", model.predict("=1+1").label]


def test_evidence_shows_the_numbers_of_the_run(page, runs):
    panel = open_tab(page, "Evidence")
    panel.get_by_role("heading", name="frozen").wait_for()
    panel.get_by_text("process(es)").nth(1).wait_for()
    pictures = panel.locator("img.report")
    pictures.nth(1).wait_for()
    text = panel.inner_text()
    for folder in runs:
        run = json.loads((folder / "run.json").read_text())
        scores, controls = run["metrics"]["target_test"], run["metrics"]["controls"]
        for part in (scores, controls["majority"]["target_test"], controls["tfidf"]["target_test"]):
            low, high = part["intervals"]["accuracy"]
            assert f"{100 * part['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in text
        for label, part in scores["per_class"].items():
            assert re.search(rf"{label}\s+{100 * part['precision']:.1f}\s+{100 * part['recall']:.1f}", text)
        assert scores["slices"]
        for part in scores["slices"]:
            assert part["slice"] in text
        assert run["data"]["fingerprint"][:16] in text
        assert f"seed: {run['seed']}" in text
    assert pictures.count() == 2
    assert pictures.first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    assert "accuracy with intervals" in pictures.first.get_attribute("alt")


def test_compare_and_correct(page, app, runs):
    from models import Model

    expected = [Model(folder.name, folder).predict(REVIEW) for folder in runs]
    page.get_by_label("Text").locator("visible=true").fill(REVIEW)
    panel = open_tab(page, "Compare")
    panel.get_by_label("Text").fill(REVIEW)
    panel.get_by_role("button", name="Label it with each model").click()
    panel.get_by_test_id("label-output-value").nth(1).wait_for()
    assert [label.strip() for label in panel.get_by_test_id("label-output-value").all_inner_texts()] == [
        answer.label for answer in expected
    ]
    assert panel.get_by_role("row").filter(has_text="lora").count() == 1


def test_correct_what_was_tried_last(page, app, runs):
    from models import Model
    from playwright.sync_api import expect

    texts = [REVIEW, "Dreadful.", "The mixer hums and the lid leaks."]
    for text in texts:  # each time the box of the tab starts with what was tried, and with nothing of the time before
        panel = open_tab(page, "Try")
        panel.get_by_role("radio", name="lora").check()
        panel.get_by_label("Text").fill(text)
        panel = open_tab(page, "Correct it")
        expect(panel.get_by_label("Text")).to_have_value(text, timeout=60_000)
        expect(panel.get_by_role("radio", name="lora")).to_be_checked()
        expect(panel.get_by_role("radio", name="positive")).not_to_be_checked()
        expect(panel.locator("#saved")).not_to_contain_text("Saved")
        panel.get_by_role("radio", name="positive").check()
        panel.get_by_role("button", name="Save the correction").click()
        panel.get_by_text("Saved, thank you").wait_for()
        expect(panel.get_by_label("Text")).to_have_value("", timeout=60_000)
        expect(panel.get_by_role("radio", name="positive")).not_to_be_checked()
    panel.get_by_label("Text").press_sequentially("x")
    expect(panel.locator("#saved")).not_to_contain_text("Saved", timeout=60_000)
    rows = [json.loads(line) for line in app[1].read_text(encoding="utf-8").splitlines()]
    assert all(row.pop("time").endswith("+00:00") for row in rows)
    lora = Model("lora", runs[1])
    assert rows == [
        {"text": text, "label": "positive", "predicted": lora.predict(text).label, "model": "lora"} for text in texts
    ]


def test_api_page_stays_here_too(page):
    page.get_by_role("button", name="Use via API").click()
    page.get_by_text("/predict").first.wait_for()


# What the endpoints do


@pytest.fixture(scope="module")
def demo(runs):
    """The app of `frozen`, and of a copy of it whose labels have other names, in this process."""
    from app import Demo
    from corrections import Corrections
    from models import Model

    other = runs[0].with_name("grades")
    shutil.copytree(runs[0], other)
    config = json.loads((other / "config.json").read_text())
    names = ["<b>bad*", "good"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (other / "config.json").write_text(json.dumps(config))
    models = [Model(folder.name, folder) for folder in (runs[0], other)]
    return Demo("Two", models, [], Corrections(str(runs[0].with_name("corrections.jsonl"))))


def test_a_label_of_another_model_is_refused(demo):
    assert "<b>" not in demo.correct("Nice.", "good", "grades")
    with pytest.raises(Exception, match="frozen has no label 'good'; choose one of: negative, positive"):
        demo.correct("Nice.", "good", "frozen")


def test_a_label_is_shown_as_text(demo):
    _, words = demo.explain("A cold, dreadful room. Never again.", "grades")
    assert "**good**" in words or r"**&lt;b&gt;bad\***" in words
    from attribution import Explanation

    assert r"Most for **a\*&lt;b&gt;**: don't, \[x\]." in Explanation(
        "a*<b>", [("don't", 2.0), ("[x]", 1.0)], 3.0, 0.0).words()  # fmt: skip


def test_explanations_hold_up_no_labels(demo):
    groups = {function.api_name: function.concurrency_id for function in demo.blocks().fns.values()}
    assert groups["explain"] not in {groups[name] for name in ("predict", "batch", "compare", "correct")}


def test_which_part_of_a_long_text_was_read(demo, monkeypatch):
    tokenizer = demo.models["frozen"].tokenizer
    text = "lovely room " * 60
    assert tokenizer.model_max_length == 48  # of which two are special
    assert demo.predict(text, "frozen")[1].endswith("only its first 46 tokens were read.")
    monkeypatch.setattr(tokenizer, "truncation_side", "left")
    assert demo.predict(text, "frozen")[1].endswith("only its last 46 tokens were read.")


# Through the API


def test_endpoints(client):
    info = client.view_api(return_format="dict")
    assert set(info["named_endpoints"]) == {"/predict", "/explain", "/batch", "/compare", "/correct"}
    assert not info["unnamed_endpoints"]


def test_predict_as_plain_transformers_does(client, runs):
    from transformers import pipeline

    for folder in runs:
        pipe = pipeline("text-classification", str(folder), top_k=None)
        for text in conftest.corpus_texts("films")[:3]:
            answer, _ = client.predict(text, folder.name, api_name="/predict")
            expected = {row["label"]: row["score"] for row in pipe([text], truncation=True)[0]}
            found = {row["label"]: row["confidence"] for row in answer["confidences"]}
            assert found == pytest.approx(expected, abs=1e-5)
            assert answer["label"] == max(expected, key=lambda label: expected[label])


def test_explain_gives_the_text_back_with_weights(client):
    pieces, words = client.predict(REVIEW, "frozen", api_name="/explain")
    assert "".join(piece["token"] for piece in pieces) == REVIEW
    weights = [piece["class_or_confidence"] for piece in pieces if piece["class_or_confidence"] is not None]
    assert max(map(abs, weights)) == 1
    share = int(re.search(r"add up to (\d+) %", words)[1])
    assert 95 <= share <= 105


@pytest.mark.parametrize(
    ("text", "message"), [("", "no text"), (" \n", "no text"), ("a" * 10_001, "10,001 characters; at most 10,000")]
)
def test_what_can_t_be_labelled(client, text, message):
    for endpoint in ("/predict", "/explain"):
        with pytest.raises(Exception, match=message):
            client.predict(text, "frozen", api_name=endpoint)


def test_batch_keeps_rows_order_and_cells(client, tmp_path, model):
    texts = [f"{text} {i}" * (1 + i % 4) for i, text in enumerate(conftest.corpus_texts("gadgets") * 3)]
    special = ['Say "hi", twice', "two\nlines", "été, 日本語", "", "  ", "=SUM(A1)", "@cmd", "-5.2", "+tea", "\tx"]
    rows = [[str(i), text, "-5.2", "=1+1"] for i, text in enumerate([*special, *texts])]
    file = tmp_path / "in.tsv"
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows([["id", "Review", "price", "-note"], *rows])
    from gradio_client import handle_file

    output, words = client.predict(handle_file(file), "", "frozen", api_name="/batch")
    assert words == f"{len(rows)} rows labelled by the column 'Review'."
    assert Path(output).name == "in-labelled.tsv"
    assert Path(output).read_bytes().startswith(b"\xef\xbb\xbf")
    header, *found = read(output, "\t")
    assert header == ["id", "Review", "price", "'-note", "prediction", "confidence"]
    harmless = {"=SUM(A1)": "'=SUM(A1)", "@cmd": "'@cmd", "+tea": "'+tea", "\tx": "'\tx"}
    assert [row[:4] for row in found] == [[i, harmless.get(t, t), price, "'=1+1"] for i, t, price, _ in rows]
    for given, row in zip(rows, found, strict=True):
        if not given[1].strip():
            assert row[4:] == ["", ""]
    for i in (0, 7, 100, 511, 512, 513, len(rows) - 1):
        expected = model.predict(rows[i][1])
        assert found[i][4] == expected.label
        assert float(found[i][5]) == pytest.approx(expected.probabilities[expected.label], abs=1e-4)


BAD = {
    "empty": ("a.csv", b"", "is empty"),
    "no rows": ("a.csv", b"text\n", "no rows"),
    "ragged": ("a.csv", b"id,text\n1,a\n2,b,c\n", "ends in line 3 has 3 cells, the first line has 2"),
    "latin": ("a.csv", "text\ncaf\xe9\n".encode("latin-1"), "not UTF-8"),
    "utf-16": ("a.csv", "text\nhello\n".encode("utf-16"), "not UTF-8"),
    "nul": ("a.csv", b"text\nhe\0llo\n", "Line 2 can't be read.*NUL"),
    "quote": ("a.csv", b'text\n"never closed\n', "can't be read as CSV"),
    "columns": ("a.csv", b"one,two\na,b\n", "no column that is surely the text; give the name of one of: one, two"),
    "taken": ("a.csv", b"text,Prediction\na,b\n", "column 'Prediction' already"),
    "kind": ("a.xlsx", b"PK", "neither .csv nor .tsv"),
    "rows": ("a.csv", b"text\n" + b"x\n" * 100_001, "more than 100,000 rows"),
    "header": ("a.csv", b"a," * 1_000_000, "Line 1 can't be read.*more than 1,000,000 characters"),
    "wide": ("a.csv", b"a," * 1_000 + b"text\n", "1,001 columns; at most 1,000"),
    "long": ("a.csv", b"id,text\n1,2\n1," + b"x" * 2_000_000, "Line 3 can't be read.*more than 1,000,000"),
    "lines": (
        "a.csv",
        b'a,text\n1,"' + b"x" * 99_000 + b'"' + b',"\n"' * 500_000,
        "can't be read.*more than 1,000,000",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_batch_says_what_is_wrong_with_a_file(tmp_path, name):
    import batch

    file, content, message = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(batch.Unreadable, match=message):
        batch.check(tmp_path / file)


def test_chunks_of_large_rows_are_small():
    from batch import _chunks

    for rows in ([["x" * 100_000]] * 100, [["x"] * 1_000] * 600, [["x"]] * 1_025):
        chunks = list(_chunks(rows))
        assert [row for chunk in chunks for row in chunk] == rows
        assert max(map(len, chunks)) <= 512
        assert all(sum(len(cell) + 50 for row in chunk for cell in row) < 610_000 for chunk in chunks)


@pytest.mark.parametrize(
    "cell", ["=1+1", "\n=1+1", " =1", "\uff1d1+1", "\uff20SUM(A1)", "+tea", "-x", "@cmd", "\tx", "\rx"]
)
def test_formulas_are_disarmed(cell):
    from batch import harmless

    assert harmless(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "-5.2", "+1,000", "-3 %", "1-1", "a=b", "nice ;-)", "'=1"])
def test_other_cells_stay(cell):
    from batch import harmless

    assert harmless(cell) == cell


def test_batch_column_by_name_and_semicolons(client, tmp_path):
    from gradio_client import handle_file

    (tmp_path / "a.csv").write_text("one;two\na, b;c\n", encoding="utf-8")
    output, _ = client.predict(handle_file(tmp_path / "a.csv"), "two", "lora", api_name="/batch")
    assert Path(output).read_text().splitlines()[1].startswith("a, b;c;")
    with pytest.raises(Exception, match="no columns 'three'"):
        client.predict(handle_file(tmp_path / "a.csv"), "three", "lora", api_name="/batch")


def test_batch_beside_explanations(client, tmp_path, model):
    """Both run in one network, at the same time."""
    from gradio_client import handle_file

    texts = conftest.corpus_texts("hotels")[:150]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["text"], *[[text] for text in texts * 8]])
    job = client.submit(handle_file(tmp_path / "a.csv"), "", "frozen", api_name="/batch")
    first = client.predict(REVIEW, "frozen", api_name="/explain")
    while not job.done():
        assert client.predict(REVIEW, "frozen", api_name="/explain") == first
    rows = read(job.result()[0])[1:]
    expected = model.predict_many(texts)
    for i, row in enumerate(rows):
        label, confidence = expected[i % len(texts)]
        assert row[:2] == [texts[i % len(texts)], label]
        assert float(row[2]) == pytest.approx(confidence, abs=1e-4)


MEMORY = """
import csv, json, sys, psutil
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import batch
from models import Model
model = Model("m", Path(sys.argv[2]))
folder = Path(sys.argv[3])
process = psutil.Process()
for rows in (2_000, 50_000):
    file = folder / f"{rows}.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text", "note"])
        for i in range(rows):  # the notes are what fills the memory of who keeps the rows: 75 MB
            writer.writerow([i, ("good", "bad room", "a cold breakfast")[i % 3], f"{i:01500}"])
    before = most = process.memory_info().rss
    for done in batch.score(batch.check(file), model, folder / f"{rows}-out.csv"):
        most = max(most, process.memory_info().rss)
print(json.dumps({"growth": (most - before) / 1e6, "done": done}))
"""


def test_fifty_thousand_rows_in_flat_memory_and_in_order(runs, tmp_path, model):
    command = [sys.executable, "-c", MEMORY, str(DEMO), str(runs[0]), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    facts = json.loads(done.stdout)
    assert facts["done"] == 50_000
    assert facts["growth"] < 30
    with (tmp_path / "50000-out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [str(i) for i in range(50_000)]
    for i in (0, 511, 512, 25_000, 49_999):
        assert rows[i]["prediction"] == model.predict(rows[i]["text"]).label


# Attributions


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "modernbert", "gpt2"])
def classifier(request, tmp_path_factory):
    """A tiny model of each kind with a head of three labels, as a run folder."""
    from models import Model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    trunk = conftest.make_model(tmp_path_factory.mktemp(request.param), request.param)
    torch.manual_seed(1)
    net = AutoModelForSequenceClassification.from_pretrained(trunk, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(trunk)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    net.config.pad_token_id = tokenizer.pad_token_id
    folder = tmp_path_factory.mktemp("run")
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "run.json").write_text("{}")
    return Model(request.param, folder)


def odds(model, embeddings, inputs, label):
    with torch.no_grad():
        probabilities = model.net(inputs_embeds=embeddings, **inputs).logits.double().softmax(dim=-1)[0]
    return float(probabilities[label].log() - (1 - probabilities[label]).log())


def test_weights_sum_to_the_difference(classifier):
    from attribution import explain

    for text in (REVIEW, "Room: clean! Breakfast (cold)."):
        explanation = explain(classifier, text)
        assert "".join(piece for piece, _ in explanation.pieces) == text
        assert explanation.label == classifier.predict(text).label
        encoding = classifier.tokenizer(text, return_tensors="pt", return_special_tokens_mask=True, truncation=True)
        special = encoding.pop("special_tokens_mask").bool()
        ids = encoding.pop("input_ids")
        layer = classifier.net.get_input_embeddings()
        blank = ids.where(special, torch.tensor(classifier.tokenizer.pad_token_id))
        label = classifier.labels.index(explanation.label)
        expected = odds(classifier, layer(ids), encoding, label) - odds(classifier, layer(blank), encoding, label)
        total = sum(weight for _, weight in explanation.pieces if weight is not None)
        assert total == pytest.approx(expected, rel=0.1, abs=0.02)
        assert explanation.difference == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert explanation.missing == pytest.approx(expected - total, abs=1e-3)


def test_many_texts_are_labelled_as_one_at_a_time(classifier):
    texts = [text[: 20 + 9 * i] for i, text in enumerate(conftest.corpus_texts("films")[:40])]
    for text, (label, confidence) in zip(texts, classifier.predict_many(texts), strict=True):
        one = classifier.predict(text)
        assert one.probabilities[label] == pytest.approx(confidence, abs=1e-4)
        assert one.probabilities[one.label] == pytest.approx(confidence, abs=1e-4)


def test_the_one_word_that_decides_gets_the_weight(model):
    """All other words look like blanks to this model."""
    from attribution import explain

    word = "breakfast"
    layer = model.net.get_input_embeddings()
    kept = layer.weight.clone()
    (token,) = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    assert token != model.tokenizer.unk_token_id
    try:
        layer.weight[:] = kept[model.tokenizer.pad_token_id]
        layer.weight[token] = kept[token]
        for text in ("Breakfast was late.", "We liked the breakfast", "A long walk, then breakfast, then a nap."):
            explanation = explain(model, text)
            weights = {piece.lower(): weight for piece, weight in explanation.pieces if weight is not None}
            assert abs(weights.pop(word)) > 1e-3
            assert max(map(abs, weights.values())) < 1e-6
            assert {piece.lower() for piece, weight in explanation.shown() if weight and abs(weight) == 1} == {word}
    finally:
        layer.weight[:] = kept


class Sum(torch.nn.Module):
    """Of two classes, the first one's logit is the sum over a text's tokens of a number each: the truth is known."""

    device = torch.device("cpu")

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings
        self.direction = torch.linspace(-1, 1, embeddings.embedding_dim)

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, inputs_embeds, **_):
        total = (inputs_embeds @ self.direction).sum(dim=1)
        return SimpleNamespace(logits=torch.stack([total, torch.zeros_like(total)], dim=1))


def test_weights_are_the_known_ones_where_words_add_up(model, monkeypatch):
    from attribution import explain

    monkeypatch.setattr(model, "net", Sum(model.net.get_input_embeddings()))
    numbers = model.net.embeddings.weight @ model.net.direction
    text = "The staff were friendly, but our breakfast was cold."
    explanation = explain(model, text)
    sign = 1 if explanation.label == model.labels[0] else -1
    weights = [(piece, weight) for piece, weight in explanation.pieces if weight is not None]
    ids = [model.tokenizer.convert_tokens_to_ids(piece.lower()) for piece, _ in weights]
    known = [sign * float(numbers[i] - numbers[model.tokenizer.pad_token_id]) for i in ids]
    assert len(set(ids)) > 6
    assert [weight for _, weight in weights] == pytest.approx(known, abs=1e-5)
    assert explanation.difference == pytest.approx(sum(known), abs=1e-4)


def test_others_are_labelled_while_words_are_weighed(model, monkeypatch):
    import attribution

    found, log_odds = [], attribution.log_odds
    expected = model.predict("Dreadful.", 1)

    def meanwhile(*arguments):
        thread = threading.Thread(target=lambda: found.append(model.predict("Dreadful.", 1)), daemon=True)
        thread.start()
        thread.join(60)
        return log_odds(*arguments)

    monkeypatch.setattr(attribution, "log_odds", meanwhile)
    attribution.explain(model, REVIEW)
    assert len(found) > 1
    for answer in found:
        assert answer.probabilities == pytest.approx(expected.probabilities)
        assert torch.allclose(answer.state, expected.state)


def test_a_long_text_gets_fewer_steps(model, monkeypatch):
    import attribution
    import numpy as np

    steps, leggauss = [], np.polynomial.legendre.leggauss
    monkeypatch.setattr(np.polynomial.legendre, "leggauss", lambda count: steps.append(count) or leggauss(count))
    monkeypatch.setattr(attribution, "CLOSE", -1)  # never close enough
    attribution.explain(model, REVIEW)
    assert steps == [12, 48, 192]
    steps.clear()
    monkeypatch.setattr(attribution, "MOST", 48 * len(model.tokenizer(REVIEW)["input_ids"]))
    attribution.explain(model, REVIEW)
    assert steps == [12, 48]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I don't like it (much)...", ["I", "don't", "like", "it", "(", "much", ")..."]),
        ("很好 hotel", ["很好", "hotel"]),
        ("a well-made\n\ncup", ["a", "well-made", "cup"]),
    ],
)
def test_pieces_are_words(model, text, words):
    from attribution import explain

    explanation = explain(model, text)
    assert [piece for piece, weight in explanation.pieces if weight is not None] == words
    assert "".join(piece for piece, _ in explanation.pieces) == text


# How far a text lies from the training domain


def test_distance_is_measured_as_recorded_and_said_in_words(model, runs):
    from distance import domain_of
    from safetensors import safe_open

    domain = domain_of(runs[0])
    with safe_open(runs[0] / "domain.safetensors", framework="pt") as content:
        mean, whitening, quantiles = map(content.get_tensor, ("mean", "whitening", "distances"))
        layer = int(content.metadata()["layer"])
    inputs = model.tokenizer(REVIEW, return_tensors="pt")
    with torch.no_grad():
        states = model.net(**inputs, output_hidden_states=True).hidden_states[layer][0]
    expected = float(((states.mean(0) - mean) @ whitening).norm())
    assert domain.distance(model.predict(REVIEW, domain.layer).state) == pytest.approx(expected, rel=1e-4)

    held_out = domain.held_out
    rows = model.run["data"]["rows"]
    assert held_out == rows["validation"] + rows["source_test"]
    assert domain.words(0.0).startswith(
        f"**Typical.** Closer to the training texts (hotels) than 100 % of {held_out} held-out ones."
    )
    assert domain.words(float(quantiles[95]) + 1e-4).startswith("**Unusual.** Farther from the training texts (hotels)")
    assert " than 95 % " in domain.words(float(quantiles[95]) + 1e-4)
    outside = domain.words(float(quantiles[-1]) * 2)
    assert outside.startswith("**Outside.** Farther")
    assert f"than all of {held_out} held-out ones." in outside
    domain.accuracy = [
        {"from": 50, "to": 90, "n": 9, "accuracy": 1.0},
        {"from": 90, "to": 100, "n": 180, "accuracy": 0.78},
    ]
    assert domain.words(float(quantiles[95]) + 1e-4).endswith("78 % (n = 180) were labelled correctly.")
    assert "100 %" not in domain.words(float(quantiles[70]) + 1e-4)
    assert "Too few test texts are as far away (n = 9)" in domain.words(float(quantiles[70]) + 1e-4)
    assert "(n = 0)" in domain.words(0.0)
    domain.source = "*a*<b>"
    assert r"(\*a\*&lt;b&gt;)" in domain.words(0.0)


def test_test_rows_are_as_far_away_as_was_recorded(model, runs):
    import pandas as pd
    from distance import domain_of

    domain = domain_of(runs[0])
    with (conftest.CORPUS / "gadgets.labeled.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    tested = pd.read_parquet(runs[0] / "predictions.parquet").query("set == 'target_test'")
    shares = [domain.percentile(domain.distance(model.predict(texts[i], domain.layer).state)) for i in tested["row"]]
    right = (tested["label"] == tested["prediction"]).to_numpy()
    found = []
    for part in domain.accuracy:
        inside = [part["from"] <= share < part["to"] for share in shares]
        found.append(part | {"n": sum(inside), "accuracy": pytest.approx(right[inside].mean())})
    assert domain.accuracy == found
    assert sum(part["n"] for part in domain.accuracy) == len(shares)


# Corrections


def test_corrections_from_many_threads_are_whole_lines(tmp_path):
    from corrections import Corrections

    file = tmp_path / "c.jsonl"
    writers = [Corrections(str(file)) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda one=one: [one.add(text="x\n" * 2000, label="a", predicted="b", model=str(i))
                                                 for i in range(50)])
        for one in writers
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 200
    assert {len(row["text"]) for row in rows} == {4000}


# What can't be started

ENDINGS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import app
out = []
for argv in json.loads(sys.argv[2]):
    try:
        if argv[:1] == ["SPACE"]:
            app.HERE, argv = Path(argv[1]), []
        app.main(argv)
        out.append("it ended")
    except SystemExit as stopped:
        out.append(stopped.code)
print(json.dumps(out))
"""


def damaged_copy(run, where, name, content):
    """A copy of a run with one file that holds `content`."""
    folder = where / f"without-{name}"
    shutil.copytree(run, folder)
    (folder / name).write_bytes(content)
    return folder


def test_a_recorded_text_may_hold_any_line_separator(tmp_path):
    from examples import choose

    text = "one\u2028two\u0085three"
    row = json.dumps({"text": text, "label": "a"}, ensure_ascii=False)
    (tmp_path / "recorded.jsonl").write_text(row + "\n", encoding="utf-8")
    assert choose(tmp_path / "recorded.jsonl") == [text]


def test_what_can_t_be_started_ends_in_one_line(runs, app, tmp_path):
    run = str(runs[0])
    (tmp_path / "damaged").mkdir()
    shutil.copy(runs[0] / "config.json", tmp_path / "damaged")
    shutil.copy(runs[0] / "run.json", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no")
    for name, content in {"broken": '{"title": 1}', "none": '{"title": "a", "models": []}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "space.json").write_text(content)
    port = app[0].rstrip("/").rpartition(":")[2]
    cases = {
        "holds no finished run": [str(tmp_path)],
        "can't be loaded": [str(tmp_path / "damaged")],
        "no space.json": ["SPACE", str(tmp_path)],
        "space.json can't be read": ["SPACE", str(tmp_path / "broken")],
        "space.json names no model": ["SPACE", str(tmp_path / "none")],
        **{
            f"{name} can't be read": [str(damaged_copy(runs[0], tmp_path, name, content))]
            for name, content in {"domain.safetensors": b"no", "recorded.jsonl": b"{}\n", "run.json": b"{}"}.items()
        },
        "given twice": [run, run],
        f"port {port} is taken": [run, "--port", port],
        "--port 99999 is no port": [run, "--port", "99999"],
        "--port 0 is no port": [run, "--port", "0"],
        "can't be written": [run, "--corrections", str(runs[0] / "run.json" / "c.jsonl")],
        "no token": [run, "--corrections", "dataset:me/c"],
    }
    if importlib.util.find_spec("mcp") is None:
        cases["needs the package mcp"] = [run, "--mcp"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_TOKEN")}
    done = subprocess.run([sys.executable, "-c", ENDINGS, str(DEMO), json.dumps(list(cases.values()))], text=True,
                          capture_output=True, env=environment)  # fmt: skip
    lines = done.stderr.splitlines()
    assert json.loads(done.stdout.splitlines()[-1]) == [2] * len(cases), done.stderr
    assert len(lines) == len(cases), done.stderr
    for line, message in zip(lines, cases, strict=True):
        assert line.startswith("error: ")
        assert message in line


DATASET = """
import json, sys
sys.path.insert(0, sys.argv[1])
from corrections import Corrections
from models import Unusable
out = []
for name in ("ns/public", "stranger/private"):
    try:
        Corrections(f"dataset:{name}")
        out.append("it is taken")
    except Unusable as error:
        out.append(str(error))
for name in ("ns/private", "ns/missing"):
    corrections = Corrections(f"dataset:{name}")
    corrections.add(text="a", label="b", predicted="c", model="d")
    corrections.scheduler.trigger().result()
print(json.dumps(out))
"""


def test_corrections_go_to_a_private_dataset_only():
    from loopback_hub import LoopbackHub

    with LoopbackHub() as hub:
        hub.add("dataset", "ns/public", {"a.txt": b"a"})
        hub.add("dataset", "ns/private", {"a.txt": b"a"}, private=True)
        hub.add("dataset", "stranger/private", {"a.txt": b"a"}, private=True)
        done = subprocess.run([sys.executable, "-c", DATASET, str(DEMO)], text=True, capture_output=True, check=True,
                              env=hub.environment(hub.token_write))  # fmt: skip
        public, foreign = json.loads(done.stdout)
        assert "ns/public is public" in public
        assert "stranger/private can't be used" in foreign
        assert set(hub.files("dataset", "ns/public")) == {"a.txt"}
        assert hub.repos["dataset", "ns/missing"].private
        for name in ("ns/private", "ns/missing"):
            (content,) = (v for k, v in hub.files("dataset", name).items() if k.startswith("corrections-"))
            assert json.loads(content)["label"] == "b"


# The command


def test_the_command_refuses_in_one_line(tmp_path, monkeypatch):
    from hf_transfer import demo
    from hf_transfer.errors import UserError

    with pytest.raises(UserError, match="holds no finished run"):
        demo.run_demo([str(tmp_path)])
    with pytest.raises(UserError, match="no run is given"):
        demo.run_demo([])
    monkeypatch.setattr(demo, "load_run", lambda folder: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hf-transfer-nlp\[demo\]'"):
        demo.run_demo([str(tmp_path)])
