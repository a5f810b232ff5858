"""Every format gives the same rows; columns and labels are understood; words that look like blanks stay words."""

from __future__ import annotations

import gzip
import json
import random
import shutil

import datasets
import pandas as pd
import pytest

from hf_transfer.errors import UserError
from hf_transfer.tables import HUB_ID, REWRITTEN_FROM, open_table, read_table

TEXTS = [
    "NA",
    "null",
    "None",
    "nan",
    "N/A",
    "n/a",
    'He said "no, thanks", and left.',
    "two\nlines, with a comma",
    "a tab\tinside",
    "ünïcödé 漢字 🙂",
    "007",
    "true",
    "1,000",
    "'single'",
    " leading space",
    "#hash; semicolon",
]
LABELS = ["bad" if i % 2 else "good" for i in range(len(TEXTS))]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
PLAIN = ("csv", "tsv", "json", "jsonl", "ndjson", "parquet")
ZIPPED = ("csv", "tsv", "json", "jsonl", "ndjson")


def write(file, rows):
    """Write rows in the format of the file's name, .gz included."""
    name = file.name.removesuffix(".gz")
    kind, frame = name.rpartition(".")[2], pd.DataFrame(rows)
    if kind == "parquet":
        frame.to_parquet(file)
        return file
    content = {
        "csv": lambda: frame.to_csv(index=False),
        "tsv": lambda: frame.to_csv(index=False, sep="\t"),
        "json": lambda: json.dumps(rows),
        "jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows),
        "ndjson": lambda: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }[kind]()
    data = content.encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def texts_of(table):
    return table.texts.select(table.rows["row"])["text"][:]


def pairs(table):
    return list(zip(texts_of(table), table.rows["label"], strict=True))


def labels_of(tmp_path, values, name="t.jsonl", **options):
    rows = [{"text": f"text number {i}", "label": value} for i, value in enumerate(values)]
    return list(read_table(str(write(tmp_path / name, rows)), **options).rows["label"])


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_as_spreadsheets_save_it(tmp_path, suffix, separator):
    data = pd.DataFrame(ROWS).to_csv(index=False, sep=separator).encode()
    (tmp_path / f"books.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert pairs(read_table(str(tmp_path / f"books.{suffix}"))) == list(zip(TEXTS, LABELS, strict=True))


@pytest.mark.parametrize("suffix", [*PLAIN, *(f"{kind}.gz" for kind in ZIPPED)])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    table = read_table(str(write(tmp_path / f"books.{suffix}", ROWS)))
    assert pairs(table) == list(zip(TEXTS, LABELS, strict=True))
    assert list(table.rows["row"]) == list(range(len(TEXTS)))
    assert table.name == "books"
    assert table.notes == ["text from column 'text', label from 'label'"]


def test_formats_are_all_tried():
    assert len(PLAIN) + len(ZIPPED) == 11
    from hf_transfer.tables import FORMATS

    assert {f".{kind}" for kind in PLAIN} == set(FORMATS)


@pytest.mark.parametrize("suffix", [*PLAIN, "csv.gz"])
def test_folder_of_files(tmp_path, suffix):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "README.md").write_text("not a table")
    for part in range(3):
        write(folder / f"part{part}.{suffix}", ROWS[part * 6 : part * 6 + 6])
    table = read_table(str(folder))
    assert pairs(table) == list(zip(TEXTS, LABELS, strict=True))
    assert table.name == "books"


def test_folder_of_plain_and_zipped_csv(tmp_path):
    write(tmp_path / "a.csv", ROWS[:9])
    write(tmp_path / "b.csv.gz", ROWS[9:])
    assert pairs(read_table(str(tmp_path))) == list(zip(TEXTS, LABELS, strict=True))


def test_save_to_disk_dataset(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "books")
    table = read_table(str(tmp_path / "books"))
    assert pairs(table) == list(zip(TEXTS, LABELS, strict=True))
    assert "split" not in table.rows


