"""The card says what the results say, and what comes from outside is nothing but text in it."""

import ast
import copy
import json
import random
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_sharp import ClassFrequencies
from hf_sharp.data.local_paths import without_paths
from hf_sharp.losses import LOSSES, ClassFrequencyLoss, register_loss
from hf_sharp.metrics import long_tail_report
from hf_sharp.reports import calibration
from hf_sharp.reports.figures import half_width
from hf_sharp.reports.markdown import escaped, one_line
from hf_sharp.reports.model_card import build_card, method_of, write_card
from hf_sharp.reports.results import local_names, model_record, read_results, results_of
from hf_sharp.sharpness.methods import METHODS, Method, register_method
from hf_sharp.trainer.report_keeper import ReportKeeper
from tests.conftest import make_images, make_vit

ATTACKS = [
    "a|b",
    "x\n---\ny: z",
    "---",
    "...\n---\n",
    "<script>alert(1)</script>",
    "</details></td></table>",
    "<!-- ",
    "`rm`",
    "```\n# heading",
    "{{ 7 * 7 }}",
    "{% for i in range(9) %}x{% endfor %}",
    "{#",
    "![x](http://a.b/c.png)",
    "[x]: http://a.b",
    "www.a.bc x@y.zz http://a.b",
    "__a__ *b* ~~c~~ $$d$$ \\(e\\)",
    "\\",
    "\\|",
    "&lt;&#124;",
    "- a",
    "# a #",
    "!!python/object/apply:os.system ['true']",
    "&a *a",
    "null",
    "1.0",
    "yes",
    "",
    "\x00\u202e\ud800\ufeff",
    "é\u2028\x85\r\nκλάση 猫",
    "c" * 500,
]
OUTSIDE = st.one_of(
    st.sampled_from(ATTACKS), st.text(max_size=40), st.text("|`-<>*_[](){}#%&\\~$!@:./ \nab", max_size=20)
)
OPTIONS = {
    "dataset": "uci/letters",
    "sharpness": "focal_sam",
    "rho": 0.2,
    "focal_gamma": 2.5,
    "loss": "vs",
    "loss_gamma": 0.15,
    "seed": 41,
    "learning_rate": 0.003,
    "num_train_epochs": 7,
}


def make_results(counts=(140, 60, 31, 8, 4), names=None, seed=0, **options):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), 37)
    probabilities = rng.dirichlet(np.ones(len(counts)), len(labels))
    probabilities[rng.random(len(labels)) < 0.5] *= 0.1
    probabilities[np.arange(len(labels)), labels] += 0.3 * (rng.random(len(labels)) < 0.6)
    probabilities /= probabilities.sum(1, keepdims=True)
    report = long_tail_report(probabilities.argmax(1), labels, list(counts), probabilities, class_names=names)
    return {
        "report": json.loads(json.dumps(report)),
        "training": {"train_runtime": 1287.4321, "train_steps_per_second": 3.217, "train_loss": 0.98765},
        "options": OPTIONS | options,
        "model": {"task": "image-classification"},
        "command": "recipes/image_classification.py --config x.yaml",
        "machine": "3 CPU cores, x86_64",
        "versions": {"hf-sharp": "0.1.0", "torch": "2.13.0"},
    }


class Page(HTMLParser):
    """What a reader sees: the cells of the tables, the tags, and the text."""

    def __init__(self, card):
        super().__init__()
        self.tables, self.tags, self.links, self.seen, self.cell = [], set(), [], "", None
        self.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(card.text))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = self.tables[-1][-1]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        self.seen += data
        if self.cell is not None:
            self.cell[-1] += data

    def table(self, heading):
        return next(table for table in self.tables if table[0][0] == heading)


def rounded(value, supports):
    """Percent and half width, both as a card rounds them: a naive reference of the interval."""
    variance = 0.0
    for recall, n in supports:
        p = (recall * n + 2) / (n + 4)
        variance += p * (1 - p) / (n + 4)
    width = 100 * 1.96 * variance**0.5 / len(supports)
    decimals = 0 if width >= 1 else 1
    return f"{100 * value:.{decimals}f}", f"{width:.{decimals}f}"


def saved(card, tmp_path):
    card.save(tmp_path / "README.md")
    return ModelCard.load(tmp_path / "README.md")


def test_the_metadata_comes_back_as_it_was_and_is_what_the_hub_asks_for(tmp_path):
    results = make_results()
    card = saved(
        build_card(
            results,
            model_name="letters",
            base_model="google/vit-base",
            licence="MIT",
            language=["en", "de"],
            tags=["mine", "hf-sharp"],
        ),
        tmp_path,
    )
    data = card.data
    assert (data.license, data.language, data.base_model) == ("mit", ["en", "de"], "google/vit-base")
    assert (data.datasets, data.library_name, data.pipeline_tag) == (
        ["uci/letters"],
        "transformers",
        "image-classification",
    )
    assert {"mine", "hf-sharp", "focal_sam", "vs"} <= set(data.tags)
    assert len(data.tags) == len(set(data.tags))
    assert data.model_name == "letters"
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    wanted = ("accuracy", "balanced_accuracy", "many_accuracy", "medium_accuracy", "few_accuracy")
    assert values == {name: round(results["report"][name], 4) for name in wanted}
    for result in data.eval_results:
        assert (result.dataset_type, result.dataset_name, result.dataset_split) == (
            "uci/letters",
            "uci/letters",
            "test",
        )
        assert result.task_type == "image-classification"
        assert type(result.metric_value) is float
    assert ModelCardData(**data.to_dict()).to_dict() == data.to_dict()
    assert not _empty(data.to_dict()), "the Hub refuses null and empty values"


