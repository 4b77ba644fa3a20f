"""Every picture is opened: its texts lie inside it and apart from each other, and none of them is a row of boxes."""

import importlib
import itertools
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager

from hf_sharp import ClassFrequencies
from hf_sharp.metrics import long_tail_report
from hf_sharp.reports import plots
from hf_sharp.reports.evaluation_pictures import draw_evaluation
from hf_sharp.reports.plots import fonts
from hf_sharp.reports.plots.errors import confusion_shares
from hf_sharp.reports.plots.labels import LEADER
from hf_sharp.reports.plots.layout import log_ticks, plain_ticks
from hf_sharp.reports.plots.shift import plot_shares
from hf_sharp.reports.plots.style import GROUP_COLOURS, MARKERS, PALETTE, picture, run_styles, shown_title
from hf_sharp.reports.plots.tuning import plot_pareto, plot_sensitivity
from hf_sharp.reports.tuning import FINISHED
from hf_sharp.sharpness.methods import METHODS

AWKWARD = ("猫", "$x_{1$", "a very long class name of somebody's own", "", "T-shirt", "\u202eevil", "snow_leopard")
LONG_TITLE = "the recall of every class of a dataset with a long name, " * 4


def predictions(num_classes, largest=3000, smallest=4, seed=0, per_class=20, skill=1.5):
    """Class counts, true classes and probabilities of a classifier that is worse on rare classes."""
    rng = np.random.default_rng(seed)
    counts = np.geomspace(largest, smallest, num_classes).round().astype(int)
    references = np.repeat(np.arange(num_classes), per_class)
    logits = rng.normal(size=(len(references), num_classes))
    logits[np.arange(len(references)), references] += skill * np.log10(counts[references] + 1)
    logits -= logits.max(1, keepdims=True)
    probabilities = np.exp(logits)
    return counts, references, probabilities / probabilities.sum(1, keepdims=True)


def long_tail_of(num_classes, absent=142):
    """Counts from 1,000 down to 1, and of some classes that have none."""
    return [*np.geomspace(1000, 1, num_classes - absent).round().astype(int), *[0] * absent]


def names_of(num_classes):
    return [*AWKWARD, *(f"a species of the same genus, number {i}" for i in range(num_classes))][:num_classes]


def report(num_classes, **options):
    counts, references, probabilities = predictions(num_classes, **options)
    return long_tail_report(
        probabilities.argmax(1), references, counts, probabilities, class_names=names_of(num_classes)
    )


def frequencies(num_classes, **options):
    return ClassFrequencies.from_counts(predictions(num_classes, **options)[0], names=tuple(names_of(num_classes)))


def recall_by_count(file, num_classes, runs=("baseline", "focal_sam+vs"), title="", **options):
    reports = {run: report(num_classes, seed=i, **options) for i, run in enumerate(runs)}
    plots.plot_recall_by_count(reports, file, title)


def recall_with_absent_classes(file):
    absent = report(7)
    absent |= {"class_counts": [0, 0, 1, 30, 200, 12, 3], "per_class_recall": [None, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0]}
    plots.plot_recall_by_count({"this model": absent}, file)


def confusion(file, num_classes, title="", **options):
    _, references, probabilities = predictions(num_classes, **options)
    plots.plot_confusion_matrix(probabilities.argmax(1), references, frequencies(num_classes, **options), file, title)


def confusion_with_absent_classes(file, num_classes, absent):
    counts, references, probabilities = predictions(num_classes)
    kept = ~np.isin(references, absent)
    classes = ClassFrequencies.from_counts(counts, names=tuple(names_of(num_classes)))
    plots.plot_confusion_matrix(probabilities.argmax(1)[kept], references[kept], classes, file)


def confusion_with_long_names(file, num_classes):
    _, references, probabilities = predictions(num_classes)
    names = ("golden retriever", "german shepherd", "labrador retriever", "border collie mix")[:num_classes]
    classes = ClassFrequencies.from_counts(frequencies(num_classes).counts, names=names)
    plots.plot_confusion_matrix(probabilities.argmax(1), references, classes, file)