def test_a_dataset_saved_as_tensors(tmp_path):
    datasets.Dataset.from_list(ROWS).with_format("torch").save_to_disk(tmp_path / "books")
    table = read_table(str(tmp_path / "books"))
    assert pairs(table) == list(zip(TEXTS, LABELS, strict=True))


def test_save_to_disk_dataset_dict(tmp_path):
    parts = {"train": ROWS[:10], "validation": ROWS[10:12], "test": ROWS[12:]}
    saved = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    saved["unsupervised"] = datasets.Dataset.from_list([{"text": "no label here", "label": "x"}])
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "books")
    table = read_table(str(tmp_path / "books"))
    assert pairs(table) == list(zip(TEXTS, LABELS, strict=True))
    assert table.rows["split"].value_counts().to_dict() == {"train": 10, "test": 4, "validation": 2}
    assert {t for t, s in zip(texts_of(table), table.rows["split"], strict=True) if s == "test"} == set(TEXTS[12:])
    pool = read_table(str(tmp_path / "books"), labelled=False)
    assert texts_of(pool) == [*TEXTS, "no label here"]
    assert pool.rows["split"].value_counts().to_dict() == {"train": 11, "test": 4, "validation": 2}


def test_dataset_dict_with_one_part_is_not_split(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "books")
    table = read_table(str(tmp_path / "books"))
    assert pairs(table) == list(zip(TEXTS, LABELS, strict=True))
    assert "split" not in table.rows


def test_csv_quoting_line_ends_and_bom(tmp_path):
    body = 'text,label\r\n"commas, and ""quotes""\nand a line",good\r\nplain,bad\r\n'
    for number, data in enumerate(
        (body.encode(), b"\xef\xbb\xbf" + body.encode(), body.replace("\r\n", "\n").encode())
    ):
        file = tmp_path / f"t{number}.csv"
        file.write_bytes(data)
        assert pairs(read_table(str(file))) == [('commas, and "quotes"\nand a line', "good"), ("plain", "bad")]


def test_numbers_in_csv_texts_are_not_reformatted(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("text,label\n1.50,1\n007,0\n1e5,1\n2020-01-01,0\n")
    assert pairs(read_table(str(file))) == [("1.50", "1"), ("007", "0"), ("1e5", "1"), ("2020-01-01", "0")]
    file = tmp_path / "numbers.csv"
    file.write_text("text,label\n1.50,1\n007,0\n1e5,1\n")
    assert pairs(read_table(str(file))) == [("1.50", "1"), ("007", "0"), ("1e5", "1")]


def test_a_csv_column_keeps_its_type_through_a_long_file(tmp_path):
    """The reader takes 10 000 rows at a time; words that come later don't change what numbers before them were."""
    rows = [{"text": f"{i:07}", "label": "01"[i % 2]} for i in range(10_500)]
    rows[-1] = {"text": "words at last", "label": "spam"}
    table = read_table(str(write(tmp_path / "t.csv", rows)))
    assert pairs(table) == [(row["text"], row["label"]) for row in rows]


def test_unquoted_commas_are_refused_not_shifted(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("text,label\n" + "good, very good,pos\nbad, very bad,neg\n" * 3)
    with pytest.raises(UserError, match="more fields than its header"):
        read_table(str(file))
    file = tmp_path / "later.csv"
    file.write_text("text,label\nfine,pos\nbad, very bad,neg\n")
    with pytest.raises(UserError, match=r"can't be read as csv.*line 3"):
        read_table(str(file))


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        (("text", "label"), "text", "label"),
        (("id", "Review", "Sentiment"), "Review", "Sentiment"),
        (("title", "body", "stars"), "body", "stars"),
        (("sentence", "text", "label"), "text", "label"),
        (("tweet", "is_spam"), "tweet", "is_spam"),
        (("REVIEW_BODY", "rating"), "REVIEW_BODY", "rating"),
    ],
)
def test_columns_are_guessed(tmp_path, columns, text, label):
    rows = [{column: f"{column} {i}" if column != label else "xy"[i % 2] for column in columns} for i in range(6)]
    table = read_table(str(write(tmp_path / "t.csv", rows)))
    assert texts_of(table) == [f"{text} {i}" for i in range(6)]
    assert list(table.rows["label"]) == ["x", "y"] * 3
    assert table.notes[0] == f"text from column '{text}', label from '{label}'"


