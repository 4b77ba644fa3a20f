"""Costs from numbers, names and files: the same matrix in every form, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from hf_sharp.data.costs import read_costs

NAMES = ["ham", "spam", "fraud"]
MATRIX = [[0, 1, 1], [1, 0, 1], [5, 10, 0]]
NESTED = {"fraud": {"ham": 5, "spam": 10}}


def write(tmp_path, text, name="costs.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


@pytest.mark.parametrize("form", ["lists", "array", "names", "indices", "json", "csv", "shuffled", "tsv"])
def test_every_form_gives_the_same_matrix(form, tmp_path):
    forms = {
        "lists": lambda: MATRIX,
        "array": lambda: np.array(MATRIX, dtype=np.float32),
        "names": lambda: NESTED,
        "indices": lambda: {"2": {0: 5, "1": 10}},
        "json": lambda: json.dumps(NESTED),
        "csv": lambda: write(tmp_path, "true,ham,spam,fraud\nham,0,1,1\nspam,1,0,1\nfraud,5,10,0\n"),
        "shuffled": lambda: write(tmp_path, "\ufeff,fraud,ham,spam\n\nspam,1,1,0\nfraud,0,5,10\nham,1,0,1\n"),
        "tsv": lambda: write(tmp_path, "\tham\tspam\tfraud\nham\t0\t1\t1\nspam\t1\t0\t1\nfraud\t5\t10\t0\n", "c.tsv"),
    }
    assert read_costs(forms[form](), NAMES).tolist() == MATRIX


@pytest.mark.parametrize("form", [[1, 1, 5], {"fraud": 5}, '{"fraud": 5}', "[1, 1, 5]", "class,cost\nfraud,5\n"])
def test_costs_of_the_true_class(form, tmp_path):
    form = write(tmp_path, form) if isinstance(form, str) and "\n" in form else form
    assert read_costs(form, NAMES).tolist() == [[0, 1, 1], [1, 0, 1], [5, 5, 0]]


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ({"froud": 5}, r"cost_matrix has the class 'froud', which is not a label. Did you mean 'fraud'\?"),
        ({"fraud": {"hem": 5}}, r"has the class 'hem', which is not a label. Did you mean 'ham'\?"),
        ({"fraud": "much"}, "'much' is not a number. Expected a cost, a finite number >= 0"),
        ({"fraud": -5}, "predicting 'ham' for 'fraud' costs -5; expected finite numbers >= 0"),
        ([[0, 1, 1], [1, 0, float("nan")], [1, 1, 0]], "predicting 'fraud' for 'spam' costs nan"),
        ([[0, 1], [1, 0]], r"must be \(3, 3\), one row per true class; got \(2, 2\). Expected a CSV file"),
        (np.zeros((3, 3)), "every cost is 0"),
        ("{fraud: 5}", "is neither a CSV file nor JSON"),
        ("nowhere.csv", "'nowhere.csv' does not exist. Expected a CSV file with a row per true class"),
        ([["a"]], "are not numbers"),
        ('{"fraud": 5, "fraud": 50}', "cost_matrix has 'fraud' twice. Keep one of them."),
        ({"fraud": 5, "2": 50}, "cost_matrix has the class 'fraud' twice"),
        ({"fraud": {"ham": 5, 0: 50}}, "cost_matrix has the class 'ham' twice"),
        ({"fraud": True}, "True is not a number"),
        ({"fraud": {"ham": np.True_}}, "is not a number"),
        ([[0, 1, 1], [1, 0, True], [1, 1, 0]], "are not numbers"),
        (np.ones((3, 3), dtype=bool), "are not numbers"),
        ("[1, 1, true]", "are not numbers"),
    ],
)
def test_mistakes_are_named(costs, said):
    with pytest.raises(ValueError, match=said):
        read_costs(costs, NAMES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("true,ham,spam\nham,0,1\nspam,1,0\nfraud,5,10\n", "has no column for the class 'fraud'"),
        ("true,ham,spam,fraud\nham,0,1,1\nspam,1,0,1\n", "has no row for the class 'fraud'"),
        ("true,ham,spam,fraud\nham,0,1,1\nspam,1,0\n", "row 3: 3 cells, the header has 4"),
        ("true,ham,spam,fraud\nham,0,1,1\nspam,1,0,x\nfraud,5,10,0\n", "row 'spam', column 'fraud': 'x' is not a nu"),
        ("", "has no rows. Expected a CSV file"),
        ("fraud\nham\n", "has only one column, 'fraud'. Expected a CSV file"),
        ("class,cost\nfraud,5\nfraud,50\n", "has the class 'fraud' twice. Keep one of them"),
        ("true,ham,ham,fraud\nham,0,1,1\nspam,1,0,1\nfraud,5,10,0\n", "has the class 'ham' twice"),
        ("true,ham,spam,fraud\nham,0,1,1\nspam,1,0,1\nspam,5,10,0\n", "has the class 'spam' twice"),
    ],
)
def test_mistakes_in_a_file_are_named(text, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_costs(write(tmp_path, text), NAMES)


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_separator_of_a_table_is_found(separator, suffix, tmp_path):
    text = "true,ham,spam,fraud\nham,0,1,1\nspam,1,0,1\nfraud,5,10,0\n".replace(",", separator)
    assert read_costs(write(tmp_path, text, f"costs{suffix}"), NAMES).tolist() == MATRIX
    classes = f"class{separator}cost\nfraud{separator}5\n"
    assert read_costs(write(tmp_path, classes, f"costs{suffix}"), NAMES)[2].tolist() == [5, 5, 0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin1"])
def test_a_table_that_is_not_utf8_is_told_how_to_convert(encoding, tmp_path):
    (tmp_path / "costs.csv").write_bytes("class,cost\nbetrügerisch,5\n".encode(encoding))
    with pytest.raises(ValueError, match=r"--cost: '.*costs.csv' is not UTF-8 text. Convert it: iconv"):
        read_costs(tmp_path / "costs.csv", NAMES, "--cost")


def test_an_index_is_no_name_of_a_class_if_all_names_are_numbers():
    names = ["7", "10", "20", "401"]
    with pytest.raises(ValueError, match=r"--cost has the class '0', which is not a label. The labels are 7, 10, 20"):
        read_costs('{"0": 9}', names, "--cost")
    assert read_costs({7: 9}, names)[0].tolist() == [0, 9, 9, 9]
    assert read_costs({1: 9}, ["0", "1", "2"])[1].tolist() == [9, 0, 9]
    assert read_costs({1: 9}, ["7", "10", "other"])[1].tolist() == [9, 0, 9]


def test_a_table_of_pandas_is_read_by_its_labels():
    table = pd.DataFrame([[0, 5, 10], [1, 0, 1], [1, 1, 0]], ["fraud", "ham", "spam"], ["fraud", "ham", "spam"])
    assert read_costs(table, NAMES).tolist() == MATRIX
    assert read_costs(pd.DataFrame(MATRIX), NAMES).tolist() == MATRIX
    assert read_costs(pd.Series({"fraud": 5}), NAMES).tolist() == [[0, 1, 1], [1, 0, 1], [5, 5, 0]]


@pytest.mark.parametrize("name", ["two\nlines", "a\u2028separator"])
def test_names_with_line_breaks(name, tmp_path):
    matrix = read_costs(write(tmp_path, f'class,cost\n"{name}",5\n'), ["ham", name])
    assert matrix.tolist() == [[0, 1], [5, 0]]