def test_a_mean_over_fewer_classes_than_its_group_has_says_so():
    results = make_results(counts=[140, 60, 12, 8, 4])
    sentence = "Classes without test examples (1 of 5) are left out."
    whole = build_card(results, model_name="letters").text
    assert "few (n < 20, 3 classes)" in whole
    assert "are left out" not in whole
    results["report"] = long_tail_report([0, 1, 2, 2], [0, 1, 2, 3], [140, 60, 12, 8, 4])
    card = build_card(results, model_name="letters")
    assert sentence in " ".join(card.text.split())
    assert "| few (n < 20, 2 of 3 classes) | 50 ±" in card.text
    assert "medium (20 ≤ n ≤ 100, 1 class)" in card.text
    assert "Mean recall, few (n < 20, 2 of 3 classes)" in {result.metric_name for result in card.data.eval_results}


def _empty(value):
    if isinstance(value, dict):
        return any(map(_empty, value.values()))
    return any(map(_empty, value)) if isinstance(value, list) and value else value in (None, "", [])


def test_a_group_without_classes_has_no_result_and_a_dash():
    card = build_card(make_results((300, 200, 150)), model_name="m")
    assert [r.metric_type for r in card.data.eval_results] == ["accuracy", "balanced_accuracy", "many_accuracy"]
    rows = {row[0]: row[1] for row in Page(card).table("in %")}
    assert rows["few (n < 20, 0 classes)"] == "–"


def test_numpy_numbers_and_nan_do_not_reach_the_yaml():
    results = make_results()
    results["report"] |= {"accuracy": np.float64(0.5), "few_accuracy": float("nan")}
    card = build_card(results, model_name="m")
    assert "!!python" not in str(card)
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["accuracy"] == 0.5
    assert "few_accuracy" not in {r.metric_type for r in card.data.eval_results}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [("apache-2.0", ("apache-2.0", None)), ("My Own: 1.0\n", ("other", "my-own-1.0")), (None, (None, None))],
)
def test_licences(licence, expected):
    data = build_card(make_results(), model_name="m", licence=licence).data.to_dict()
    assert (data.get("license"), data.get("license_name")) == expected


def test_a_language_that_the_hub_refuses_is_an_error():
    with pytest.raises(ValueError, match="does not accept language 'English'"):
        build_card(make_results(), model_name="m", language="English")


def test_folders_are_no_datasets_or_models_of_the_hub_and_are_shown_by_their_last_part(tmp_path):
    folder = tmp_path / "private" / "cats"
    folder.mkdir(parents=True)
    card = build_card(make_results(dataset=str(folder), model_name_or_path=str(folder)), model_name="m")
    assert card.data.datasets is None
    assert card.data.base_model is None
    assert card.data.eval_results[0].dataset_name == "cats"
    assert "fine-tuned from cats on cats" in Page(card).seen


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "vit", "hidden_size": 8}, "trained from scratch (vit) on"),
        ('{"model_type": "vit", "hidden_size": 8}', "trained from scratch (vit) on"),
        ("small_vit.json", "trained from scratch on"),
        (None, ", trained on"),
    ],
)
def test_a_model_without_a_base_was_trained_from_scratch(config, expected):
    results = make_results(dataset="beans", model_name_or_path=None, model_config=config)
    results.get("model", {}).pop("base", None)
    assert expected in str(build_card(results, model_name="m"))


def test_a_folder_of_the_machine_that_trained_is_one_where_the_card_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = make_results(dataset="data/birds", model_name_or_path="models/vit")
    elsewhere = build_card(results, model_name="m")
    (tmp_path / "data" / "birds").mkdir(parents=True)
    (tmp_path / "models" / "vit").mkdir(parents=True)
    results["local"] = local_names(results["options"])
    there = build_card(results, model_name="m")
    monkeypatch.chdir("/")
    assert str(build_card(results, model_name="m")) == str(there)
    assert elsewhere.data.base_model == "models/vit"
    assert not there.data.get("base_model")
    assert elsewhere.data.datasets == ["data/birds"]
    assert not there.data.get("datasets")


def test_the_tables_are_the_report():
    names = ["ape", "bee", "cat", "dog", "eel"]
    results = make_results(names=names)
    report = results["report"]
    page = Page(build_card(results, model_name="m", class_names=names))
    rows = {row[0].split(" (")[0]: row[1] for row in page.table("in %")[1:]}
    recall, support = report["per_class_recall"], report["per_class_support"]
    groups = {"balanced": range(5), "many": [0], "medium": [1, 2], "few": [3, 4]}
    expected = {}
    for group, classes in groups.items():
        cell = rounded(report[f"{group}_accuracy"], [(recall[c], support[c]) for c in classes])
        expected["balanced accuracy" if group == "balanced" else group] = " ± ".join(cell)
    worst = recall.index(report["worst_class_recall"])
    assert rows == expected | {
        "accuracy": " ± ".join(rounded(report["accuracy"], [(report["accuracy"], sum(support))])),
        "worst class": f"{rounded(recall[worst], [(recall[worst], support[worst])])[0]} ({report['worst_class']})",
        "macro F1": rounded(report["macro_f1"], list(zip(recall, support, strict=True)))[0],
    }
    groups = ["many", "medium", "medium", "few", "few"]
    assert page.table("class")[1:] == [
        [name, str(count), group, str(n), rounded(recall, [(recall, n)])[0], rounded(precision, [(precision, n)])[0]]
        for name, count, group, n, recall, precision in zip(
            *(names, report["class_counts"], groups),
            *(report[f"per_class_{what}"] for what in ("support", "recall", "precision")),
            strict=True,
        )
    ]
    assert page.table("true class")[1:] == [
        [c["true"], c["predicted"], str(c["count"])] for c in report["confusions"][:5]
    ]
    error = rounded(report["calibration_error"], [(report["accuracy"], sum(support))])[0]
    assert f"error ({calibration.BINS} bins) is {error} %" in page.seen