def test_the_only_string_column_is_the_text(tmp_path):
    rows = [{"words": f"some words {i}", "label": i % 2} for i in range(4)]
    assert texts_of(read_table(str(write(tmp_path / "t.jsonl", rows)))) == [r["words"] for r in rows]


def test_columns_asked_for_win_and_doubt_is_an_error(tmp_path):
    rows = [{"text": f"a {i}", "other": f"b {i}", "label": "x", "kind": "yz"[i % 2]} for i in range(4)]
    file = str(write(tmp_path / "t.csv", rows))
    table = read_table(file, text_column="other", label_column="kind")
    assert pairs(table) == [("b 0", "y"), ("b 1", "z"), ("b 2", "y"), ("b 3", "z")]
    with pytest.raises(UserError, match=r"no column 'knid' \(--label_column\) \(did you mean 'kind'\?\)"):
        read_table(file, label_column="knid")
    with pytest.raises(UserError, match="same column 'text'"):
        read_table(file, label_column="text")
    doubtful = str(write(tmp_path / "d.csv", [{"one": "a", "two": "b", "three": "c"}]))
    with pytest.raises(UserError, match=r"--text_column.*one, two, three"):
        read_table(doubtful)
    assert open_table(file, "other")[1] == "other"


def test_unlabelled_needs_no_label(tmp_path):
    table = read_table(str(write(tmp_path / "t.jsonl", [{"text": "a"}, {"text": "b"}])), labelled=False)
    assert texts_of(table) == ["a", "b"]
    assert "label" not in table.rows


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["pos", " neg ", "pos"], ["pos", "neg", "pos"]),
        ([1, 0, -1], ["1", "0", "-1"]),
        ([1.0, 0.0, 2.0], ["1", "0", "2"]),
        (["1.0", "0", "2.0"], ["1", "0", "2"]),
        ([True, False, True], ["true", "false", "true"]),
        (["NA", "null", "None"], ["NA", "null", "None"]),
    ],
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_labels_become_names(tmp_path, values, names, name):
    assert labels_of(tmp_path, values, name) == names


def test_class_labels_become_their_names(tmp_path):
    rows = datasets.Dataset.from_dict(
        {"text": [f"text {i}" for i in range(40)], "label": [2, 0, 1, -1] + [0, 1] * 18},
        features=datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zero", "one", "two"])}
        ),
    )
    rows.save_to_disk(tmp_path / "t")
    table = read_table(str(tmp_path / "t"))
    assert list(table.rows["label"]) == ["two", "zero", "one"] + ["zero", "one"] * 18
    assert table.notes[1] == "dropped 1 of 40 rows with no label"


def test_labels_that_are_no_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"fractions such as 0\.5"):
        labels_of(tmp_path, [0.5, 1.0, 0.0])
    with pytest.raises(UserError, match="holds lists"):
        labels_of(tmp_path, [["a"], ["b"]], "lists.jsonl")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_few_missing_values_are_dropped_and_counted(tmp_path, suffix):
    rows = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(40)]
    rows[3]["text"], rows[5]["text"], rows[7]["label"] = None, "  ", None
    table = read_table(str(write(tmp_path / f"t.{suffix}", rows)))
    assert table.notes[1:] == ["dropped 2 of 40 rows with an empty text", "dropped 1 of 38 rows with no label"]
    assert list(table.rows["row"]) == [i for i in range(40) if i not in (3, 5, 7)]
    assert set(table.rows["label"]) == {"x", "y"}


