"""Draw the plots in docs/ from the committed results.

python benchmarks/pictures.py
"""

from pages.costs import COSTS
from pages.formatting import results
from study import PICTURES

from hf_sharp.reports.plots import plot_radius
from hf_sharp.reports.plots.layout import legend_below
from hf_sharp.reports.plots.style import MARKERS, PALETTE, picture


def recovery() -> None:
    """Draw learned radii that start too low, at the default and too high, over the steps."""
    result = results("fashion_mnist_lt_recovery")
    learned = {}
    for name, row in result["runs"].items():
        if "rho" in row:
            start = dict(part.split("=") for part in name.split(",") if "=" in part).get("rho", result["config"]["rho"])
            learned[float(start)] = row["rho"]["0"]
    curves = {f"from {start:g}": {"step": [0, *c["step"]], "rho": [start, *c["rho"]]} for start, c in learned.items()}
    plot_radius(curves, PICTURES / "radius_recovery.png", "learned radius, Fashion-MNIST-LT, 20 epochs")


def accuracy_by_cost() -> None:
    """Draw the balanced accuracy of each method against the cost of its step, for two datasets."""
    panels = (
        ("fashion_mnist_lt_cost", "vit", "Fashion-MNIST-LT, small ViT"),
        ("debian_sections_cost", "bert", "Debian sections, MiniLM"),
    )
    shown = {run: method for run, (_, method) in COSTS.items() if "alpha=0.7" not in run}  # far below the others
    with picture(PICTURES / "accuracy_by_cost.png", (10, 4.4)) as figure:
        for axes, (name, model, title) in zip(figure.subplots(1, 2), panels, strict=True):
            for (run, method), color, marker in zip(shown.items(), PALETTE, MARKERS, strict=True):
                cost = results("cost")["models"][model]["methods"][method]["ratio_quartiles"][1]
                found = results(name)["runs"][run]["balanced_accuracy"]
                style = {"color": color, "marker": marker, "capsize": 3, "linestyle": "", "markersize": 7}
                axes.errorbar(cost, 100 * found["mean"], 100 * found["stdev"], label=method, **style)
            axes.set(xlabel="time of a step, plain training = 1", ylabel="balanced accuracy (%), ± standard deviation")
            axes.set_title(title)
            axes.grid()
        legend_below(figure, axes)


def main() -> None:
    """Draw all of them."""
    PICTURES.mkdir(exist_ok=True)
    recovery()
    accuracy_by_cost()


if __name__ == "__main__":
    main()