def test_figures_are_rounded_by_the_number_of_test_examples():
    assert half_width([0.0], [10]) > 0.1, "a recall of 0 of 10 examples is not certain"
    assert half_width([0.5, None], [96, 0]) == pytest.approx(0.098, abs=1e-3)
    assert half_width([None], [0]) is None
    results = make_results()
    results["report"] |= {"accuracy": 0.81684, "per_class_support": [20000] * 5}
    table = Page(build_card(results, model_name="m")).table("in %")
    assert table[1][:2] == ["accuracy", "81.7 ± 0.2"]


def test_figures_over_seeds_stand_beside_those_of_the_published_run():
    results, plain = make_results(seed=1), make_results(seed=2, sharpness="none")
    results["over_seeds"] = {
        "seeds": [0, 1, 2],
        "metrics": {"accuracy": [0.6, 0.7, 0.8], "few_accuracy": [0.5, 0.5, 0.5]},
        "plain": {"accuracy": [0.5, 0.6, 0.6], "few_accuracy": [0.4, 0.3, 0.2]},
    }
    page = Page(build_card(results, model_name="m", plain=plain))
    rows = {row[0]: row[3:] for row in page.table("in %")}
    assert rows["in %"] == ["3 seeds", "gain"]
    # Student's 97.5 % quantile with two degrees of freedom is 4.303.
    assert rows["accuracy"] == ["70.0 ± 10.0", f"+13.3 ± {4.303 * 100 * np.std([0.1, 0.1, 0.2], ddof=1) / 3**0.5:.1f}"]
    assert rows["few (n < 20, 2 classes)"][0] == "50.0 ± 0.0"
    assert rows["balanced accuracy"] == ["–", "–"]
    card = str(build_card(results, model_name="m", plain=plain))
    assert "runs with 3 seeds, and their gain over plain training" in card
    assert "It is one training run" not in card

    del results["over_seeds"]["plain"]
    alone = build_card(results, model_name="m", plain=plain)
    assert Page(alone).table("in %")[0] == ["in %", "this model", "plain training", "3 seeds"]
    assert "their gain" not in str(alone)


def test_the_class_table_begins_with_the_most_frequent_class():
    page = Page(build_card(make_results((4, 140, 31)), model_name="m"))
    assert [row[:3] for row in page.table("class")[1:]] == [
        ["1", "140", "many"],
        ["2", "31", "medium"],
        ["0", "4", "few"],
    ]


def test_every_number_in_the_card_is_one_of_the_results(tmp_path):
    results, plain = make_results(seed=1), make_results(seed=2, sharpness="none")
    plain["training"]["train_steps_per_second"] = 8.001
    results["radius"] = {"step": [1, 9], "rho": [0.31, 0.173]}
    card = build_card(results, model_name="model", plain=plain, class_names=["ape", "bee", "cat", "dog", "eel"])
    known = {"15", "20", "95", "100", f"{8.001 / 3.217:.1f}", "21"}  # bins, thresholds, interval, cost, minutes
    counts = results["report"]["class_counts"]
    known |= {str(sum(counts)), str(len(counts))}

    def collect(value):
        if isinstance(value, dict):
            [collect(item) for item in value.values()]
        elif isinstance(value, list):
            [collect(item) for item in value]
        elif isinstance(value, (int, float)):
            known.update({str(value), f"{value:g}", f"{value:.3g}", f"{value:.4f}", f"{100 * value:.0f}"})
        elif isinstance(value, str):
            known.update(re.findall(r"\d+(?:\.\d+)*", value))

    collect([results, plain["report"], plain["training"]])
    body = card.text.split("## Method")[0] + card.text.split("## Training")[1].split("<details>")[0]
    body = body.replace(",", "").replace("F1", "")
    groups = {str(results["report"][f"{group}_classes"]) for group in ("many", "medium", "few")}
    low = sum(value < 0.5 for value in results["report"]["per_class_recall"])
    body = re.sub(r" ± [\d.]+", "", body)  # the intervals have a test of their own
    unknown = set(re.findall(r"\d+(?:\.\d+)*", body)) - known - groups - {str(low)}
    assert not unknown


def test_the_method_has_every_option_in_effect_and_the_run_its_options():
    results = make_results()
    card = build_card(results, model_name="m")
    rows = {row[0]: row[1] for row in Page(card).table("option")[1:]}
    method = method_of(results["options"])
    assert rows == {
        name: "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
        for name, value in method.items()
    }
    assert method["focal_lambda"] == 0.8, "a default is an option as well"
    assert (method["loss_tau"], method["loss_gamma"], method["focal_gamma"]) == (1.0, 0.15, 2.5)
    assert method_of({"sharpness": "none", "loss": "vs"})["loss_gamma"] == 0.3, "the paper's value, by its number"
    assert method_of({"reweight_after": 0.8})["loss_beta"] == 0.9999
    assert json.loads(card.text.split("```json")[1].split("```")[0]) == results["options"]