def test_many_missing_values_are_refused(tmp_path):
    rows = [{"text": f"text {i}" if i % 4 else "", "label": "xy"[i % 2]} for i in range(40)]
    with pytest.raises(UserError, match=r"10 of 40 rows have an empty text \(25%, over 5%\)"):
        read_table(str(write(tmp_path / "t.csv", rows)))


def test_split_and_domain_columns(tmp_path):
    names = ["train", "Training", "dev", "valid", "val", "validation", "TEST", "test"]
    rows = [{"text": f"t {i}", "label": "x", "split": n, "shop": f"s{i % 2}"} for i, n in enumerate(names)]
    file = str(write(tmp_path / "t.csv", rows))
    table = read_table(file, domain_column="shop")
    assert list(table.rows["split"]) == ["train"] * 2 + ["validation"] * 4 + ["test"] * 2
    assert list(table.rows["domain"]) == ["s0", "s1"] * 4
    with pytest.raises(UserError, match=r"no column 'store' \(--domain_column\)"):
        read_table(file, domain_column="store")
    rows[0]["split"] = "holdout"
    with pytest.raises(UserError, match="'split' holds holdout"):
        read_table(str(write(tmp_path / "u.csv", rows)))


def test_max_rows_keeps_positions_in_the_file(tmp_path):
    rows = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(200)]
    file = str(write(tmp_path / "t.csv", rows))
    table, again = read_table(file, max_rows=50), read_table(file, max_rows=50)
    assert len(table.rows) == 50
    assert table.rows.equals(again.rows)
    assert all(text == f"text {row}" for text, row in zip(texts_of(table), table.rows["row"], strict=True))
    assert table.rows["row"].max() > 100  # a sample, not the head
    assert table.drawn == {"t": "--max_rows 50 reads 50 of its 200 rows"}
    for enough in (200, 500):
        table = read_table(file, max_rows=enough)
        assert (list(table.rows["row"]), table.drawn) == (list(range(200)), {})


def shops():
    """Three domains of 720, 360 and 20 rows; the large ones have 70, 20 and 10 % of the labels, and test a quarter."""
    rows = [{"text": f"{shop} {i}", "label": "aaaaaaabbc"[i % 10], "split": "test" if i // 10 % 4 == 0 else "train",
             "shop": shop}
            for shop, count in (("books", 720), ("mugs", 360), ("hats", 20)) for i in range(count)]  # fmt: skip
    random.Random(3).shuffle(rows)
    return rows


def test_max_rows_of_each_domain_in_the_shares_of_its_labels_and_splits(tmp_path):
    file = str(write(tmp_path / "t.csv", shops()))
    table = read_table(file, domain_column="shop", max_rows=40)
    counts = table.rows.groupby(["domain", "split", "label"]).size()
    for shop in ("books", "mugs"):
        assert counts[shop].to_dict() == {("test", "a"): 7, ("test", "b"): 2, ("test", "c"): 1,
                                          ("train", "a"): 21, ("train", "b"): 6, ("train", "c"): 3}  # fmt: skip
    assert counts["hats"].sum() == 20
    assert table.drawn == {"books": "--max_rows 40 reads 40 of its 720 rows",
                           "mugs": "--max_rows 40 reads 40 of its 360 rows"}  # fmt: skip


def test_max_rows_draws_the_same_rows_in_any_order(tmp_path):
    rows = shops()
    for row in rows[::7]:
        row["text"] = "the same again"  # copies
    drawn = []
    for number in range(3):
        table = read_table(str(write(tmp_path / f"{number}.jsonl", rows)), domain_column="shop", max_rows=30)
        drawn.append(
            sorted(zip(texts_of(table), *(table.rows[name] for name in ("domain", "label", "split")), strict=True))
        )
        random.Random(number).shuffle(rows)
    assert drawn[0] == drawn[1] == drawn[2]
    copies = sum(text == "the same again" for text, *_ in drawn[0])
    assert 2 < copies < 30  # 1 in 7 of 80: neither all of them nor none


