"""Rows are read alike from every kind of file, split without leaks, and refused in one sentence
that names them.
"""

import json
import re
from collections import Counter
from contextlib import nullcontext
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


REVIEW, QUESTION = reviews(0, 1)[0], questions(1)[0]
ARTICLE = {"id": "a", "article": "A dog ran.", "highlights": "Dog ran."}
OTHERS = questions(1, first=50)
OTHER = ARTICLE | {"article": "b"}


def put(root, task, **splits):
    """Writes each split as a file of JSON lines; returns the profile that reads them."""
    folder = root / task.folder
    folder.mkdir(exist_ok=True, parents=True)
    for split, rows in splits.items():
        text = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))
        (folder / f"{split}.jsonl").write_text(text)
    return Profile(id="full", data_root=root)


def refusal(task, profile):
    """The one sentence that refuses unusable rows."""
    with pytest.raises(InputError) as caught:
        load_splits(task, profile)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sources


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """`datasets` copies the Parquet files that it reads; here they go to a folder of the test's
    own.
    """
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same rows as JSON lines, as Parquet in two shards, and as `save_to_disk` writes them."""
    import datasets

    roots = {kind: tmp_path_factory.mktemp(kind) for kind in ("jsonl", "parquet", "saved")}
    put(roots["jsonl"], QA, train=questions(4), validation=questions(1, first=50))
    parquet = roots["parquet"] / QA.folder
    parquet.mkdir()
    names = ("train-00000-of-00002", "train-00001-of-00002", "validation")
    for name, rows in zip(names, (questions(4)[:7], questions(4)[7:], OTHERS), strict=True):
        datasets.Dataset.from_list(rows).to_parquet(parquet / f"{name}.parquet")
    splits = {
        name: datasets.Dataset.from_list(rows)
        for name, rows in (("train", questions(4)), ("validation", OTHERS))
    }
    datasets.DatasetDict(splits).save_to_disk(roots["saved"] / QA.folder)
    # No part of the split whose name it has
    datasets.Dataset.from_list(questions(9)).to_parquet(parquet / "train_old.parquet")
    return roots


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_every_kind_of_file_gives_the_same_rows(stored, kind):
    by_name = tables(QA, stored[kind])
    assert list(by_name["train"].take(range(12))) == questions(4)
    assert list(by_name["validation"].take([2, 0])) == questions(1, first=50)[2::-2]
    assert list(by_name["train"].column("title")) == [row["title"] for row in questions(4)]


def test_a_missing_folder_is_named_with_what_is_there_instead(tmp_path):
    (tmp_path / "polarity").mkdir()
    sentence = refusal(SA, Profile(id="full", data_root=tmp_path))
    assert (
        f"no folder 'amazon_polarity' below --data-root {tmp_path} (it holds polarity)" in sentence
    )
    assert "which does not exist" in refusal(SA, Profile(id="full", data_root=tmp_path / "none"))


CSV = 'label,title,content\n1,t,"a, b\nc"\n0,07,\n'


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_may_be_names_or_numbers(tmp_path, suffix):
    profile = put(tmp_path, SA)
    numbered = reviews(20, 20)
    frame = pd.DataFrame(row | {"label": SA.labels[row["label"]]} for row in numbered)
    path = tmp_path / SA.folder / f"train.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    assert list(tables(SA, tmp_path)["train"].take(range(40))) == numbered
    fingerprint = load_splits(SA, put(tmp_path / "numbers", SA, train=numbered)).fingerprint
    assert load_splits(SA, profile).fingerprint == fingerprint


def test_csv_has_line_breaks_in_quotes_and_texts_of_digits_or_of_nothing(tmp_path):
    (put(tmp_path, SA).data_root / SA.folder / "train.csv").write_text(CSV)
    first, second = tables(SA, tmp_path)["train"].take([0, 1])
    assert first == {"label": 1, "title": "t", "content": "a, b\nc"}
    assert second == {"label": 0, "title": "07", "content": ""}
    digits = {"label": "1"}
    assert sources.labeller(SA)(digits, "") == {"label": 1}
    # A label's name
    assert sources.labeller(replace(SA, labels=("1", "2")))(digits, "") == {"label": 0}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "meh,t,c\n",
            "row 4: invalid label 'meh' in column 'label': expected 'negative' or 0, 'positive' or 1",
        ),
        (
            "1,t\n",
            "train.csv cannot be read (ArrowInvalid: CSV parse error: Expected 3 columns, got 2",
        ),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, line, words):
    profile = put(tmp_path, SA)
    (tmp_path / SA.folder / "train.csv").write_text(CSV + line)
    assert words in refusal(SA, profile)


FRAME = pd.DataFrame(
    [{"label": i % 2, "title": f"t; {i}", "content": f'a, "b" {i}\nc'} for i in range(20)]
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
}


@pytest.mark.parametrize("held", [0, 2**20])
@pytest.mark.parametrize("name", WRITERS)
def test_files_are_read_as_pandas_writes_them(tmp_path, monkeypatch, name, held):
    monkeypatch.setattr(sources, "HELD_BYTES", held)
    folder = put(tmp_path, SA).data_root / SA.folder
    WRITERS[name](folder / name)
    (folder / "dataset_info.json").write_text('{"splits": {}}')  # no split
    for first in (False, True):
        [(split, table)] = tables(SA, tmp_path, first=first).items()
        assert (split, list(table.take(range(20)))) == ("train", FRAME.to_dict("records"))


@pytest.mark.parametrize("held", [0, 2**20])
def test_dates_of_other_columns_are_texts(tmp_path, monkeypatch, held):
    monkeypatch.setattr(sources, "HELD_BYTES", held)
    lines = [f"{i % 2},t,c {i},2020-01-{i % 28 + 1:02} 10:00:00" for i in range(40)]
    path = put(tmp_path, SA).data_root / SA.folder / "train.csv"
    path.write_text("\n".join(["label,title,content,created", *lines]))
    [table] = tables(SA, tmp_path).values()
    assert [row["created"] for row in table.take([0, 1])] == [
        "2020-01-01 10:00:00",
        "2020-01-02 10:00:00",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"label": 1}, 5]', "train.json, row 2: expected a JSON object"),
        ('[{"label": 1}', "train.json: invalid JSON"),
        ('[{"label": 1, "label": 0}]', "key 'label' is there twice"),
    ],
)
def test_a_json_array_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, text, words):
    (put(tmp_path, SA).data_root / SA.folder / "train.json").write_text(text)
    assert words in refusal(SA, Profile(id="full", data_root=tmp_path))


def test_columns_may_say_that_labels_are_names(tmp_path):
    rows = [row | {"label": SA.labels[row["label"]]} for row in reviews(20, 20)]
    task = replace(SA, columns={"label": str, "title": str, "content": str})
    named = load_splits(task, put(tmp_path / "names", SA, train=rows))
    assert (
        named.fingerprint
        == load_splits(SA, put(tmp_path / "numbers", SA, train=reviews(20, 20))).fingerprint
    )


def test_a_task_names_its_splits_and_files(tmp_path):
    put(tmp_path, SA, learn=reviews(20, 20), check=reviews(3, 3))
    files = {split: tmp_path / SA.folder / f"{split}.jsonl" for split in ("learn", "check")}
    task = replace(SA, train="learn", test="check", identity=("title", "content"), files=files)
    assert (task.has_own_rows, task.splits) == (True, ("learn", "check"))
    assert list(tables(task, None)["check"].take(range(6))) == reviews(3, 3)
    below = replace(task, files={split: path.name for split, path in files.items()})
    assert not below.has_own_rows
    assert "learn.jsonl, which its files name, is not beside the --grid file" in refusal(
        below, Profile(id="full")
    )
    assert below.with_files_in(tmp_path / SA.folder).has_own_rows
    assert below.with_files_in(tmp_path) is below  # which has none of them
    assert len(tables(below, tmp_path)["learn"]) == 40
    gone = replace(task, files=files | {"check": tmp_path / "gone.csv"})
    assert f"task 'sa': {tmp_path / 'gone.csv'}, which its files name, is not there" in refusal(
        gone, Profile(id="full")
    )


MOVED = questions(1)[1] | {"answers": {"text": ["red car"], "answer_start": [3]}}
NO_CONTENT = [{"label": 1, "title": "t", "text": "c"}]


@pytest.mark.parametrize(
    ("task", "splits", "words"),
    [
        (SA, {}, "one file per split, as in train.jsonl"),
        (SA, {"train": NO_CONTENT}, "train.jsonl: column 'content' is missing"),
        (SA, {"train": NO_CONTENT}, "split 'train' has label, title, text"),
        (
            SA,
            {"train": json.dumps(REVIEW) + '\n\n{"label": 1,'},
            "train.jsonl, line 3: invalid JSON",
        ),
        (
            SA,
            {"train": '{"label": 0, "label": 1}'},
            "train.jsonl, line 1: invalid JSON (key 'label' is there twice)",
        ),
        (SA, {"train": reviews(1, 1)}, "15% of"),
        (
            QA,
            {"train": questions(10), "validation": ""},
            "no rows to use; split 'validation' of squad is empty",
        ),
        # And none was carved out of it
        (QA, {"train": "", "validation": OTHERS}, "no rows to use"),
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
            {"train": reviews(0, 9), "test": reviews(1, 1)},
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
        (NO_CONTENT, "train.jsonl: column 'content' is missing"),
        ([REVIEW, REVIEW | {"label": "good"}], "row 2: invalid label 'good' in column 'label'"),
        (
            reviews(0, 9),
            "train.jsonl: all training rows are 'positive'; give rows of another class, too",
        ),
        ([*reviews(600, 600), REVIEW | {"label": "good"}], "row 1201: invalid label 'good'"),
    ],
)
def test_rows_of_small_files_are_checked_before_anything_is_loaded(tmp_path, rows, words):
    profile = put(tmp_path, SA, train=rows)
    with pytest.raises(InputError, match=re.escape(words)):
        check_files(SA, profile)


def test_of_large_files_the_first_rows_are_checked(tmp_path, monkeypatch):
    sorted_rows = reviews(0, sources.FIRST)
    profile = put(tmp_path, SA, train=[*sorted_rows, REVIEW | {"label": "good"}])
    monkeypatch.setattr(sources, "HELD_BYTES", 0)
    assert check_files(SA, profile) is None
    with pytest.raises(InputError, match="row 1: invalid label"):
        check_files(SA, put(tmp_path, SA, train=[REVIEW | {"label": "good"}, *sorted_rows]))


def test_checked_rows_are_those_that_are_trained_on(tmp_path):
    profile = put(tmp_path, SA, train=reviews(40, 20))
    assert check_files(SA, profile).fingerprint == load_splits(SA, profile).fingerprint


def test_first_rows_are_those_of_every_kind_of_file(tmp_path):
    folder, rows = put(tmp_path, SA).data_root / SA.folder, reviews(2, 600)
    frame = pd.DataFrame(rows)
    for name, write in {"a.csv": frame.to_csv, "b.parquet": frame.to_parquet}.items():
        write(folder / name, index=False)
    (folder / "c.jsonl").write_text(frame.to_json(orient="records", lines=True))
    assert [
        list(table.take(range(602))) for table in tables(SA, tmp_path, first=True).values()
    ] == [rows] * 3


@pytest.mark.parametrize(
    ("of_task", "asked", "learned"), [(None, None, 68), (20, None, 20), (20, 30, 30), (20, 0, 68)]
)
def test_a_task_says_how_many_rows_are_learned_as_set_does_which_goes_before(
    tmp_path, of_task, asked, learned
):
    profile = replace(put(tmp_path, SA, train=reviews(50, 50)), train_rows=asked, caps={})
    assert len(load_splits(replace(SA, train_rows=of_task), profile).train) == learned


def test_rows_of_the_hub_bring_its_commit_and_weights_are_asked_for_at_the_pinned_one(monkeypatch):
    import datasets

    split = datasets.Dataset.from_list(reviews(1, 1))
    split.info.download_checksums = {f"hf://datasets/x@{'a' * 40}/train.parquet": {}}
    monkeypatch.setattr("datasets.load_dataset", lambda *names, trust_remote_code: {"train": split})
    [table] = tables(SA, None).values()
    assert (table.revision, table.origin) == ("a" * 40, f"hub:{SA.dataset}/train")
    assert checkpoint_source(BERT, Profile(id="full")) == (
        BERT.checkpoint,
        {"revision": BERT.revision},
    )


def test_an_unreachable_hub_is_one_sentence_with_the_way_round_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    task = replace(SA, dataset="nobody/nothing_at_all")
    assert refusal(task, Profile(id="full")).endswith(
        "local folders with --data-root=DIR and --checkpoint-root=DIR"
    )


# Large files


@pytest.mark.usefixtures("own_cache")
def test_rows_that_stay_on_disk_are_the_same_rows_in_the_same_splits(tmp_path, monkeypatch):
    more = {"title": "ä\u2028", "date": "2020-01-01"}  # which stays a text
    text = "\n\r\n" + "\n".join(
        json.dumps(row | more, ensure_ascii=False) for row in reviews(40, 20)
    )
    profile = put(tmp_path, SA, train=text)
    held = load_splits(SA, profile)
    monkeypatch.setattr(sources, "HELD_BYTES", 0)
    monkeypatch.setattr(sources, "ROWS_AT_ONCE", 4)
    stored = load_splits(SA, profile)
    assert isinstance(stored.train, StoredRows)
    assert [list(rows) for rows in parts(stored)] == list(parts(held))
    rows = list(stored.train)
    assert (len(stored.train), stored.train[-1], stored.train[2:7], stored.train[::-3]) == (
        42,
        rows[-1],
        rows[2:7],
        rows[::-3],
    )
    with pytest.raises(IndexError):
        stored.train[42]
    assert (stored.fingerprint, stored.dropped, stored.origins) == (
        held.fingerprint,
        held.dropped,
        held.origins,
    )


# Splits


def test_sentiment_is_split_70_15_15_within_each_label_and_no_review_is_lost(tmp_path):
    train = str(tmp_path / "amazon_polarity" / "train.jsonl")
    splits = load_splits(SA, put(tmp_path, SA, train=reviews(40, 20)))
    assert label_counts(splits) == [{0: 28, 1: 14}, {0: 6, 1: 3}, {0: 6, 1: 3}]
    contents = [row["content"] for row in chain(*parts(splits))]
    assert sorted(contents) == sorted(row["content"] for row in reviews(40, 20))
    assert splits.origins == {
        "train": train,
        "validation": f"15% of {train}",
        "test": f"15% of {train}",
    }


def parts(splits):
    return splits.train, splits.validation, splits.test


def label_counts(splits):
    """The number of rows with each label, in train, validation and test."""
    return [Counter(row["label"] for row in rows) for rows in parts(splits)]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_split_that_scores_may_have_one_class_alone(tmp_path, name):
    rows = {
        split: reviews(0, 2) if split == name else reviews(2, 2) for split in ("validation", "test")
    }
    for split in rows:
        rows[split] = [row | {"content": f"{split} {row['content']}"} for row in rows[split]]
    task = replace(SA, validation="validation", test="test")
    assert len(load_splits(task, put(tmp_path, task, train=reviews(2, 2), **rows)).train) == 4


def test_questions_about_one_article_stay_on_one_side(tmp_path):
    splits = load_splits(
        QA, put(tmp_path, QA, train=questions(20), validation=questions(2, first=50))
    )
    titles = [{row["title"] for row in rows} for rows in parts(splits)]
    assert list(map(len, titles)) == [18, 2, 2]
    assert titles[0].isdisjoint(titles[1])
    assert splits.test == questions(2, first=50)


def test_copies_of_rows_that_score_are_left_out_and_counted(tmp_path):
    def articles(*texts):
        return [ARTICLE | {"article": text} for text in texts]

    splits = load_splits(
        SUM,
        put(
            tmp_path,
            SUM,
            train=articles("a", "B  b", "c", "c"),
            validation=articles("b b", "d"),
            test=articles("d", "a"),
        ),
    )
    assert [[row["article"] for row in rows] for rows in parts(splits)] == [
        ["c", "c"],
        ["b b"],
        ["d", "a"],
    ]
    assert splits.dropped == {"train": 2, "validation": 1}


def test_own_test_scores_on_the_data_sets_own_rows_and_leaves_them_out_of_train(tmp_path):
    own = [row | {"content": f"own {row['content']}"} for row in reviews(2, 2)]
    splits = load_splits(
        SA, replace(put(tmp_path, SA, train=reviews(40, 20), test=own), own_test=True)
    )
    assert ([len(rows) for rows in parts(splits)], splits.test) == ([51, 9, 4], own)
    copies = [row | {"title": "again"} for row in reviews(2, 2)]  # under another title
    splits = load_splits(
        SA, replace(put(tmp_path, SA, train=reviews(40, 20), test=copies), own_test=True)
    )
    assert not {row["content"] for row in copies} & {
        row["content"] for row in [*splits.train, *splits.validation]
    }
    assert sum(splits.dropped.values()) == 4
    # A task without the choice
    profile = put(tmp_path, QA, train=questions(20), validation=questions(2, first=50))
    assert (
        load_splits(QA, replace(profile, own_test=True)).fingerprint
        == load_splits(QA, profile).fingerprint
    )
    profile = replace(put(tmp_path / "none", SA, train=reviews(40, 20)), own_test=True)
    assert "has no split 'test', only train" in refusal(SA, profile)


def test_caps_take_the_same_rows_each_time_in_their_order(tmp_path):
    profile = put(tmp_path, SA, train=reviews(40, 20))
    whole, once, again = (
        load_splits(SA, replace(profile, train_rows=n, eval_rows=4)) for n in (None, 5, 5)
    )
    assert [len(rows) for rows in parts(once)] == [5, 4, 4]
    assert parts(once) == parts(again)
    assert [row for row in whole.train if row in once.train] == once.train
    assert (
        load_splits(SA, replace(profile, train_rows=10_000)).fingerprint
        == load_splits(SA, profile).fingerprint
    )


# Any task: its own columns, labels and splits

NLI = replace(more_tasks.NLI, validation=Carve(share=0.2, stratify="label"), test="matched")


def pairs(each):
    return [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3} for i in range(3 * each)]


def test_a_task_is_read_and_split_by_its_own_columns(tmp_path):
    matched = [row | {"premise": f"other {row['premise']}"} for row in pairs(1)]
    splits = load_splits(NLI, put(tmp_path, NLI, train=pairs(10), matched=matched))
    assert label_counts(splits) == [dict.fromkeys(range(3), number) for number in (8, 2, 1)]


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
    assert refusal(task, Profile(id="full", data_root=tmp_path)).startswith(sentence)


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
    assert [sentence.split(":")[0] for sentence in doubts(task, splits)] == [
        "train has no row of 'mixed'",
        "all rows of validation are 'positive'",
        "1 row of validation has no text",
    ]


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
        (QA, answered([""], [3]), ""),  # stands anywhere
        (QA, answered(["ca"], [-3]), ""),  # Python would count from the end
        (QA, answered(["red"], ["2"]), ""),
        (QA, answered("car", 6), ""),
        (QA, answered([5], [2]), ""),
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


@pytest.mark.parametrize(("contradicting", "refused"), [(1, False), (2, True)])
def test_a_split_in_which_more_than_one_text_of_20_has_several_labels_is_refused(
    contradicting, refused
):
    hashes = [*range(20), *range(20), *range(contradicting)]
    labels = [0] * 40 + [1] * contradicting
    sentence = "train.csv: 2 of 20 texts are there with several labels"
    with pytest.raises(InputError, match=sentence) if refused else nullcontext():
        check_labels_agree(hashes, labels, "train.csv")