def reliability(file, **options):
    _, references, probabilities = predictions(10, **options)
    plots.plot_reliability(probabilities, references, file, LONG_TITLE)


def radius(file, steps=(1, 400, 4200), start=0.05, runs=("sam+vs", "猫", "a" * 90)):
    curves = {run: {"step": steps, "rho": np.geomspace(start, start * 1.1, len(steps))} for run in runs}
    plots.plot_radius(curves, file, "learned radius")


def geometry(file, num_classes, names=None):
    vectors = np.random.default_rng(0).normal(size=(num_classes, 30))
    counts = np.geomspace(3000, 2, num_classes).round().astype(int)
    plots.plot_geometry((vectors @ vectors.T, np.eye(num_classes)), counts, file, names)


def step_geometry(file, points=5):
    rng = np.random.default_rng(0)
    curves = {
        f"{loss}, {kind}": {
            "gamma": np.linspace(-0.5, 0.5, points),
            "values": rng.uniform(0.2, 3, (8, points)),
            "line": kind == "theory",
            "color": colour,
        }
        for loss, colour in (("CDT", PALETTE[1]), ("LDT", PALETTE[3]))
        for kind in ("theory", "UFM", "ViT")
    }
    plots.plot_step_geometry(curves, file, "implicit geometry, half of the classes 10 times as frequent")


def loss_along(file, models=("plain", "sam+vs", "猫" * 40)):
    losses = {"all": [2.0, 1.0, 0.5, 1.0, 3.0], "few": [3.0, 2.0, 1.0, 2.0, 4.0]}
    along = {"radii": [-1, -0.5, 0, 0.5, 1], "ascent": losses, "random": losses | {"few": None}}
    reports = {model: {"along": along, "all": {"loss": 0.5}, "few": {"loss": 1.0}} for model in models}
    plots.plot_loss_along(reports, file, "photos, test, ρ = 0.05")


def few_shot(file, domains=5, backbones=4):
    rows = {
        f"a backbone with a long name, number {b}": {
            f"a domain with a long name {d}": SimpleNamespace(accuracy=0.5 + 0.04 * d, interval=0.02)
            for d in range(domains)
        }
        for b in range(backbones)
    }
    plots.plot_few_shot(rows, file, "few-shot accuracy on image domains, adaptation by prototypes")


def shares(file, num_classes=12, examples=2000, absent=0):
    training = np.geomspace(1, 0.001, num_classes)
    training[:absent] = 0
    new = np.random.default_rng(0).permutation(training)
    new[-2:] = 1e-9, 0  # as EM leaves a class that is not there
    training, new = training / training.sum(), new / new.sum()
    low, high = np.where(new < 0.005, new / 1000, new / 1.5), np.maximum(new * 1.5, 2 / examples)
    new[1], low[1], high[1] = training[1], training[1], training[1]
    changes = np.where(low > training, "grew", np.where(high < training, "shrank", None)).tolist()
    changes[1] = "kept"
    plot_shares(training, new, low, high, changes, examples, names_of(num_classes), file, LONG_TITLE)


def search(runs=20, *, radii=(0.005, 0.2), counted=True, seed=0):
    """Finished runs of a search, and one that was ended early."""
    rng = np.random.default_rng(seed)
    methods = {"none": 1.0, "sam, momentum": 1.0, "sam": 2.0, "focal_sam": 2.67}
    found = []
    for i, (method, passes) in zip(range(runs), itertools.cycle(methods.items()), strict=False):
        rho = {} if method == "none" else {f"rho ({method})": rng.uniform(*radii)}
        found.append(
            {
                "number": i,
                "state": FINISHED,
                "value": rng.uniform(0.6, 0.8),
                "few": rng.uniform(0.2, 0.5),
                "seconds": rng.uniform(10, 30),
                "passes": passes if counted else None,
                "group": method,
                "params": {"method": method, "loss_tau": rng.uniform(0, 2), **rho},
            }
        )
    return [*found, found[0] | {"number": runs, "state": "ended", "value": None}]


