"""Files that would be read in part, or as something else, without a word: an error says so, or they are read right."""

import io
import json
import sys

import datasets
import pytest
from PIL import Image
from transformers import AutoModelForSequenceClassification

from hf_sharp.data.costs import read_costs
from hf_sharp.data.files import load_file, load_folder
from hf_sharp.data.loading import prepare_splits
from hf_sharp.data.split import drop_repeats, split_validation
from hf_sharp.data.unlabelled import load_unlabelled
from hf_sharp.recipe import RecipeParser
from hf_sharp.recipe.inputs import Source
from hf_sharp.recipe.models import ModelArguments, load_model
from hf_sharp.recipe.options import OPTIONS
from hf_sharp.recipe.outputs import PredictionFile
from hf_sharp.recipe.texts import TextArguments, prepare_texts
from hf_sharp.trainer.labelled_data import Classes
from tests.conftest import make_bert


def folder_of(root, *files):
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".JPG"):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        else:
            path.write_bytes(b"not read")
    return root


TWO_CLASSES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["cat/train_9.png", "dog/train_9.png"],
            "6 of the 8 .* such as 'cat/0.png': 'train_9.png' looks like the name",
        ),
        (["train/0.png", "train/1.png"], "6 of the 8 .* 'train' looks like the name of a split. Rename it"),
        (["test tube/0.png"], "6 of the 7 .* 'test tube' looks like"),
        (["cat/val.png"], "6 of the 7 .* 'val.png' looks like"),
        (["__bird/0.png"], "1 of the 7 .* such as '__bird/0.png': datasets does not read such names"),
        (["bird/0.HEIC", "bird/1.HEIC"], "2 of the 8 .* have a format that is not read, such as 'bird/0.HEIC'"),
    ],
)
def test_pictures_that_would_be_left_out(tmp_path, more, said):
    with pytest.raises(ValueError, match=said):
        load_folder(folder_of(tmp_path, *TWO_CLASSES, *more))


def test_what_is_rightly_left_out(tmp_path, caplog):
    hidden = [".thumbs/0.png", "__MACOSX/cat/0.png", "cat/.0.png", "cat/notes.txt"]
    assert len(load_folder(folder_of(tmp_path / "a", *TWO_CLASSES, *hidden, "cat/9.JPG"))["train"]) == 7
    splits = [f"{split}/{file}" for split in ("train", "test") for file in TWO_CLASSES]
    loaded = load_folder(folder_of(tmp_path / "b", *splits, "raw/0.png", "readme.txt"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "test": 6}
    assert "Not read, because they are beside the splits: raw." in caplog.text


def test_brackets_in_names_are_no_patterns(tmp_path):
    with pytest.raises(ValueError, match=r"reads brackets, \* and \? .*photos \[2024\].* Rename the folder"):
        load_folder(folder_of(tmp_path / "photos [2024]", *TWO_CLASSES))
    table, lines = tmp_path / "mails[1].csv", tmp_path / "mails[1].jsonl"
    table.write_text("text,label\na,x\nb,y\n")
    lines.write_text('{"text": "a", "label": "x"}\n')
    assert [len(load_file(file)["train"]) for file in (table, lines)] == [2, 1]


STRAY = 'text\tlabel\n"hello world\tspam\nmiddle\tham\n"bye" he said\tham\nlast\tspam\n'


def test_a_text_that_begins_with_a_quote_swallows_no_rows(tmp_path, caplog):
    file = tmp_path / "mails.tsv"
    file.write_text(STRAY)
    wanted = ['"hello world', "middle", '"bye" he said', "last"]
    assert load_file(file)["train"]["text"][:] == wanted
    assert "mails.tsv', line 4 cannot be read: " in caplog.text
    assert "Quotes are read as ordinary characters" in caplog.text
    assert [row.value for row in Source(str(file), False, "text").open().rows] == wanted


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".tsv", STRAY + "a\ttab\tspam\n"),
        (".tsv", STRAY + '"in quotes"\tspam\n'),
        (".tsv", STRAY.replace("text\tlabel", '"text"\t"label"')),
        (".csv", STRAY.replace("\t", ",")),
        (".csv", 'text,label\na,spam\n"never closed,ham\n'),
    ],
)
def test_quotes_that_fit_in_neither_way(tmp_path, suffix, text):
    file = tmp_path / f"mails{suffix}"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"mails.*', line \d cannot be read: .* with its own ones doubled"):
        load_file(file)


def test_a_quote_that_is_never_closed_is_a_character(tmp_path):
    file = tmp_path / "mails.tsv"
    file.write_text('text\tlabel\na\tspam\n"never closed\tham\n\n')
    assert load_file(file)["train"]["text"][:] == ["a", '"never closed']


def test_quotes_around_texts(tmp_path):
    file = tmp_path / "mails.csv"
    file.write_text('text,label\n"""Hi"" he said,\non two lines",spam\na "quoted" word,ham\n')
    assert load_file(file)["train"]["text"][:] == ['"Hi" he said,\non two lines', 'a "quoted" word']