def test_training_cost_and_the_learned_radius():
    results, plain = make_results(), make_results(sharpness="none", seed=3)
    plain["training"]["train_steps_per_second"] = 6.434
    results["radius"] = {"step": [5, 10], "rho": [0.05, 0.125]}
    rows = {row[0]: row[1] for row in Page(build_card(results, model_name="m", plain=plain)).table("")}
    assert rows["seed"] == "41"
    assert rows["training time"] == "21 min"
    assert rows["optimizer steps per second"] == "3.22"
    assert rows["hardware"] == results["machine"]
    assert rows["versions"] == "hf-sharp 0.1.0, torch 2.13.0"
    assert rows["time per step against plain training"].startswith("2.0 times")
    assert rows["learned radius ρ"] == "from 0.05 to 0.125"
    table = Page(build_card(results, model_name="m", plain=plain)).table("in %")
    shown = [" ± ".join(rounded(a, [(a, 185)])) for a in (r["report"]["accuracy"] for r in (results, plain))]
    assert table[1] == ["accuracy", *shown]
    results["training"]["passes"] = 2.667
    counted = {row[0]: row[1] for row in Page(build_card(results, model_name="m", plain=plain)).table("")}
    assert counted["cost of a step"] == "2.67 plain steps, in forward and backward passes"
    assert "time per step against plain training" not in counted, "it depends on what else the machine did"
    del results["training"]["passes"]
    plain["machine"] = "another"
    assert "times" not in str(Page(build_card(results, model_name="m", plain=plain)).table(""))


def test_a_run_of_seconds_has_no_speed():
    results, plain = make_results(), make_results(sharpness="none", seed=3)
    plain["training"]["train_runtime"] = 3.1
    rows = {row[0]: row[1] for row in Page(build_card(results, model_name="m", plain=plain)).table("")}
    assert "time per step against plain training" not in rows
    assert "optimizer steps per second" in rows
    rows = {row[0]: row[1] for row in Page(build_card(plain, model_name="m")).table("")}
    assert rows["training time"] == "3 s"
    assert "optimizer steps per second" not in rows


def limitations_of(results, **options):
    return build_card(results, model_name="m", **options).text.split("## Limitations")[1].split("##")[0]


def test_limitations_name_the_classes_below_half_and_what_was_not_measured():
    names = ["ape", "bee", "cat", "dog", "eel"]
    results = make_results((150, 50, 30, 10, 0), names)
    results["report"] |= {"per_class_recall": [0.9, 0.5, 0.42, 0.125, None], "per_class_support": [99, 99, 99, 8, 0]}
    results["report"] |= {"many_accuracy": 0.9, "few_accuracy": 0.125}
    limitations = limitations_of(results, class_names=names)
    assert "2 classes are recognised less than half of the time: dog (12 %), cat (42 %)." in limitations
    assert "No training examples: eel." in limitations
    assert "No test examples, so recall and precision are unknown: eel." in limitations
    assert "Fewer than 20 test examples, so the recall is a rough estimate: dog." in limitations
    assert "The mean recall of the few classes is 12 %, that of the many classes 90 %." in limitations
    assert "treat all classes alike" in limitations
    assert "(seed `41`)" in limitations
    results["options"] |= {"loss": "cross_entropy"}
    results["options"].pop("loss_gamma")
    results["report"]["per_class_recall"] = [0.9] * 5
    plain = build_card(results, model_name="m").text
    assert "treat all classes alike" not in plain
    assert "less than half" not in plain


def test_limitations_name_the_ten_worst_classes_and_count_the_others():
    results = make_results([50] * 14)
    results["report"] |= {"per_class_recall": [0.01 * i for i in range(14)], "per_class_support": [9] * 14}
    limitations = limitations_of(results)
    assert "14 classes are recognised less than half of the time: 0 (0 %), 1 (1 %)," in limitations
    assert "9 (9 %), and 4 more." in limitations
    assert "rough estimate: every class." in limitations


def test_a_gap_between_groups_is_named_only_beyond_its_interval():
    results = make_results((300, 4))
    shares = {"many_accuracy": 0.6, "few_accuracy": 0.5, "per_class_recall": [0.6, 0.5]}
    for support, named in ((20, False), (2000, True)):
        results["report"] |= shares | {"per_class_support": [support] * 2}
        assert ("The mean recall of the few classes" in limitations_of(results)) == named


@pytest.mark.parametrize(
    ("recall", "predicted", "said"),
    [(0.0, 0, None), (0.5, 100, None), (0.5, 200, "2.0 times"), (0.0, 300, "3.0 times")],
)
def test_rare_classes_are_overpredicted_only_where_the_figures_say_so(recall, predicted, said):
    results = make_results((300, 4))
    shares = {"per_class_recall": [0.9, recall], "per_class_predicted": [200 - predicted, predicted]}
    results["report"] |= shares | {"per_class_support": [100, 100], "few_accuracy": recall}
    limitations = limitations_of(results)
    assert "treat all classes alike" in limitations
    assert ("as often as they occur" in limitations) == (said is not None)
    assert said is None or f"predicts the few classes {said} as often as they occur" in limitations