def is_radius(name):
    return name.startswith("rho")


PICTURES = {
    "plot_recall_by_count": [
        lambda file: recall_by_count(file, 7, title=LONG_TITLE),
        lambda file: recall_by_count(file, 12, skill=0),
        lambda file: recall_by_count(file, 100, skill=0.8),
        lambda file: recall_by_count(file, 7, largest=110, smallest=90),
        lambda file: recall_by_count(
            file, 7, runs=[f"focal_sam+a_loss_with_a_name_that_is_long_{i}" for i in range(17)]
        ),
        recall_with_absent_classes,
    ],
    "plot_counts": [
        lambda file: plots.plot_counts(frequencies(30), file, "a dataset"),
        lambda file: plots.plot_counts(frequencies(300, largest=10**6), file, LONG_TITLE),
        lambda file: plots.plot_counts(ClassFrequencies.from_counts(long_tail_of(8142)), file, "a dataset"),
        lambda file: plots.plot_counts(ClassFrequencies.from_counts([3, 0, 1]), file),
    ],
    "plot_confusion_matrix": [
        *(lambda file, k=k: confusion(file, k, LONG_TITLE) for k in (2, 15, 30, 31, 300)),
        lambda file: confusion_with_absent_classes(file, 2, [1]),
        *(lambda file, k=k: confusion_with_long_names(file, k) for k in (2, 3, 4)),
        lambda file: confusion_with_absent_classes(file, 12, [5, 6, 11]),
        lambda file: confusion_with_absent_classes(file, 30, [0, 17, 18]),
        lambda file: confusion_with_absent_classes(file, 60, range(40, 60)),
    ],
    "plot_precision_recall": [
        lambda file, k=k, skill=skill: plots.plot_precision_recall(report(k, skill=skill), file, LONG_TITLE)
        for k, skill in ((2, 1), (30, 0.5), (31, 1), (300, 2), (60, 0))
    ],
    "plot_reliability": [reliability, lambda file: reliability(file, per_class=1)],
    "plot_radius": [
        radius,
        lambda file: radius(file, steps=[7], runs=["one"]),
        lambda file: radius(file, start=1e-6),
        lambda file: radius(file, steps=(1, 4_000_000)),
    ],
    "plot_geometry": [
        lambda file: geometry(file, 20, names_of(20)),
        lambda file: geometry(file, 10),
        lambda file: geometry(file, 100),
        lambda file: geometry(file, 1500),
    ],
    "plot_step_geometry": [step_geometry, lambda file: step_geometry(file, points=1)],
    "plot_loss_along": [loss_along],
    "plot_few_shot": [few_shot, lambda file: few_shot(file, domains=1, backbones=9)],
    "plot_shares": [
        shares,
        lambda file: shares(file, 300),
        lambda file: shares(file, 3),
        lambda file: shares(file, 12, examples=10**6, absent=2),
    ],
    "plot_sensitivity": [
        lambda file: plot_sensitivity(search(), file, LONG_TITLE, is_log=is_radius),
        lambda file: plot_sensitivity(search(1), file, free={"loss_tau": {0.0: 0.5, 1.0: 0.7}}),
        *(
            lambda file, radii=radii: plot_sensitivity(search(9, radii=radii), file, "clean", is_log=is_radius)
            for radii in ((0.0161, 0.02), (0.25, 0.2501), (2e-5, 2e-3), (0.9, 1.1))
        ),
    ],
    "plot_pareto": [
        lambda file: plot_pareto(search(), file, LONG_TITLE),
        lambda file: plot_pareto(search(1), file),
        lambda file: plot_pareto(search(2), file),
        lambda file: plot_pareto(search(seed=4), file),
        lambda file: plot_pareto(search(counted=False), file),
    ],
}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Lays out a picture, and returns its figure; only with a suffix is it saved, which takes longer."""
    figures, save = [], Figure.savefig

    def keep(figure, file, **kwargs):
        figure.draw_without_rendering()
        if file.suffix:
            save(figure, file, **kwargs)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(picture, suffix=""):
        file = tmp_path / "new" / f"picture{suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a glyph that no font has, a layout that does not converge
            warnings.simplefilter("ignore", DeprecationWarning)  # an old matplotlib beside a new pyparsing
            picture(file)
        assert not suffix or file.stat().st_size > 3000
        return figures.pop()

    return draw


def tick_labels(axis):
    """The tick labels of an axis that are drawn."""
    low, high = sorted(axis.get_view_interval())
    dimension = 0 if axis.axis_name == "x" else 1
    labels = [*axis.get_majorticklabels(), *axis.get_minorticklabels()]
    shown = [label for label in labels if low <= label.get_position()[dimension] <= high]
    return [label for label in shown if label.get_visible() and label.get_text().strip()] if axis.axes.axison else []


def shown_texts(figure):
    """Texts to what they belong to: tick labels to their axis, others to None."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    labels = {}
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        texts += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            texts.append(axis.get_offset_text())
            labels |= dict.fromkeys(tick_labels(axis), axis)
    return {text: None for text in texts if text.get_visible() and text.get_text().strip()} | labels


