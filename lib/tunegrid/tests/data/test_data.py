"""Rows are read alike from every kind of file, split without leaks, and refused in one sentence
that names them.
"""

import gzip
import json
from collections import Counter
from dataclasses import replace
from itertools import chain

import pandas as pd
import pytest

from tunegrid.data import sources
from tunegrid.data.overview import doubts, overview_lines
from tunegrid.data.sources import StoredRows, tables
from tunegrid.data.splits import check_files, check_labels_agree, check_row, load_splits
from tunegrid.errors import InputError
from tunegrid.grid import more_tasks
from tunegrid.grid.backbones import BERT, checkpoint_source
from tunegrid.grid.recipes import Profile
from tunegrid.grid.tasks import QA, SA, SUM, Carve


def reviews(negative, positive):
    labels = [0] * negative + [1] * positive
    rows = []
    for i, label in enumerate(labels):
        rows.append({"label": label, "title": f"title {i}", "content": f"review {i}"})
    return rows


def questions(titles, first=0):
    """Three questions on each article."""
    rows = []
    for number in range(3 * first, 3 * (first + titles)):
        title, i = divmod(number, 3)
        rows.append(
            {
                "id": f"{title}-{i}",
                "title": f"title {title}",
                "context": "a red car",
                "question": f"what {title}-{i}?",
                "answers": {"text": ["red car"], "answer_start": [2]},
            }
        )
    return rows


REVIEW = reviews(0, 1)[0]
QUESTION = questions(1)[0]
ARTICLE = {"id": "a", "article": "A dog ran.", "highlights": "Dog ran."}
OTHERS = questions(1, first=50)
OTHER = ARTICLE | {"article": "b"}


def full_profile(root=None):
    return Profile(id="full", data_root=root)


