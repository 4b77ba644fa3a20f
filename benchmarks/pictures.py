"""Draw the pictures of docs/ from the committed results.

python benchmarks/pictures.py
"""

from pathlib import Path

from matplotlib.figure import Figure
from tables import COSTS, results

from hf_sharp.reports.plots import plot_radius

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7", "#000000", "#D55E00")  # Okabe and Ito


def recovery() -> None:
    """Draw learned radii that began too low, at the default and too high, over the steps."""
    result = results("fashion_mnist_lt_recovery")
    learned = {}
    for name, row in result["runs"].items():
        if "rho" in row:
            start = dict(part.split("=") for part in name.split(",") if "=" in part).get("rho", result["config"]["rho"])
            learned[float(start)] = row["rho"]["0"]
    curves = {f"from {start:g}": {"step": [0, *c["step"]], "rho": [start, *c["rho"]]} for start, c in learned.items()}
    plot_radius(curves, PICTURES / "radius_recovery.png", "learned radius, Fashion-MNIST-LT, 20 epochs")


def accuracy_by_cost() -> None:
    """Draw the balanced accuracy of each method against what a step of it costs, for two data sets."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for axes, name, model, title in zip(
        figure.subplots(1, 2),
        ("fashion_mnist_lt_cost", "debian_sections_cost"),
        ("vit", "bert"),
        ("Fashion-MNIST-LT, small ViT", "Debian sections, MiniLM"),
        strict=True,
    ):
        shown = {run: method for run, (_, method) in COSTS.items() if "alpha=0.7" not in run}  # far below the others
        for i, (run, method) in enumerate(shown.items()):
            cost = results("cost")["models"][model]["methods"][method]["ratio_quartiles"][1]
            found = results(name)["runs"][run]["balanced_accuracy"]
            axes.errorbar(
                cost,
                100 * found["mean"],
                100 * found["stdev"],
                color=COLOURS[i],
                marker="os^Dv*PX"[i],
                markersize=8,
                capsize=3,
                linestyle="",
                label=method,
            )
        axes.set(xlabel="time of a step, plain training = 1", ylabel="balanced accuracy (%)")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(PICTURES / "accuracy_by_cost.png", dpi=120)


def main() -> None:
    """Draw all of them."""
    PICTURES.mkdir(exist_ok=True)
    recovery()
    accuracy_by_cost()


if __name__ == "__main__":
    main()