@pytest.mark.parametrize(
    ("kind", "case"), [(kind, i) for kind, cases in PICTURES.items() for i in range(len(cases))], ids=str
)
def test_a_picture_can_be_read(drawn, kind, case):
    figure = drawn(PICTURES[kind][case])
    check_texts(figure)
    check_ticks(figure)
    check_legends(figure)
    check_leaders(figure)


def check_texts(figure):
    """All texts are inside the picture, and apart."""
    renderer = figure.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer), axis) for text, axis in shown_texts(figure).items()]
    assert boxes
    for text, box, _ in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, f"{text!r} is cut off: {box} in {figure.bbox}"
    for (one, a, of_a), (other, b, of_b) in itertools.combinations(boxes, 2):
        # Numbers of one axis have space between them, and those of two axes so much that they are not read as one axis.
        air = -1 if of_a is None or of_b is None else _SPACE if of_a is of_b else 2 * _SPACE
        apart = a.x1 <= b.x0 - air or b.x1 <= a.x0 - air or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one!r} and {other!r} overlap, or touch: {a}, {b}"


_SPACE = 5  # pixels, at 100 to the inch and 9 points


def check_ticks(figure):
    """Numbers are plain, as in 2,000 and 0.05; names are different."""
    number = re.compile(r"[−-]?(\d{1,3}(,\d{3})*)(\.\d{1,9})?")
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            assert not axis.get_offset_text().get_text(), "a factor or a summand beside the axis"
            labels = [label.get_text() for label in tick_labels(axis)]
            assert len(set(labels)) == len(labels), f"the same label twice: {labels}"
            for label in labels:
                if not re.search(r"[^\d.,−e+-]", label):
                    assert number.fullmatch(label), f"{label} is no plain number"