def put(root, task, **splits):
    """Writes each split as a file of JSON lines; returns the profile that reads them."""
    folder = root / task.folder
    folder.mkdir(exist_ok=True, parents=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return full_profile(root)


def refusal(task, profile, read=load_splits):
    """The one sentence that refuses unusable rows."""
    with pytest.raises(InputError) as caught:
        read(task, profile)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sources


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """A folder of the test's own for the copies that `datasets` makes of Parquet files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def review_folder(tmp_path):
    """An empty folder for files of reviews."""
    folder = tmp_path / SA.folder
    folder.mkdir()
    return folder


TRAIN = questions(4)


def write_parquet(root):
    """Writes train in two shards, as on the hub."""
    import datasets

    files = {
        "train-00000-of-00002": TRAIN[:7],
        "train-00001-of-00002": TRAIN[7:],
        "validation": OTHERS,
        "train_old": questions(9),  # no part of the split whose name it has
    }
    folder = root / QA.folder
    folder.mkdir()
    for name, rows in files.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")


def write_saved_dataset(root):
    import datasets

    splits = datasets.DatasetDict()
    splits["train"] = datasets.Dataset.from_list(TRAIN)
    splits["validation"] = datasets.Dataset.from_list(OTHERS)
    splits.save_to_disk(root / QA.folder)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("write", [write_parquet, write_saved_dataset])
def test_rows_that_the_library_datasets_writes_are_read_as_they_were(tmp_path, write):
    write(tmp_path)
    by_name = tables(QA, tmp_path)
    assert list(by_name["train"].take(range(12))) == TRAIN
    assert list(by_name["validation"].take([2, 0])) == [OTHERS[2], OTHERS[0]]
    assert list(by_name["train"].column("title")) == [row["title"] for row in TRAIN]


def test_a_missing_folder_is_named_with_what_is_there_instead(tmp_path):
    (tmp_path / "polarity").mkdir()
    missing = "no folder 'amazon_polarity' below --data-root"
    sentence = refusal(SA, full_profile(tmp_path))
    assert f"{missing} {tmp_path} (it holds polarity)" in sentence
    sentence = refusal(SA, full_profile(tmp_path / "none"))
    assert f"{missing} {tmp_path / 'none'} (which does not exist)" in sentence


@pytest.mark.parametrize(
    ("suffix", "declared_type"),
    [("csv", int), ("jsonl", int), ("jsonl", str)],
)
def test_labels_may_be_names_or_numbers(tmp_path, review_folder, suffix, declared_type):
    numbered_rows = reviews(20, 20)
    named_rows = pd.DataFrame(row | {"label": SA.labels[row["label"]]} for row in numbered_rows)
    path = review_folder / f"train.{suffix}"
    if suffix == "csv":
        named_rows.to_csv(path, index=False)
    else:
        named_rows.to_json(path, orient="records", lines=True)
    task = replace(SA, columns=SA.columns | {"label": declared_type})
    assert list(tables(task, tmp_path)["train"].take(range(40))) == numbered_rows
    named = load_splits(task, full_profile(tmp_path))
    numbered = load_splits(SA, put(tmp_path / "numbers", SA, train=numbered_rows))
    assert named.fingerprint == numbered.fingerprint


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        (("negative", "positive"), 1),
        (("1", "2"), 0),  # the name of the first label
    ],
)
def test_digits_are_a_labels_number_unless_labels_are_named_by_digits(labels, number):
    convert = sources.labeller(replace(SA, labels=labels))
    assert convert({"label": "1"}, "") == {"label": number}


CSV = 'label,title,content\n1,t,"a, b\nc"\n0,t,c\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "train.csv",
            CSV + "meh,t,c\n",
            "train.csv, row 4: invalid label 'meh' in column 'label'",
        ),
        (
            "train.csv",
            CSV + "1,t\n",
            "train.csv cannot be read (ArrowInvalid: CSV parse error: Expected 3 columns",
        ),
        (
            "train.csv",
            CSV + "1;t;c\n",
            "; header and rows have different numbers of columns: use",
        ),
        ("train.csv", "", "; it is empty: write a line of column names, and rows"),
        ("train.csv", CSV + "1,t,caf\xe9\n", "; save it as UTF-8"),
        ("train.json", '[{"label": 1}, 5]', "train.json, row 2: expected a JSON object"),
        ("train.json", '[{"label": 1}', "train.json: invalid JSON"),
        ("train.json", '[{"label": 1, "label": 0}]', "key 'label' is there twice"),
        (
            "train.jsonl",
            json.dumps(REVIEW) + '\n\n{"label": 1,',
            "train.jsonl, line 3: invalid JSON",
        ),
        (
            "train.jsonl",
            '{"label": 0, "label": 1}',
            "train.jsonl, line 1: invalid JSON (key 'label' is there twice)",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(
    tmp_path, review_folder, name, content, words
):
    (review_folder / name).write_text(content, encoding="latin-1")  # so that é is not UTF-8
    assert words in refusal(SA, full_profile(tmp_path))


# Two of these are longer than the megabyte of CSV that pyarrow reads at a time
LINES = 'a, "b"; c\n' * 60_000
FRAME = pd.DataFrame(
    {
        "label": [0, 1, 1],
        "title": ["07", "08", "09"],  # not numbers
        "content": [LINES, LINES, ""],
        "created": ["2020-01-01 10:00:00"] * 3,  # not dates
    }
)
WRITERS = {
    "train.csv": lambda path: FRAME.to_csv(path, index=False, sep=";", encoding="utf-8-sig"),
    "train.CSV": lambda path: FRAME.to_csv(path, index=False, sep="|"),
    "train.tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "train.csv.gz": lambda path: FRAME.to_csv(path, index=False),
    "train.tsv.gz": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "train.json": lambda path: FRAME.to_json(path, orient="records", indent=1),
    "train.json.gz": lambda path: FRAME.to_json(path, orient="records"),
    "train.jsonl": lambda path: FRAME.to_json(path, orient="records"),
    "train.jsonl.gz": lambda path: FRAME.to_json(path, orient="records", lines=True),
    "train.parquet": lambda path: FRAME.to_parquet(path, index=False),
}


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("held", [0, 2**25])
@pytest.mark.parametrize("name", WRITERS)
def test_files_are_read_as_pandas_writes_them(tmp_path, review_folder, monkeypatch, name, held):
    monkeypatch.setattr(sources, "HELD_BYTES", held)
    WRITERS[name](review_folder / name)
    (review_folder / "dataset_info.json").write_text('{"splits": {}}')  # no split
    for first in (False, True):
        by_name = tables(SA, tmp_path, first=first)
        assert by_name.keys() == {"train"}
        assert list(by_name["train"].take([0, 1, 2])) == FRAME.to_dict("records")


def test_a_task_names_its_splits_and_files(tmp_path):
    put(tmp_path, SA, learn=reviews(20, 20), check=reviews(3, 3))
    folder = tmp_path / SA.folder
    files = {"learn": folder / "learn.jsonl", "check": folder / "check.jsonl"}
    task = replace(SA, train="learn", test="check", files=files)
    assert task.has_own_rows
    assert task.splits == ("learn", "check")
    assert list(tables(task, None)["check"].take(range(6))) == reviews(3, 3)
    gone = replace(task, files=files | {"check": tmp_path / "gone.csv"})
    sentence = refusal(gone, full_profile())
    assert f"task 'sa': {tmp_path / 'gone.csv'}, which its files name, is not there" in sentence


def test_relative_files_of_a_task_are_in_the_folder_that_has_them(tmp_path):
    put(tmp_path, SA, learn=reviews(20, 20), check=reviews(3, 3))
    files = {"learn": "learn.jsonl", "check": "check.jsonl"}
    task = replace(SA, train="learn", test="check", files=files)
    assert not task.has_own_rows
    sentence = refusal(task, full_profile())
    assert "learn.jsonl, which its files name, is not beside the --grid file" in sentence
    assert len(tables(task, tmp_path)["learn"]) == 40
    assert task.with_files_in(tmp_path / SA.folder).has_own_rows
    assert task.with_files_in(tmp_path) is task  # which has none of them


MOVED = questions(1)[1] | {"answers": {"text": ["red car"], "answer_start": [3]}}
NO_CONTENT = [{"label": 1, "title": "t", "text": "c"}]
GOOD_REVIEW = REVIEW | {"label": "good"}


@pytest.mark.parametrize(
    ("task", "splits", "words"),
    [
        (SA, {}, "one file per split, as in train.jsonl"),
        (
            SA,
            {"train": NO_CONTENT},
            "train.jsonl: column 'content' is missing; amazon_polarity needs label, title, content "
            "and split 'train' has label, title, text",
        ),
        (SA, {"train": reviews(1, 1)}, "15% of"),
        (
            QA,
            {"train": questions(10), "validation": []},
            "no rows to use; split 'validation' of squad is empty",
        ),
        # And none was carved out of it
        (QA, {"train": [], "validation": OTHERS}, "no rows to use"),
        (
            QA,
            {"train": questions(10)},
            "squad has no split 'validation', only train; give one file or folder per split",
        ),
        (
            QA,
            {"train": [*questions(10), QUESTION | {"title": None}], "validation": OTHERS},
            "train.jsonl",
        ),
        (
            QA,
            {"train": questions(10), "validation": [QUESTION, MOVED]},
            "jsonl, row 2 (id 0-1): answer 'red car'",
        ),
        (
            SUM,
            {"train": [ARTICLE], "validation": [OTHER], "test": [ARTICLE]},
            "each is in a scored split, too",
        ),
        (
            SA,
            {"train": reviews(0, 9)},
            "all training rows are 'positive'; give rows of another class, too",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_a_sentence(tmp_path, task, splits, words):
    assert words in refusal(task, put(tmp_path, task, **splits))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([REVIEW, *NO_CONTENT], "train.jsonl, row 2: column 'content' holds None"),
        ([*reviews(600, 600), GOOD_REVIEW], "train.jsonl, row 1201: invalid label 'good'"),
    ],
)
def test_rows_of_small_files_are_checked_before_anything_is_loaded(tmp_path, rows, words):
    assert words in refusal(SA, put(tmp_path, SA, train=rows), read=check_files)


def test_of_large_files_the_first_rows_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "HELD_BYTES", 0)
    rows = reviews(0, sources.FIRST)  # of one class, as in a sorted file
    assert check_files(SA, put(tmp_path, SA, train=[*rows, GOOD_REVIEW])) is None
    profile = put(tmp_path, SA, train=[GOOD_REVIEW, *rows])
    assert "row 1: invalid label" in refusal(SA, profile, read=check_files)


def test_checked_rows_are_those_that_are_trained_on(tmp_path):
    profile = put(tmp_path, SA, train=reviews(40, 20))
    assert check_files(SA, profile).fingerprint == load_splits(SA, profile).fingerprint


@pytest.mark.parametrize(
    ("of_task", "of_profile", "learned"),
    [
        (None, None, 68),  # 70 % of 50 for each label, less rounding: 50 - 8 - 8 = 34
        (20, None, 20),
        (20, 30, 30),
        (20, 0, 68),
    ],
)
def test_a_task_limits_the_rows_that_are_learned_unless_the_profile_does(
    tmp_path, of_task, of_profile, learned
):
    profile = replace(put(tmp_path, SA, train=reviews(50, 50)), train_rows=of_profile, caps={})
    assert len(load_splits(replace(SA, train_rows=of_task), profile).train) == learned


def test_rows_of_the_hub_bring_its_commit_and_weights_are_asked_for_at_the_pinned_one(monkeypatch):
    import datasets

    split = datasets.Dataset.from_list(reviews(1, 1))
    split.info.download_checksums = {f"hf://datasets/x@{'a' * 40}/train.parquet": {}}
    monkeypatch.setattr("datasets.load_dataset", lambda *names, trust_remote_code: {"train": split})
    [table] = tables(SA, None).values()
    assert table.revision == "a" * 40
    assert table.origin == f"hub:{SA.dataset}/train"
    source = checkpoint_source(BERT, full_profile())
    assert source == (BERT.checkpoint, {"revision": BERT.revision})


def test_an_unreachable_hub_is_one_sentence_with_the_way_round_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    task = replace(SA, dataset="nobody/nothing_at_all")
    assert refusal(task, full_profile()).endswith(
        "local folders with --data-root=DIR and --checkpoint-root=DIR"
    )


# Large files


@pytest.mark.usefixtures("own_cache")
def test_rows_that_stay_on_disk_are_the_same_rows_in_the_same_splits(
    tmp_path, review_folder, monkeypatch
):
    more_columns = {"title": "ä\u2028", "date": "2020-01-01"}  # which stays a text
    lines = [json.dumps(row | more_columns, ensure_ascii=False) for row in reviews(40, 20)]
    (review_folder / "train.jsonl").write_text("\n\r\n" + "\n".join(lines))
    profile = full_profile(tmp_path)
    held = load_splits(SA, profile)
    monkeypatch.setattr(sources, "HELD_BYTES", 0)
    monkeypatch.setattr(sources, "ROWS_AT_ONCE", 4)
    stored = load_splits(SA, profile)
    assert isinstance(stored.train, StoredRows)
    assert list(map(list, split_rows(stored))) == split_rows(held)
    rows = list(stored.train)
    assert len(stored.train) == 42
    assert stored.train[-1] == rows[-1]
    assert stored.train[2:7] == rows[2:7]
    assert stored.train[::-3] == rows[::-3]
    with pytest.raises(IndexError):
        stored.train[42]
    assert stored.fingerprint == held.fingerprint
    assert stored.dropped == held.dropped
    assert stored.origins == held.origins


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("block", [2**24, 50])
def test_large_compressed_lines_are_the_same_rows(tmp_path, review_folder, monkeypatch, block):
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    lines = "\n".join(json.dumps(row | {"when": "2020-01-01"}) for row in reviews(40, 20))
    (review_folder / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    held = load_splits(SA, full_profile(tmp_path))
    monkeypatch.setattr(sources, "HELD_BYTES", 0)
    stored = load_splits(SA, full_profile(tmp_path))
    assert isinstance(stored.train, StoredRows)
    assert stored.fingerprint == held.fingerprint


@pytest.mark.usefixtures("own_cache")
def test_a_column_may_be_empty_in_all_first_rows_of_a_large_file(
    tmp_path, review_folder, monkeypatch
):
    monkeypatch.setattr(sources, "HELD_BYTES", 0)
    monkeypatch.setattr(sources, "FIRST", 10)
    rows = [row | {"title": None, "score": None} for row in reviews(20, 0)]
    rows += [row | {"title": "late", "score": 4.5} for row in reviews(20, 20)[20:]]
    (review_folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [table] = tables(SA, tmp_path).values()
    assert table.names == ("label", "title", "content")  # no task reads the score
    assert table.column("title") == [None] * 20 + ["late"] * 20


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"label": 1, "title": "t", "content": "x", "content": "y"}', "line 62: invalid JSON"),
        ('{"label": 1, "title": "t", "content": 7}', "changed from string to number in row 61"),
        ('{"label": 1, "title": "t", "content": "\\ud800"}', "row 61"),
        ('{"label": 1, "title": "a"} {"label": 1, "title": "b"}', "line 62: invalid JSON"),
        ("[1, 2]", "line 62: expected a JSON object"),
        (b'{"label": 1, "title": "t", "content": "caf\xe9"}', "line 62: invalid JSON"),
    ],
)
def test_a_bad_row_far_down_a_large_file_is_one_sentence(
    tmp_path, review_folder, monkeypatch, line, sentence
):
    monkeypatch.setattr(sources, "HELD_BYTES", 0)
    monkeypatch.setattr(sources, "FIRST", 10)
    lines = [json.dumps(row).encode() for row in [*reviews(40, 21)]]
    lines.append(line if isinstance(line, bytes) else line.encode())
    (review_folder / "train.jsonl").write_bytes(b"\n".join(lines))
    assert sentence in refusal(SA, full_profile(tmp_path))


# Splits


def test_sentiment_is_split_70_15_15_within_each_label_and_no_review_is_lost(tmp_path):
    train = str(tmp_path / "amazon_polarity" / "train.jsonl")
    splits = load_splits(SA, put(tmp_path, SA, train=reviews(40, 20)))
    assert label_counts(splits) == [{0: 28, 1: 14}, {0: 6, 1: 3}, {0: 6, 1: 3}]
    contents = {row["content"] for row in chain(*split_rows(splits))}
    assert contents == {f"review {i}" for i in range(60)}
    carved = f"15% of {train}"
    assert splits.origins == {"train": train, "validation": carved, "test": carved}


def split_rows(splits):
    return [splits.train, splits.validation, splits.test]


def label_counts(splits):
    """The number of rows with each label, in train, validation and test."""
    return [Counter(row["label"] for row in rows) for rows in split_rows(splits)]


def test_splits_that_score_may_have_one_class_alone(tmp_path):
    task = replace(SA, validation="validation", test="test")
    positive = reviews(0, 2)
    profile = put(
        tmp_path,
        task,
        train=reviews(2, 2),
        validation=renamed("validation", positive),
        test=renamed("test", positive),
    )
    assert len(load_splits(task, profile).train) == 4


def renamed(prefix, rows):
    """Reviews whose texts differ from those of `rows`."""
    return [row | {"content": f"{prefix} {row['content']}"} for row in rows]


def test_questions_about_one_article_stay_on_one_side(tmp_path):
    scored = questions(2, first=50)
    splits = load_splits(QA, put(tmp_path, QA, train=questions(20), validation=scored))
    train_titles = {row["title"] for row in splits.train}
    validation_titles = {row["title"] for row in splits.validation}
    assert len(train_titles) == 18
    assert len(validation_titles) == 2
    assert train_titles.isdisjoint(validation_titles)
    assert splits.test == scored


def articles(*texts):
    return [ARTICLE | {"article": text} for text in texts]


def test_copies_of_rows_that_score_are_left_out_and_counted(tmp_path):
    profile = put(
        tmp_path,
        SUM,
        train=articles("a", "B  b", "c", "c"),
        validation=articles("b b", "d"),
        test=articles("d", "a"),
    )
    splits = load_splits(SUM, profile)
    assert split_rows(splits) == [articles("c", "c"), articles("b b"), articles("d", "a")]
    assert splits.dropped == {"train": 2, "validation": 1}
    overview = overview_lines(SUM, splits, 80)
    assert "  left out          3  texts that a scored split has, too" in overview


def own_test_profile(root, task=SA, **splits):
    return replace(put(root, task, **splits), own_test=True)


def test_own_test_scores_on_the_data_sets_own_rows(tmp_path):
    own_rows = renamed("own", reviews(2, 2))
    splits = load_splits(SA, own_test_profile(tmp_path, train=reviews(40, 20), test=own_rows))
    assert len(splits.train) == 51
    assert len(splits.validation) == 9
    assert splits.test == own_rows


def test_copies_of_own_test_rows_are_left_out_of_train_and_validation(tmp_path):
    copies = [row | {"title": "again"} for row in reviews(2, 2)]  # under another title
    splits = load_splits(SA, own_test_profile(tmp_path, train=reviews(40, 20), test=copies))
    contents = {row["content"] for row in [*splits.train, *splits.validation]}
    assert contents.isdisjoint(f"review {i}" for i in range(4))
    assert sum(splits.dropped.values()) == 4


def test_own_test_needs_its_split_and_changes_no_task_without_that_choice(tmp_path):
    profile = own_test_profile(tmp_path, QA, train=questions(20), validation=OTHERS)
    usual = replace(profile, own_test=False)
    assert load_splits(QA, profile).fingerprint == load_splits(QA, usual).fingerprint
    profile = own_test_profile(tmp_path, train=reviews(40, 20))
    assert "has no split 'test', only train" in refusal(SA, profile)


def test_caps_take_the_same_rows_each_time_in_their_order(tmp_path):
    profile = put(tmp_path, SA, train=reviews(40, 20))
    whole = load_splits(SA, profile)
    capped_profile = replace(profile, train_rows=5, eval_rows=4)
    capped = load_splits(SA, capped_profile)
    assert [len(rows) for rows in split_rows(capped)] == [5, 4, 4]
    assert split_rows(load_splits(SA, capped_profile)) == split_rows(capped)
    assert [row for row in whole.train if row in capped.train] == capped.train
    wide = load_splits(SA, replace(profile, train_rows=10_000))
    assert wide.fingerprint == whole.fingerprint


# Any task: its own columns, labels and splits

NLI = replace(more_tasks.NLI, validation=Carve(share=0.2, stratify="label"), test="matched")


def pairs(each):
    return [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3} for i in range(3 * each)]


def test_a_task_is_read_and_split_by_its_own_columns(tmp_path):
    matched = [row | {"premise": f"other {row['premise']}"} for row in pairs(1)]
    splits = load_splits(NLI, put(tmp_path, NLI, train=pairs(10), matched=matched))
    assert label_counts(splits) == [{0: 8, 1: 8, 2: 8}, {0: 2, 1: 2, 2: 2}, {0: 1, 1: 1, 2: 1}]


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (
            replace(QA, text_pair=()),
            "task 'qa': text_pair must name one column, the text that holds the answers",
        ),
        (
            replace(SUM, text_pair=("id",)),
            "task 'sum': generation reads one text; name all its columns in `text`",
        ),
        (
            replace(
                NLI, target="premise", text=("hypothesis",), columns=NLI.columns | {"premise": dict}
            ),
            "task 'nli': for classify, column 'premise' must hold a whole",
        ),
        (
            replace(NLI, text=("label",), target="premise"),
            "task 'nli': for classify, column 'label' must hold a text",
        ),
        (
            replace(NLI, test=Carve(share=0.1, group="genre")),
            "task 'nli' is split by column 'genre', which is not among",
        ),
    ],
)
def test_a_task_that_its_problem_cannot_use_is_refused(tmp_path, task, sentence):
    assert refusal(task, full_profile(tmp_path)).startswith(sentence)


# What a reader should know of them


def test_an_overview_counts_rows_and_labels_and_shows_one_row(tmp_path):
    task = replace(
        SA, validation="validation", test="test", labels=("negative", "positive", "mixed")
    )
    empty = {"label": 1, "title": "", "content": " "}
    rows = {
        "train": reviews(3, 1),
        "validation": [empty],
        "test": [REVIEW | {"content": "x"}, empty | {"label": 2, "content": "y"}],
    }
    splits = load_splits(task, put(tmp_path, task, **rows))
    assert overview_lines(task, splits, 46) == [
        "rows of sa:",
        "  train             4  negative 3, positive 1,",
        "                       mixed 0",
        "  validation        1  negative 0, positive 1,",
        "                       mixed 0",
        "  test              2  negative 0, positive 1,",
        "                       mixed 1",
        "  example     'title 0' | 're... -> 'negative'",
    ]
    of_train, of_validation, of_text = doubts(task, splits)
    assert of_train.startswith("train has no row of 'mixed':")
    assert of_validation.startswith("all rows of validation are 'positive':")
    assert of_text.startswith("1 row of validation has no text:")


# Hygiene

MANY = replace(NLI, labels=tuple("abcdefgh"))
LABELS = "expected 'negative' or 0, 'positive' or 1"


def answered(text, start):
    return QUESTION | {"answers": {"text": text, "answer_start": start}}


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        (SA, REVIEW | {"label": -1}, f"invalid label -1 in column 'label': {LABELS}"),
        (SA, REVIEW | {"label": "1"}, f"invalid label '1' in column 'label': {LABELS}"),
        (
            NLI,
            pairs(1)[0] | {"label": -1},
            "expected 'entailment' or 0, 'neutral' or 1, 'contradiction' or 2",
        ),
        # Of many labels the first and the last are named
        (MANY, pairs(1)[0] | {"label": 8}, "'f' or 5, ... 'h' or 7"),
        (SA, REVIEW | {"content": None}, "column 'content' holds None, not a text"),
        (SA, {"label": 1, "title": "t"}, "column 'content' holds None, not a text"),
        (
            QA,
            QUESTION | {"answers": ["red car"]},
            "column 'answers' holds ['red car'], not an object",
        ),
        (QA, answered([], []), "at least one"),
        (QA, answered(["red", "car"], [2]), "two lists of one length"),
        (QA, answered(["Red"], [2]), "the context has 'red'"),
        # It stands anywhere
        (QA, answered([""], [3]), "answer '' at answer_start 3: expected a text that is not"),
        # Python would count from the end
        (QA, answered(["ca"], [-3]), "answer 'ca' at answer_start -3: expected a text that is not"),
        (QA, answered(["red"], ["2"]), "answer 'red' at answer_start '2': expected"),
        (QA, answered("car", 6), "two lists of one length"),
        (QA, answered([5], [2]), "answer 5 at answer_start 2: expected a text"),
        (SUM, ARTICLE | {"highlights": " \n"}, "'highlights' is empty"),
        (SUM, ARTICLE | {"article": ""}, "'article' is empty"),
        (SUM, ARTICLE | {"article": "a \ud83d"}, "a column holds a lone surrogate ('\\ud83d')"),
    ],
)
def test_a_faulty_row_is_named_by_its_place_and_described(task, row, words):
    with pytest.raises(InputError) as caught:
        check_row(task, row, 7, "rows")
    assert str(caught.value).startswith("rows, row 7")
    assert words in str(caught.value)


def test_a_split_in_which_more_than_one_text_of_20_has_several_labels_is_refused():
    hashes = [*range(20), *range(20)]
    labels = [0] * 40
    check_labels_agree([*hashes, 0], [*labels, 1], "train.csv")
    with pytest.raises(InputError, match=r"train.csv: 2 of 20 texts are there with several labels"):
        check_labels_agree([*hashes, 0, 1], [*labels, 1, 1], "train.csv")