def test_max_rows_draws_the_same_rows_of_a_rewritten_table(tmp_path):
    rows = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(100)]
    new = [row | {"text": row["text"].replace("text", "word"), REWRITTEN_FROM: row["text"]} for row in rows]
    one, other = (read_table(str(write(tmp_path / f"{name}.jsonl", table)), max_rows=20)
                  for name, table in (("one", rows), ("other", new)))  # fmt: skip
    assert list(one.rows["row"]) == list(other.rows["row"])
    assert list(one.rows["key"]) == list(other.rows["key"])
    assert all(text.startswith("word") for text in texts_of(other))


def test_max_rows_of_one_domain_are_those_of_its_own_table(tmp_path):
    rows = shops()
    together = read_table(str(write(tmp_path / "t.csv", rows)), domain_column="shop", max_rows=40)
    alone = read_table(str(write(tmp_path / "mugs.csv", [r for r in rows if r["shop"] == "mugs"])), max_rows=40)
    assert set(texts_of(alone)) == {text for text in texts_of(together) if text.startswith("mugs")}


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (2, {"a": 1, "b": 1}),  # fewer than labels: the commonest
        (4, {"a": 1, "b": 1, "c": 1, "d": 1}),
        (6, {"a": 3, "b": 1, "c": 1, "d": 1}),
        (50, {"a": 30, "b": 17, "c": 2, "d": 1}),
        (99, {"a": 59, "b": 35, "c": 4, "d": 1}),
    ],
)
def test_max_rows_and_rare_labels(tmp_path, most, expected):
    rows = [{"text": f"{i}", "label": label} for i, label in enumerate("a" * 60 + "b" * 35 + "c" * 4 + "d")]
    table = read_table(str(write(tmp_path / "t.csv", rows)), max_rows=most)
    assert table.rows["label"].value_counts().to_dict() == expected


def test_max_rows_keeps_the_splits_of_many_rare_labels(tmp_path):
    """Forty labels of ten rows each, of which each must round: together they keep the splits' shares all the same."""
    rows = [{"text": f"{i}", "label": f"l{i // 10}", "split": ("train",) * 7 + ("test",) * 2 + ("dev",)}
            for i in range(400)]  # fmt: skip
    rows = [row | {"split": row["split"][i % 10]} for i, row in enumerate(rows)]
    table = read_table(str(write(tmp_path / "t.csv", rows)), max_rows=100)
    assert set(table.rows["label"].value_counts()) <= {2, 3}
    assert table.rows["split"].value_counts().to_dict() == {"train": 70, "test": 20, "validation": 10}


def test_max_rows_and_missing_labels(tmp_path):
    """What is missing keeps its share too, rounded down: one of few rows would be more than may be missing."""
    rows = [{"text": f"{i}", "label": None if i % 25 == 0 else "ab"[i % 2]} for i in range(500)]
    file = str(write(tmp_path / "t.jsonl", rows))
    table = read_table(file, max_rows=100)
    assert table.rows["label"].value_counts().to_dict() == {"a": 48, "b": 48}
    assert "dropped 4 of 100 rows with no label" in table.notes
    table = read_table(file, max_rows=12)
    assert table.rows["label"].value_counts().to_dict() == {"a": 6, "b": 6}
    for row in rows[:60]:
        row["label"] = None
    with pytest.raises(UserError, match="15 of 100 rows have no label"):
        read_table(str(write(tmp_path / "u.jsonl", rows)), max_rows=100)