@pytest.mark.parametrize(("classes", "folded"), [(20, False), (21, True)])
def test_a_long_class_table_is_folded(classes, folded):
    text = build_card(make_results([50] * classes), model_name="m").text
    section = text.split("## Classes")[1].split("##")[0]
    assert ("<details>" in section) == folded
    assert len(Page(build_card(make_results([50] * classes), model_name="m")).table("class")) == classes + 1


def test_citations_are_those_of_the_methods_used_and_no_others():
    def cited(**options):
        options = {"loss": "cross_entropy"} | options
        text = build_card(make_results() | {"options": options}, model_name="m").text
        assert ("## Citation" in text) == ("```bibtex" in text) == ("arxiv.org" in text or "CVPR" in text)
        assert set(re.findall(r"arXiv:([\d.]+)", text)) == set(re.findall(r"arxiv\.org/abs/([\d.]+)", text))
        return set(re.findall(r"arxiv\.org/abs/([\d.]+)", text))

    assert cited(sharpness="none", loss="cross_entropy") == set()
    assert cited(sharpness="focal_sam", loss="vs") == {"2010.01412", "2505.01660", "2103.01550"}
    learned = {"sharpness": "sam", "adaptive": True, "rho_schedule": "learned"}
    assert cited(**learned) == {"2010.01412", "2102.11600"}  # with an objective and an update of our own
    published = {"rho_objective": "gap", "rho_update": "adam"}
    assert cited(**learned, **published) == {"2010.01412", "2102.11600", "2408.08222"}
    assert cited(sharpness="none", head_init="class_mean") == {"2309.10019"}
    assert cited(sharpness="none", sampler="progressive") == {"1910.09217"}
    assert cited(sharpness="sam", sharpness_every=5) == {"2010.01412", "2203.02714"}
    assert cited(sharpness="sam", ascent="momentum") == {"2010.01412", "2401.12033"}
    assert cited(sharpness="none", reweight_after=0.5) == {"1901.05555", "1906.07413"}
    assert "CVPR 2023" in build_card(make_results() | {"options": {"sharpness": "cc_sam"}}, model_name="m").text


def test_every_method_and_loss_is_described_and_cited():
    for part, records in (("sharpness", METHODS), ("loss", LOSSES)):
        for name in records.builtin:
            text = build_card(make_results() | {"options": {part: name}}, model_name="m").text
            record = records[name]
            assert record.summary in Page(ModelCard(text)).seen
            assert f"Formula: `{record.formula}`." in text
            assert all(paper.bibtex in text for paper in record.citations)


class OwnLoss(ClassFrequencyLoss):
    name = "own_loss_of_a_card"
    formula = "CE + ε(1 − p)"

    def __init__(self, class_counts, epsilon=1.0):
        super().__init__(class_counts, epsilon=epsilon)


@pytest.fixture
def own_method():
    method = register_method(Method(name="own_method_of_a_card", coefficients=lambda priors: (1 - priors) ** 0.5))
    yield method
    METHODS.unregister(method.name)


def test_a_method_of_the_users_own_has_a_card(own_method):
    text = build_card(make_results() | {"options": {"sharpness": own_method.name}}, model_name="m").text
    assert f"**Sharpness.** `{own_method.name}`, defined by the authors of this model." in text
    assert "## Citation" not in text.split("## Training")[0]


def test_a_loss_of_the_users_own_has_a_card_and_does_not_inherit_a_description():
    register_loss(OwnLoss)
    try:
        text = build_card(make_results() | {"options": {"sharpness": "none"}} | own_loss(), model_name="m").text
    finally:
        LOSSES.unregister(OwnLoss.name)
    assert f"**Loss.** `{OwnLoss.name}`, defined by the authors of this model. Formula: `CE + ε(1 − p)`." in text
    assert "Plain cross-entropy" not in text
    assert "## Citation" not in text


def own_loss():
    return {"method": {"sharpness": "none", "loss": OwnLoss.name, "epsilon": 2.0}}


@pytest.mark.parametrize("part", ["sharpness", "loss"])
def test_what_is_not_registered_here_has_a_card_with_its_name(part):
    results = make_results() | {"options": {"seed": 1, part: "of_another_process", "loss_tau": 2.0}}
    text = build_card(results, model_name="m").text
    assert "`of_another_process`, defined by the authors of this model." in text
    assert "| `loss_tau` | `2.0` |" in text
    results["described"] = {part: {"summary": "Mine: it | differs.", "formula": "c = 1"}}
    assert "Mine: it &#124; differs. Formula: `c = 1`." in build_card(results, model_name="m").text


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_names_from_outside_are_text_and_nothing_else(data):
    names = data.draw(st.lists(OUTSIDE, min_size=3, max_size=3))
    model, dataset, base, option = (data.draw(OUTSIDE) for _ in range(4))
    _names_are_text(names, model, dataset, base, option)


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_known_attack_in_every_place(attack):
    _names_are_text([attack, "b", attack], attack, attack, attack, attack)