def check_legends(figure):
    """What a legend names is drawn, and its columns are as equal as can be."""
    for legend in figure.legends:
        number, columns = len(legend.get_texts()), legend._ncols
        assert columns == -(-number // -(-number // columns)), f"{number} entries in {columns} columns"
        labels = {text.get_text() for text in legend.get_texts()}
        lines = [line for axes in figure.axes if axes.get_visible() for line in axes.lines]
        for line in lines:
            if line.get_label() in labels and line.get_marker() == "None":
                assert len(np.unique(line.get_xydata(), axis=0)) > 1, f"{line.get_label()} is a line of one point"


def check_leaders(figure):
    """No line from a label to its point runs through a label."""
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        for leader in (line for line in axes.lines if line.get_gid() == LEADER):
            path = leader.get_transform().transform_path(leader.get_path())
            for text in axes.texts:
                box = text.get_window_extent(renderer).padded(-1)
                assert not path.intersects_bbox(box, filled=False), f"a line runs through {text.get_text()!r}"


def test_every_picture_has_a_case():
    modules = [
        importlib.import_module(f"{plots.__name__}.{found.name}") for found in pkgutil.iter_modules(plots.__path__)
    ]
    assert set(PICTURES) == {name for module in modules for name in vars(module) if name.startswith("plot_")}


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_suffix_chooses_the_format(drawn, suffix):
    drawn(PICTURES["plot_recall_by_count"][0], suffix)


def test_the_worst_five_classes_are_named(drawn):
    figure = drawn(lambda file: recall_by_count(file, 12, skill=0.5))
    recall = report(12, seed=1, skill=0.5)["per_class_recall"]
    worst = np.argsort(recall, kind="stable")[:5]
    labels = fonts.class_labels(names_of(12))
    assert {text.get_text() for text in figure.axes[0].texts} == {labels[c] for c in worst}


def test_classes_without_a_mark_are_counted(drawn):
    said = drawn(recall_with_absent_classes).axes[0].get_xlabel()
    assert said == "training examples of the class\n1 class without evaluated examples: not shown"
    shown = drawn(lambda file: recall_by_count(file, 7)).axes[0].get_xlabel()
    assert shown == "training examples of the class"


def test_classes_at_the_top_are_not_called_the_worst(drawn):
    perfect = report(7) | {"per_class_recall": [1.0] * 7}
    assert not drawn(lambda file: plots.plot_recall_by_count({"one": perfect}, file)).axes[0].texts


def test_a_curve_of_one_value_shows_a_point(drawn):
    (line,) = drawn(lambda file: radius(file, steps=[7], runs=["one"])).axes[0].lines
    assert line.get_marker() == "o"
    for line in drawn(lambda file: step_geometry(file, points=1)).axes[0].lines[:6]:
        assert line.get_marker() != "None"


@pytest.mark.parametrize(
    ("low", "high", "inches", "expected"),
    [
        (4, 60, 6, [5, 10, 20, 50]),
        (1.6, 155, 6, [2, 5, 10, 20, 50, 100]),
        (88, 120, 6, [90, 95, 100, 105, 110, 115, 120]),
        (1, 10**9, 3, [1, 1000, 10**6, 10**9]),
        (0.003, 0.2, 3, [0.01, 0.1]),
        (-0.3, 60, 6, [0, 1, 2, 5, 10, 20, 50]),
    ],
)
def test_ticks_are_plain_numbers(low, high, inches, expected):
    ticks = plain_ticks(low, high, inches)
    assert set(expected) <= set(ticks)
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("low", "high", "inches"),
    [
        (1756, 9.5e8, 2.3),
        (0.0129, 0.025, 2.3),
        (4.1e-5, 9.9e-5, 2.3),
        (1e-6, 3, 2.3),
        (90_000, 130_000, 2.3),
        (7, 8, 2.3),
    ],
)
def test_the_numbers_of_a_short_axis_fit(drawn, low, high, inches):
    def draw(file):
        with picture(file, (inches + 0.3, 2)) as figure:
            axes = figure.add_subplot()
            axes.set(xscale="log", xlim=(low, high), yticks=[])
            log_ticks(axes.xaxis, low, high, inches)

    figure = drawn(draw)
    check_texts(figure)
    check_ticks(figure)
    assert len(tick_labels(figure.axes[0].xaxis)) > 1


def test_thousands_of_classes_are_a_few_outlines(drawn):
    counts = long_tail_of(8142)
    np.random.default_rng(0).shuffle(counts)
    (axes,) = drawn(lambda file: plots.plot_counts(ClassFrequencies.from_counts(counts), file)).axes
    assert len(axes.get_children()) < 30
    heights = np.concatenate([outline.get_data().values for outline in axes.patches[:3]])
    assert heights[:8000].tolist() == sorted(counts, reverse=True)[:8000]
    assert axes.patches[0].get_data().edges[0] == 0.5, "the first class is number 1"