def test_bytes_in_later_rows(tmp_path):
    file = tmp_path / "mails.csv"
    file.write_bytes(b"text,label\na,spam\nb,ham\ncaf\xe9,ham\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        load_file(file)


def test_a_folder_behind_a_link_and_a_card_with_configs(tmp_path):
    folder = folder_of(tmp_path / "photos", *TWO_CLASSES)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert len(load_folder(tmp_path / "link")["train"]) == 6
    repository = folder_of(tmp_path / "repository", *(f"data/{file}" for file in TWO_CLASSES), "assets/logo.png")
    (repository / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_dir: data\n---\n# Photos\n")
    assert len(load_folder(repository)["train"]) == 6


def test_a_file_of_costs_needs_a_header(tmp_path):
    file = tmp_path / "costs.csv"
    file.write_text("fraud,5\nspam,2\n")
    with pytest.raises(ValueError, match=r"the first line .*'fraud,5', must be a header, such as class,cost"):
        read_costs(file, ["ham", "spam", "fraud"])
    file.write_text("class,cost\nfraud,5\nspam,2\nham,1\n")
    assert read_costs(file, ["ham", "spam", "fraud"])[2].tolist() == [5, 5, 0]


@pytest.mark.parametrize(
    ("of_model", "of_data", "wanted"),
    [
        (["0", "1"], ["ham", "spam"], ["ham", "spam"]),
        (["ham", "spam"], ["0", "1"], ["ham", "spam"]),
        (["0", "1"], ["1", "0"], ["0", "1"]),
        (["LABEL_0", "LABEL_1"], ["ham", "spam"], ["ham", "spam"]),
    ],
)
def test_names_are_better_than_numbers(of_model, of_data, wanted, tmp_path):
    model = make_bert(num_labels=2)
    model.config.id2label = dict(enumerate(of_model))
    data = datasets.Dataset.from_dict({"label": [0, 1]}).cast_column("label", datasets.ClassLabel(names=of_data))
    classes = Classes.known(model.config, data, None, "label")
    classes.name_model(model.config)
    assert list(classes.names) == [*model.config.id2label.values()] == wanted
    model.config.id2label = dict(enumerate(of_model))
    model.save_pretrained(tmp_path)
    loaded = load_model(AutoModelForSequenceClassification, ModelArguments(str(tmp_path)), of_data)
    assert sorted(loaded.config.id2label.values()) == sorted(wanted)


def test_empty_cells_are_no_group(tmp_path):
    file = tmp_path / "patients.csv"
    file.write_text(
        "patient,label\n" + "".join(f"{p},{c}\n" for p, c in (("a", "x"), ("", "x"), (" ", "y"), ("b", "y")))
    )
    data = load_file(file)["train"]
    with pytest.raises(ValueError, match="row 1 has no value in column 'patient'"):
        drop_repeats(data, "patient")
    with pytest.raises(ValueError, match="row 1 has no value in column 'patient'"):
        split_validation(data, 0.5, group_column="patient")


def test_pictures_are_no_group():
    data = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 2, "label": [0, 1]})
    with pytest.raises(ValueError, match=r"column 'image' has Image.* cannot be compared. Name a column with texts"):
        drop_repeats(data, "image")


@pytest.mark.parametrize("seed", range(5))
def test_a_group_with_all_rows_of_a_class_is_not_held_out(seed):
    patients, labels = [0, 0, 1, 1, 2, 2, 3, 3], [0, 2, 0, 0, 1, 1, 1, 1]
    data = datasets.Dataset.from_dict({"patient": patients, "label": labels})
    train, validation = split_validation(data, 0.5, seed, group_column="patient")
    assert set(train["label"]) == {0, 1, 2}
    assert set(train["patient"]).isdisjoint(validation["patient"])


@pytest.mark.parametrize("test", [{"text": ["c"], "label": [-1]}, {"text": ["c"]}])
def test_a_test_split_without_labels_gives_way_to_a_fraction(test):
    train = datasets.Dataset.from_dict({"text": ["a", "b"] * 4, "label": [0, 1] * 4})
    splits = datasets.DatasetDict(train=train, test=datasets.Dataset.from_dict(test))
    assert len(prepare_splits(splits, test_fraction=0.5)["test"]) == 4
    with pytest.raises(ValueError, match=r"there is a split 'test'. Leave out the one, or name another --test_split"):
        prepare_splits(datasets.DatasetDict(train=train, test=train), test_fraction=0.5)