def _names_are_text(names, model, dataset, base, option):
    results = make_results((120, 30, 3), names, dataset=dataset, model_name_or_path=base)
    results["options"] |= {"class_importance": {option: 2.0}, "run_name": option, "test_split": option}
    results |= {"machine": option or "a machine", "command": option, "versions": {option: option}}
    card = build_card(results, model_name=model, class_names=names, tags=[option])
    text = str(card)
    text.encode("utf-8")  # no lone surrogates
    again = ModelCard(text)
    assert again.data.to_dict() == card.data.to_dict()
    clean = build_card(make_results((120, 30, 3), model_name_or_path="a/b"), model_name="m")
    optional = {"datasets", "base_model"}
    assert set(again.data.to_dict()) - optional == set(clean.data.to_dict()) - optional
    assert not _empty(again.data.to_dict())
    assert again.data.model_name == (one_line(model) or "model")
    page, harmless = Page(card), Page(clean)
    assert page.tags <= harmless.tags | {"a", "pre", "code"}
    assert all(
        re.match(r"https://(arxiv\.org/abs|huggingface\.co)/|recall_by_count\.png$", link) for link in page.links
    )
    assert [len(table) for table in page.tables] == [len(t) for t in harmless.tables]
    assert page.seen.count("\n## ") == 0
    shown = [" ".join(row[0].split()) for row in page.table("class")[1:]]
    assert shown == [one_line(name) or "(no name)" for name in names]
    assert "{{" not in text.split("```json")[0].split("## Use")[0].split("\n---\n", 1)[1]
    opened = re.search(r"^classify = (.*)$", card.text, re.M)[1]
    call = ast.parse(opened).body[0].value
    assert [ast.literal_eval(argument) for argument in call.args] == [
        "image-classification",
        one_line(model) or "model",
    ]
    assert json.loads(card.text.split("```json")[1].split("\n```\n")[0])["seed"] == 41


@settings(max_examples=300, deadline=None)
@given(OUTSIDE)
@example("__a__")
def test_escaped_text_renders_as_itself(text):
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(f"x {escaped(text)} y")
    parser = HTMLParser()
    seen = []
    parser.handle_data = seen.append
    parser.handle_starttag = lambda tag, attributes: seen.append(f"<{tag}>") if tag != "p" else None
    parser.feed(rendered)
    assert "".join(seen).strip() == f"x {one_line(text) or '(no name)'} y"


def test_names_that_speak_of_tokens_stay():
    assert one_line("token ring") == "token ring"
    for name in ("ann/hf_flowerclassifier", "chf_hospitalization", "chf_" + "a" * 40):
        assert one_line(name) == name
    assert (
        one_line("a token hf_abcdefghijklmnopqrstuvwxyzABCDEFGH and token=x, token 0123456789abcdef0")
        == "a token … and token=… token …"
    )


def test_tokens_reach_no_card():
    token = "hf_" + "".join(random.Random(0).choices("abcdefXYZ0189", k=34))
    results = make_results(hub_token=token, run_name=f"with {token}", push_to_hub_token="plainsecret")
    results["command"] = f"train.py --hub_token {token} --push_to_hub_token=plainsecret --seed 1"
    text = str(build_card(results, model_name=f"m {token}"))
    assert token not in text
    assert "plainsecret" not in text
    assert "--seed 1" in text


def test_a_command_is_shown_whole():
    results = make_results()
    results["command"] = "train.py " + "--a_long_option x " * 30
    assert results["command"].strip() in build_card(results, model_name="m").text


def test_weights_that_were_not_evaluated():
    results = {"report": {"class_counts": [50, 5]}, "options": {"sharpness": "sam"}}
    card = build_card(results, model_name="m")
    assert "model-index" not in str(card)
    assert "These weights were not evaluated." in card.text
    assert Page(card).table("class")[1:] == [["0", "50", "medium"], ["1", "5", "few"]]


def test_write_card_reads_the_folder_draws_and_its_lines_of_python_run(tmp_path, monkeypatch):
    from PIL import Image
    from transformers import ViTImageProcessor

    for run, options in (("baseline", {"sharpness": "none"}), ("sharp", {})):
        folder = tmp_path / run
        model = make_vit(num_channels=3)
        model.config.id2label = dict(enumerate(["ape", "bee", "cat", "dog"]))
        model.save_pretrained(folder)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
        results = make_results((140, 60, 31, 8), seed=len(run), **options)
        (folder / "all_results.json").write_text(json.dumps(results))
    written = write_card(tmp_path / "sharp", licence="mit")
    card = ModelCard.load(written)
    assert written == tmp_path / "sharp" / "README.md"
    assert card.data.model_name == "sharp"
    assert card.data.pipeline_tag == "image-classification"
    assert [row[0] for row in Page(card).table("class")[1:]] == ["ape", "bee", "cat", "dog"]
    assert len(Page(card).table("in %")[0]) == 3, "the plain run beside it is shown"
    assert (tmp_path / "sharp" / "recall_by_count.png").stat().st_size > 5000
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("picture.png")
    lines = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    assert lines.count("\n") == 3
    assert "hf_sharp" not in lines
    answers = []
    exec(lines, {"print": answers.append})
    assert {answer["label"] for answer in answers[0]} <= {"ape", "bee", "cat", "dog"}


@pytest.mark.parametrize(
    ("folder", "repo_id", "name"),
    [
        ("birds", None, "birds"),
        ("birds/focal_sam+vs", None, "birds"),
        ("birds/vs", None, "birds"),
        ("birds/seed_41", None, "birds"),  # of hf-sharp compare
        ("birds/model", None, "model"),
        ("birds/focal_sam+vs", "ann/rare-birds", "rare-birds"),
    ],
)
def test_the_title_is_the_name_of_folder_or_repository_and_not_of_the_loss(
    tmp_path, monkeypatch, folder, repo_id, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "all_results.json").write_text(json.dumps(make_results()))
    card = ModelCard.load(write_card(tmp_path / folder, draw=False, **({"repo_id": repo_id} if repo_id else {})))
    assert f"\n# {name}\n" in card.text
    assert f'pipeline("image-classification", "{repo_id or folder}")' in card.text, "what opens the model from here"
    assert card.data.model_name == name