def test_a_share_that_one_example_would_change_is_as_good_as_none(drawn):
    training = np.full(40, 1 / 40)
    new = np.full(40, 1e-12)
    new[:2] = 0.6, 0.4
    low, high = np.where(new > 0.1, new - 0.1, 0), np.where(new > 0.1, new + 0.1, 0.05)
    names = [f"class {c}" for c in range(40)]
    changes = ["grew"] * 2 + [None] * 38
    (axes,) = drawn(lambda file: plot_shares(training, new, low, high, changes, 100, names, file)).axes
    numbers = [float(label.get_text()) for label in tick_labels(axes.xaxis)]
    assert numbers[0] == 0
    assert numbers[1] >= 0.5, "half of one example in a hundred"
    for line in axes.lines:
        inside = axes.bbox.padded(1)
        assert all(inside.contains(*point) for point in axes.transData.transform(line.get_xydata()))
    shown = {label.get_text() for label in tick_labels(axes.yaxis)}
    assert len(shown) == 30
    assert {"class 0", "class 1"} <= shown, "those that clearly moved"


def test_the_picture_of_shares_follows_the_test_and_not_the_intervals_alone(drawn):
    training, new = np.array([0.6, 0.3, 0.1]), np.array([0.5, 0.4, 0.1])

    def legend(*changes):
        draw = lambda file: plot_shares(training, new, new - 0.01, new + 0.01, changes, 900, list("abc"), file)  # noqa: E731
        (shown,) = drawn(draw).legends
        return [text.get_text() for text in shown.get_texts()][1:]

    assert legend(None, None, None) == ["new data: no clear change"]
    kept = "kept: no labelled example to estimate it"
    assert legend("shrank", "grew", "kept") == ["new data: grew", "new data: shrank", kept]


def test_an_option_with_one_value_has_no_panel(drawn):
    runs = search(6)
    assert sum("rho (sam)" in run["params"] for run in runs) == 1
    shown = [axes.get_xlabel() for axes in drawn(lambda file: plot_sensitivity(runs, file)).axes]
    assert shown == ["loss_tau", "method", "rho (sam, momentum)"]


def test_labels_of_classes_that_begin_alike_differ(caplog):
    fonts._explain.cache_clear()
    names = [f"diabetic retinopathy, non-proliferative, stage {i}" for i in range(12)]
    assert fonts.class_labels(names)[:2] == ["diabetic re…ive, stage 0", "diabetic re…ive, stage 1"]
    alike = fonts.class_labels([f"{'a' * 40}{i}{'b' * 40}" for i in range(3)])
    assert alike == ["#0", "#1", "#2"]
    assert "shortened, it looks like another" in caplog.text
    assert fonts.class_labels(["alone " * 9]) == ["alone alone alone alone…"]


def test_no_title_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "data" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for path in (
        "data/photos",
        "data/photos/",
        str(tmp_path / "data" / "photos"),
        "/nowhere/photos",
        "/nowhere/photos/",
    ):
        assert shown_title(path) == "photos"
        assert shown_title(f"{path}, split test: 9 examples") == "photos, split test: 9 examples"
        assert shown_title(f"{path}: 9 images, 2 classes") == "photos: 9 images, 2 classes"
    assert shown_title("uci/letters, split test") == "uci/letters, split test"


def test_a_method_has_the_same_colour_in_every_picture():
    alone = {run: run_styles([run])[0]["color"] for run in ("baseline", "sam+vs", "focal_sam+ldam", "imbsam")}
    assert len(set(alone.values())) == 4
    assert [style["color"] for style in run_styles([*alone])] == [*alone.values()]
    assert [style["color"] for style in run_styles(["mine", *alone])][1:] == [*alone.values()]
    assert run_styles(["this model"], {"this model": "focal_sam"})[0]["color"] == alone["focal_sam+ldam"]
    assert alone["baseline"] == run_styles(["cross_entropy"])[0]["color"]
    assert run_styles(["cross_entropy", "baseline"])[1]["color"] == alone["baseline"]
    eight = run_styles([f"sam+{i}" for i in range(8)])
    assert len({style["color"] for style in eight}) == len({style["marker"] for style in eight}) == 8
    assert len(run_styles([f"sam+{i}" for i in range(17)])) == 17
    assert len(METHODS.builtin) <= len(PALETTE) == len(MARKERS)


# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("colours", [PALETTE, (*GROUP_COLOURS.values(),)], ids=["methods", "groups"])
def test_the_colour_blind_tell_the_colours_apart(colours, deficiency):
    seen = [_lab(DEFICIENCIES[deficiency] @ _linear(colour)) for colour in colours]
    distances = [np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)]
    assert min(distances) > 10  # ΔE; 2 is just noticeable


def _linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(rgb):
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = to_xyz @ rgb.clip(0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.fixture
def other_fonts(monkeypatch):
    """Replaces the installed fonts, apart from the main one."""

    def replace(*entries):
        main = [entry for entry in fontManager.ttflist if entry.name == fonts.MAIN_FONT]
        monkeypatch.setattr(fontManager, "ttflist", [*main, *entries])
        fonts._installed.cache_clear()

    yield replace
    fonts._installed.cache_clear()


def test_without_a_font_for_it_a_name_is_its_number_and_the_log_says_whose(other_fonts, caplog):
    # Newer versions of matplotlib bring this font, which has a box for every character.
    other_fonts(*(entry for entry in fontManager.ttflist if entry.name.startswith("Last Resort")))
    fonts._explain.cache_clear()
    for _ in range(2):
        assert fonts.class_labels(["cat", "猫", "дом", "cat 猫"]) == ["cat", "#1", "дом", "#3"]
    said = "In pictures, #1 stands for '猫', #3 stands for 'cat 猫' (no installed font has its characters)."
    assert caplog.messages == [said], "once"
    assert fonts.class_labels(["#1", "猫", "##1"]) == ["#1", "###1", "##1"]
    assert fonts.class_labels(["cat", "dog"]) == ["cat", "dog"]
    assert len(caplog.messages) == 2
    assert fonts.drawable("sam on 猫") == "sam on \\u732b"
    assert fonts.fallback_fonts(["猫"]) == []


def test_a_font_that_has_the_characters_is_used(drawn, other_fonts, tmp_path):
    font = TTFont(findfont(fonts.MAIN_FONT))
    for table in font["cmap"].tables:
        table.cmap = {ord("猫"): "A"}
    for record in font["name"].names:
        record.string = "Cat Sans"
    font.save(tmp_path / "cat.ttf")
    before = list(fontManager.ttflist)
    try:
        fontManager.addfont(tmp_path / "cat.ttf")
        other_fonts(fontManager.ttflist[-1])
        assert fonts.class_labels(["猫", "猫" * 40]) == ["猫", "猫" * 11 + "…"], "as wide as 24 letters"
        assert fonts.fallback_fonts(["cat", "猫"]) == ["Cat Sans"]
        figure = drawn(lambda file: plots.plot_counts(ClassFrequencies.from_counts([9, 3], names=("猫", "b")), file))
        assert "猫" in [text.get_text() for text in shown_texts(figure)]
    finally:
        fontManager.ttflist[:] = before


def test_the_confusion_matrix_against_a_loop():
    frequencies = ClassFrequencies.from_counts([5, 300, 40], names=("a", "b", "c"))
    references, predicted = [0, 0, 0, 1, 1, 2], [1, 1, 0, 1, 2, 2]
    shares, rows, columns = confusion_shares(predicted, references, frequencies)
    assert rows == columns == ["b", "c", "a"]
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0], [0, 1, 0], [2 / 3, 0, 1 / 3]])


@pytest.mark.parametrize(("num_classes", "absent", "rows"), [(2, [1], [1]), (30, [0, 17], [0, 17])])
def test_rows_without_examples_say_so(drawn, num_classes, absent, rows):
    figure = drawn(lambda file: confusion_with_absent_classes(file, num_classes, absent))
    said = [text.get_position()[1] for text in figure.axes[0].texts if text.get_text() == "no examples"]
    assert said == rows
    assert [patch.get_y() + 0.5 for patch in figure.axes[0].patches if patch.get_hatch()] == rows