def test_max_rows_of_an_unlabelled_table(tmp_path):
    rows = [{"text": f"text {i}", "label": "rare" if i < 5 else "common"} for i in range(400)]
    table = read_table(str(write(tmp_path / "t.csv", rows)), labelled=False, max_rows=100)
    assert len(table.rows) == 100
    assert "label" not in table.rows
    assert 150 < table.rows["row"].mean() < 250


def test_max_rows_and_empty_texts(tmp_path):
    """Empty texts are drawn like others, for nobody knows before they are read."""
    rows = [{"text": "" if i % 30 == 0 else f"text {i}", "label": "ab"[i % 2]} for i in range(600)]
    table = read_table(str(write(tmp_path / "t.jsonl", rows)), max_rows=300)
    assert 280 < len(table.rows) < 300
    assert f"dropped {300 - len(table.rows)} of 300 rows with an empty text" in table.notes


@pytest.mark.parametrize(
    ("path", "name"),
    [("books.csv", "books"), ("books.labeled.jsonl.gz", "books"), ("a@b:c/books.tsv", "books"), ("x:y", "x:y")],
)
def test_domain_is_named_after_the_file(tmp_path, path, name):
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    if "." in file.name:
        write(file, ROWS)
    else:
        file.mkdir()
        write(file / "rows.csv", ROWS)
    assert read_table(str(file)).name == name


@pytest.mark.parametrize(
    ("spec", "name", "config", "revision"),
    [
        ("imdb", "imdb", None, None),
        ("stanfordnlp/imdb", "stanfordnlp/imdb", None, None),
        ("nyu-mll/glue:sst2", "nyu-mll/glue", "sst2", None),
        ("imdb@main", "imdb", None, "main"),
        ("o_r-g/na.me-1:conf.ig-2@v1.0", "o_r-g/na.me-1", "conf.ig-2", "v1.0"),
        ("a/b@refs/convert/parquet", "a/b", None, "refs/convert/parquet"),
        ("a/b:en@0123456789abcdef", "a/b", "en", "0123456789abcdef"),
    ],
)
def test_hub_ids_are_taken_apart(spec, name, config, revision):
    match = HUB_ID.fullmatch(spec)
    assert match is not None
    assert (match["name"], match["config"], match["revision"]) == (name, config, revision)


@pytest.mark.parametrize(
    "spec", ["", "a/b/c", "/a/b", "./a", "../a/b", ".a", "a b", "a/b:", "a/b@", "a/b:c:d", "a\\b", "http://x/y", "~/a"]
)
def test_what_is_no_hub_id(spec):
    assert HUB_ID.fullmatch(spec) is None


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "books.csv", ROWS)
    with pytest.raises(UserError, match=r"no file or folder .*boks\.csv' \(did you mean 'books\.csv'\?\)"):
        read_table(str(tmp_path / "boks.csv"))


def test_unreadable_files_say_why(tmp_path):
    good = write(tmp_path / "good.csv.gz", ROWS * 50)
    cases = {
        "empty.csv": (b"", "is empty"),
        "utf16.csv": ("text,label\na,b\n".encode("utf-16"), "not UTF-8"),
        "latin.csv": ("text,label\ncafé au lait avec du sucre,b\n".encode("latin1"), "byte 0xe9 in line 2"),
        "cut.csv.gz": (good.read_bytes()[:-40], "not a whole gzip"),
        "header.csv": (b"text,label\n", "holds no rows"),
        "empty.json": (b"[]", "holds no rows"),
        "table.xlsx": (b"PK", "can't tell the format"),
        "table.parquet.gz": (gzip.compress(b"x"), "can't tell the format"),
        "broken.jsonl": (b'{"text": "a", "label": \n', "can't be read as json"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_table(str(tmp_path / name))
    folder = tmp_path / "mixed"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no csv"):
        read_table(str(folder))
    shutil.copy(good, folder)
    write(folder / "a.jsonl", ROWS)
    with pytest.raises(UserError, match=r"mixes \.csv, \.jsonl"):
        read_table(str(folder))