def test_the_title_of_what_a_search_trained_is_the_name_of_the_search(tmp_path):
    (tmp_path / "birds" / "model").mkdir(parents=True)
    (tmp_path / "birds" / "tuning.json").write_text("{}")
    (tmp_path / "birds" / "model" / "all_results.json").write_text(json.dumps(make_results()))
    assert "\n# birds\n" in write_card(tmp_path / "birds" / "model", draw=False).read_text()


def test_a_folder_elsewhere_is_named_by_its_last_part(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "birds" / "all_results.json").write_text(json.dumps(make_results()))
    text = write_card(tmp_path / "birds", draw=False).read_text()
    assert 'pipeline("image-classification", "birds")' in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"ascent": "momentum"}, "follows the optimizer's first moment"),
        ({"adaptive": True}, "relative to the size of each weight"),
        ({"rho_schedule": "learned"}, "learned on held-out examples"),
        ({"sampler": "square_root"}, "draws rare classes more often"),
        ({"reweight_after": 0.8}, "larger weights (DRW)"),
        ({"cosine_head": True}, "compares directions"),
    ],
)
def test_what_was_chosen_beside_method_and_loss_is_told(chosen, sentence):
    text = build_card(make_results(sharpness="sam", **chosen), model_name="m").text
    told = text.split("<details>")[0]
    assert sentence in told
    assert sentence not in build_card(make_results(sharpness="sam"), model_name="m").text


def test_an_ascent_that_is_gone_is_named_on_the_card_of_an_older_model():
    card = build_card(make_results(sharpness="sam", ascent="gone", gone_option=0.8), model_name="m")
    assert ["ascent", "gone"] in Page(card).table("option")
    assert '"gone_option": 0.8' in card.text


@pytest.mark.parametrize("root", ["/srv/ann/", "/data/", "C:\\Users\\ann\\", "~/"])
def test_no_absolute_path_is_published(root):
    dataset, base = f"{root}photos", f"{root}bert"
    results = make_results(dataset=dataset, model_name_or_path=base, run_name=f"at {root}x/y", dataset_config=dataset)
    words = ["train.py", "--dataset", dataset, f"--output_dir={root}out", f"{root}my runs/run.yaml"]
    results["command"] = shlex.join(words)
    text = str(build_card(results, model_name="m"))
    assert root not in text
    assert root.replace("\\", "\\\\") not in text
    assert "fine-tuned from bert on photos" in text
    assert "train.py --dataset photos --output_dir=out run.yaml" in text


@pytest.mark.parametrize("text", ["user/model", "https://a.b/c/d", "n/a", "data/birds", "km /h", "/", ""])
def test_what_is_no_absolute_path_stays(text):
    assert without_paths(text) == text


@pytest.mark.parametrize("change", ["learning_rate", "class_counts"])
def test_a_run_beside_it_of_other_data_or_options_is_not_compared_with(tmp_path, change):
    ours, other = make_results(), make_results(sharpness="none")
    if change == "class_counts":
        other["report"]["class_counts"][0] += 1
    else:
        other["options"][change] = 1.0
    for run, results in (("ours", ours), ("baseline", other)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "all_results.json").write_text(json.dumps(results))
    card = ModelCard.load(write_card(tmp_path / "ours", draw=False))
    assert len(Page(card).table("in %")[0]) == 2
    assert "recall_by_count" not in card.text


def test_results_of_the_trainers_own_save_metrics_are_refused(tmp_path):
    (tmp_path / "all_results.json").write_text('{"eval_loss": 1.0}')
    with pytest.raises(ValueError, match="no long-tail report"):
        read_results(tmp_path)


def test_class_names_that_are_not_one_per_class():
    with pytest.raises(ValueError, match="2 class names for 5 classes"):
        build_card(make_results(), model_name="m", class_names=["a", "b"])


def test_building_changes_nothing_in_the_results():
    results = make_results()
    before = copy.deepcopy(results)
    build_card(results, model_name="m", plain=results)
    assert results == before


def keeping(make_trainer, **options):
    keeper = ReportKeeper(ClassFrequencies.from_counts([40, 22, 9, 3]))

    trainer = make_trainer(
        eval_dataset=make_images([6, 6, 6, 6], seed=5),
        trainer={"compute_metrics": keeper.compute_metrics, "callbacks": [keeper]},
        **options,
    )
    return trainer, keeper


def test_the_report_of_a_trainer_is_that_of_its_weights_as_they_are(make_trainer):
    trainer, keeper = keeping(make_trainer, seed=5)
    trainer.evaluate()
    assert keeper.report is not None
    trainer.train()
    assert keeper.report is None, "the weights are others now"
    assert "accuracy" not in results_of(trainer, keeper.report)["report"]
    metrics = trainer.evaluate()
    results = results_of(trainer, keeper.report)
    assert results["report"]["balanced_accuracy"] == metrics["eval_balanced_accuracy"]
    assert len(results["report"]["per_class_recall"]) == 4
    assert (results["options"]["seed"], results["options"]["sharpness"]) == (5, "sam")
    assert results["training"]["train_runtime"] > 0
    assert results["training"]["passes"] == 2
    assert results["training"]["epochs"] > 0
    card = build_card(results, model_name="m")
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["accuracy"] == metrics["eval_accuracy"]
    assert card.data.pipeline_tag == "image-classification"