def test_the_row_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "mails.jsonl"
    file.write_text('{"text": "a", "label": "x"}\n{"text": 404, "label": "y"}\n')
    with pytest.raises(ValueError, match=r"column 'text' is not a text column \(row 1 has 404\)"):
        prepare_texts(load_file(file), None, TextArguments("x"), "label")


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("dataset: [a.csv, b.csv]", r"dataset must be a text, got \['a.csv', 'b.csv'\]"),
        ("test_split: [test]", "test_split must be a text"),
        ("max_steps: 10.5", "max_steps must be an integer, got 10.5"),
        ("imbalance_seed: 0.5", "imbalance_seed must be an integer, got 0.5"),
        ("learning_rate: 1e-3\nseed: 1\nlearning_rate: 1e-4", "'learning_rate' is there twice"),
        ("class_importance:\n  ham: 1\n  ham: 2", "'ham' is there twice"),
    ],
)
def test_values_in_a_config(yaml, said, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=said):
        RecipeParser(OPTIONS, ["--config", str(tmp_path / "config.yaml")])


def test_whole_numbers_with_a_point_are_integers(tmp_path):
    (tmp_path / "config.yaml").write_text("max_steps: 10.0")
    assert RecipeParser(OPTIONS, ["--config", str(tmp_path / "config.yaml")]).values["max_steps"] == 10


# ---- rows to predict -------------------------------------------------------------------------------------------------


def rows_of(source):
    return list(source.open().rows)


def test_cells_that_are_not_utf8_can_be_kept(tmp_path):
    file = tmp_path / "mails.csv"
    file.write_bytes("text,id\ncafé,é1\ntea,2\n".encode("latin-1"))
    first, second = rows_of(Source(str(file), False, "text", keep=["id"]))
    assert (first.fault, first.kept, second.kept) == ("the text is not UTF-8", ["\\udce91"], ["2"])
    with PredictionFile(tmp_path, "csv", {"id": "text"}) as out:
        out.write([{"id": first.kept[0]}])
    assert out.path.read_text() == "id\n\\udce91\n"


def test_standard_input_that_is_not_utf8(monkeypatch):
    text = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfgood\ncaf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", text)
    good, bad = rows_of(Source("-", False, "text"))
    assert (good.value, bad.fault) == ("good", "the text is not UTF-8")


def test_json_lines_that_are_one_array(tmp_path):
    file = tmp_path / "mails.jsonl"
    file.write_text(json.dumps([{"text": "a"}, {"text": "b"}]))
    assert [row.value for row in rows_of(Source(str(file), False, "text"))] == ["a", "b"]
    file.write_text('5\n{"text": "b"}\n')
    first, second = rows_of(Source(str(file), False, "text"))
    assert (first.fault, second.value) == ("there is no 'text'", "b")


def test_lines_end_only_at_line_breaks(tmp_path, monkeypatch):
    file = tmp_path / "mails.txt"
    file.write_bytes("\ufeffone\u2028still one\r\ntwo\u0085still two\r\n".encode())
    wanted = ["one\u2028still one", "two\u0085still two"]
    assert [row.value for row in rows_of(Source(str(file), False, "text"))] == wanted
    assert load_unlabelled(str(file), "sentence")["sentence"][:] == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes()), encoding="utf-8"))
    assert [row.value for row in rows_of(Source("-", False, "text"))] == wanted


def test_tables_as_pandas_writes_json_by_default(tmp_path):
    file = tmp_path / "mails.json"
    file.write_text(json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}))
    said = r"one row of mappings, as pandas writes tables by default. Save it with to_json\(path, orient='records'"
    with pytest.raises(ValueError, match=said):
        load_file(file)
    with pytest.raises(ValueError, match=said):
        Source(str(file), False, "text").open()


@pytest.mark.parametrize("values", [[1.5, 2.5], [["a"], ["b"]]])
def test_cells_that_are_no_texts(values, tmp_path):
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict({"text": values}).to_parquet(str(file))
    with pytest.raises(ValueError, match=r"the model takes texts, but column 'text' of .* has none"):
        Source(str(file), False, "text").open()
    labelled, new = ({"text": cells, "label": [0, 1]} for cells in (["a", "b"], values))
    splits = {"train": datasets.Dataset.from_dict(labelled), "new": datasets.Dataset.from_dict(new)}
    with pytest.raises(ValueError, match="column 'text' is not a text column"):
        prepare_texts(datasets.DatasetDict(splits), None, TextArguments(), "label")
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"text": "a"}\n{"text": ["a"]}\n')
    assert [row.fault for row in rows_of(Source(str(lines), False, "text"))] == [None, "the text is a list"]


def test_empty_lines_above_the_header(tmp_path):
    file = tmp_path / "mails.csv"
    file.write_text("\n\ntext,label\none,a\ntwo,b\n")
    assert [(row.name, row.value) for row in rows_of(Source(str(file), False, "text"))] == [("1", "one"), ("2", "two")]


def test_pictures_of_other_formats_are_reported(tmp_path):
    folder = folder_of(tmp_path / "new", "a.png", "sub/b.heic")
    assert [row.name for row in rows_of(Source(str(folder), True, "image"))] == ["a.png", "sub/b.heic"]
    assert [row.name for row in rows_of(Source(str(folder / "sub" / "b.heic"), True, "image"))] == ["b.heic"]
    with pytest.raises(ValueError, match=r"1 of the 2 pictures in .* have a format that is not read, such as 'sub/b"):
        load_unlabelled(str(folder), "image")