def test_many_classes_are_grouped_with_the_right_ones_apart():
    counts, references, probabilities = predictions(60, per_class=7, skill=1)
    predicted, frequencies = probabilities.argmax(1), ClassFrequencies.from_counts(counts)
    shares, rows, columns = confusion_shares(predicted, references, frequencies)
    assert [row.split("\n")[0] for row in rows] == ["many", "medium", "few"]
    assert columns == ["right", "wrong,\nmany", "wrong,\nmedium", "wrong,\nfew"]
    for row, classes in zip(shares, frequencies.groups.values(), strict=True):
        inside = np.isin(references, classes)
        assert row[0] == pytest.approx(np.mean(predicted[inside] == references[inside]))
        for share, group in zip(row[1:], frequencies.groups.values(), strict=True):
            wrong = (predicted[inside] != references[inside]) & np.isin(predicted[inside], group)
            assert share == pytest.approx(wrong.mean())


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize(
    ("predicted", "references", "said"),
    [
        ([-1], [0], "prediction 0 is -1; expected a class index"),
        ([0], [-100], "reference 0 is -100; expected a class index"),
        ([0, 1], [0], "two vectors of one length"),
    ],
)
def test_the_confusion_matrix_takes_class_indices_only(classes, predicted, references, said):
    with pytest.raises(ValueError, match=said):
        confusion_shares(predicted, references, ClassFrequencies.from_counts(np.arange(1, classes + 1)))


def test_eight_thousand_classes_take_no_matrix():
    counts = np.geomspace(2000, 2, 8142).round().astype(int)
    references = np.arange(8142)
    shares, _, _ = confusion_shares(references[::-1], references, ClassFrequencies.from_counts(counts))
    assert shares.shape == (3, 4)
    np.testing.assert_allclose(shares.sum(1), 1)


def test_reliability_is_drawn_from_the_bins_of_the_report(drawn):
    _, references, probabilities = predictions(10)
    figure = drawn(lambda file: plots.plot_reliability(probabilities, references, file))
    error = long_tail_report(probabilities.argmax(1), references, [9] * 10, probabilities)["calibration_error"]
    assert figure.axes[0].get_title() == f"expected calibration error {100 * error:.1f} %"
    confidence = probabilities.max(1)
    inside = (confidence > 14 / 15) & (confidence <= 1)
    x, y = figure.axes[0].lines[1].get_data()
    assert x[-1] == pytest.approx(100 * confidence[inside].mean())
    assert y[-1] == pytest.approx(100 * np.mean(probabilities.argmax(1)[inside] == references[inside]))


def test_the_reliability_of_other_decisions_is_that_of_the_report(tmp_path, monkeypatch):
    """With costs, the predicted class is not always the most likely one."""
    _, references, probabilities = predictions(10)
    decided = np.where(probabilities[:, 9] > 0.05, 9, probabilities.argmax(1))
    report = long_tail_report(decided, references, [9] * 10, probabilities)
    titles = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: titles.append(figure.axes[0].get_title()))
    draw_evaluation(tmp_path, report, decided, references, probabilities)
    likely = long_tail_report(probabilities.argmax(1), references, [9] * 10, probabilities)
    assert f"{report['calibration_error']:.3f}" != f"{likely['calibration_error']:.3f}"
    assert titles[-1] == f"expected calibration error {100 * report['calibration_error']:.1f} %"


def test_precision_and_recall_of_every_class_are_drawn(drawn):
    shown = report(7)
    recall, precision = drawn(lambda file: plots.plot_precision_recall(shown, file)).axes[0].lines
    assert list(recall.get_xdata()) == [100 * value for value in shown["per_class_recall"]]
    drawn_precision = [None if np.isnan(value) else value / 100 for value in precision.get_xdata()]
    assert drawn_precision == pytest.approx(shown["per_class_precision"])


def test_a_backend_of_another_environment_does_not_matter(tmp_path):
    code = f"""
from hf_sharp.reports.plots.fonts import class_labels
from hf_sharp.reports.plots.style import picture
class_labels(["a"])
with picture({str(tmp_path / "a.png")!r}, (3, 3), "title"):
    pass
"""
    environment = os.environ | {"MPLBACKEND": "no_such_backend"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[2])
    assert (tmp_path / "a.png").stat().st_size > 1000