def test_the_card_of_a_trainer_can_be_that_of_a_finished_run(make_trainer, tmp_path):
    results = make_results(names="vwxyz")
    trainer = make_trainer(output_dir=str(tmp_path / "out"))
    trainer.create_model_card(model_name="photos", results=results)
    figures = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    assert {f.metric_type: f.metric_value for f in figures}["accuracy"] == round(results["report"]["accuracy"], 4)


def test_with_the_best_weights_loaded_the_report_is_theirs(make_trainer):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "greater_is_better": False}
    trainer, keeper = keeping(make_trainer, **options, **best)
    trainer.train()
    assert trainer.state.best_global_step < 8, "the test needs a best step that is not the last"
    kept = keeper.report
    trainer.evaluate()
    assert kept == keeper.report


def test_task_and_base_of_an_adapter_come_from_the_trainers_model(make_trainer, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    bert = BertForSequenceClassification(config)
    bert.config.id2label = dict(enumerate(["ham", "spam"]))
    bert.config._name_or_path = str(tmp_path / "bert")
    model = get_peft_model(bert, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    record = model_record(model)
    assert record == {
        "library": "peft",
        "task": "text-classification",
        "base": str(tmp_path / "bert"),
        "class_names": ["ham", "spam"],
    }
    card = build_card(make_results((30, 5)) | {"model": record, "options": {}}, model_name="mails")
    assert "A text classifier for 2 classes, fine-tuned from bert" in card.text
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-classification")
    assert str(tmp_path) not in str(card)
    assert 'PeftModel.from_pretrained(base, "mails")' in card.text
    assert '"path/to/base_model", id2label=dict(enumerate(["ham", "spam"])), ignore_mismatched_sizes=True)' in card.text
    assert (
        "num_labels=60, "
        in build_card(make_results(range(1, 61)) | {"model": {**record, "class_names": None}}, model_name="m").text
    )


def test_a_model_that_brings_code_is_trusted_and_long_texts_are_cut_in_the_lines_of_python(tmp_path):
    (tmp_path / "all_results.json").write_text(json.dumps(make_results((30, 5))))
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "ham", "1": "spam"}}
    for auto_map, opened in (({}, ")"), ({"auto_map": {"AutoConfig": "own.py"}}, ", trust_remote_code=True)")):
        (tmp_path / "config.json").write_text(json.dumps(config | auto_map))
        text = write_card(tmp_path, draw=False).read_text()
        assert f'pipeline("text-classification", "{tmp_path.name}"{opened}' in text
        assert ("runs the code that is saved beside the weights" in text) == bool(auto_map)
        assert 'print(classify("A text to classify.", truncation=True))' in text


def test_a_run_is_compared_with_plain_training_on_the_same_examples_alone(tmp_path):
    ours, plain = make_results(seed=1), make_results(seed=2, sharpness="none")
    for run, results in (("ours", ours), ("baseline", plain)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "all_results.json").write_text(json.dumps(results))
    assert "plain training" in write_card(tmp_path / "ours", draw=False).read_text().split("## Limitations")[0]
    for change in ({"split": "validation"}, {"report": ours["report"] | {"per_class_support": [36] * 5}}):
        (tmp_path / "ours" / "all_results.json").write_text(json.dumps(ours | change))
        assert "plain training" not in write_card(tmp_path / "ours", draw=False).read_text().split("## Limitations")[0]


def test_figures_of_a_trainers_evaluation_are_not_called_those_of_a_test(make_trainer):
    trainer, keeper = keeping(make_trainer)
    trainer.evaluate()
    card = build_card(results_of(trainer, keeper.report), model_name="m")
    assert "evaluation examples" in card.text
    assert "test examples" not in card.text


def test_a_model_of_no_known_task_has_no_lines_of_python():
    card = build_card(make_results() | {"model": {}}, model_name="m")
    assert card.text.strip().startswith("# m\n\nA classifier for 5 classes")
    assert "## Use" not in card.text
    assert "pipeline_tag" not in card.data.to_dict()


def test_a_loss_of_the_users_own_is_described_in_the_results(make_trainer):
    trainer = make_trainer(sharpness="sam")
    assert results_of(trainer)["described"] == {}
    trainer.class_loss = OwnLoss([40, 22, 9, 3], epsilon=2.0)
    results = results_of(trainer)
    assert results["described"] == {"loss": {"formula": "CE + ε(1 − p)"}}
    assert (results["method"]["loss"], results["method"]["epsilon"]) == (OwnLoss.name, 2.0)
    trainer.args.loss = "logit_adjusted"  # the default, whose options are not those of the loss in its place
    assert "loss_tau" in trainer.args.method
    assert "loss_tau" not in results_of(trainer)["method"]
    assert f"`{OwnLoss.name}`, defined by the authors" in build_card(results, model_name="m").text


def test_only_the_reports_of_the_best_and_the_latest_step_are_kept(make_trainer):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    kept = []
    trainer, keeper = keeping(make_trainer, load_best_model_at_end=True, **options)
    original = keeper.on_evaluate
    keeper.on_evaluate = lambda args, state, control, **more: (
        original(args, state, control, **more),
        kept.append(({*keeper._of_step}, {state.best_global_step, state.global_step})),
    )[0]
    trainer.train()
    assert len(kept) == 6
    assert all(steps <= wanted for steps, wanted in kept)
    assert max(len(steps) for steps, _ in kept) == 2
    assert keeper.report is not None
    trainer, keeper = keeping(make_trainer, **options)
    trainer.train()
    assert keeper._of_step == {}
