"""All plots, in one style."""

from hf_sharp.reports.plots.by_count import plot_counts, plot_recall_by_count
from hf_sharp.reports.plots.errors import plot_confusion_matrix, plot_precision_recall, plot_reliability
from hf_sharp.reports.plots.few_shot import plot_few_shot
from hf_sharp.reports.plots.geometry import plot_geometry, plot_step_geometry
from hf_sharp.reports.plots.training import plot_loss_along, plot_radius

__all__ = [
    "plot_confusion_matrix",
    "plot_counts",
    "plot_few_shot",
    "plot_geometry",
    "plot_loss_along",
    "plot_precision_recall",
    "plot_radius",
    "plot_recall_by_count",
    "plot_reliability",
    "plot_step_geometry",
]
