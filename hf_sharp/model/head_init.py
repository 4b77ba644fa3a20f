"""Initial values of a new classifier head, computed in one pass over the training set.

With μ_c the mean of the head's inputs over class c, and μ̄ the mean of the μ_c over the classes that have examples:

    w_c = s (μ_c − μ̄) / ‖μ_c − μ̄‖        b_c = −w_c · μ̄        so the logits of f are s times projections of f − μ̄
    absent class: w_c = 0, b_c = −log(N + 1), with N the number of examples

μ̄ is a mean over classes, not over examples; otherwise frequent classes would dominate it. The initial head contains no
class prior, as logit-adjusted and balanced losses expect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.model.cosine_head import CosineHead
from hf_sharp.model.head import check_is_linear, features_in_batches
from hf_sharp.registry import Choice, Citation
from hf_sharp.registry.limits import check_number

# Sums a tensor over all processes; every process gets the result.
Reduce = Callable[[Tensor], Tensor]


HEAD_INITS = ("none", "class_mean", "class_names")
LIFT = Citation(
    "Jiang-Xin Shi and Tong Wei and Zhi Zhou and Jie-Jing Shao and Xin-Yan Han and Yu-Feng Li",
    "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts",
    2023,
    arxiv="2309.10019",
)
# What the options of `SharpTrainingArguments` about the head bring into effect, and cite.
CHOICES = (
    Choice(
        "head_init",
        lambda values: values.get("head_init", "none") != "none",
        ("head_scale", "head"),
        (LIFT,),
    ),
    Choice(
        "head_init",
        lambda values: values.get("head_init") == "class_mean",
        ("head_examples",),
        summary="The head starts from the means of the classes.",
    ),
    Choice(
        "head_init",
        lambda values: values.get("head_init") == "class_names",
        summary="The head starts from the model's text features of the class names.",
    ),
    Choice(
        "cosine_head",
        lambda values: bool(values.get("cosine_head")),
        ("cosine_scale", "cosine_learn_scale", "cosine_custom_code", "head"),
        (LIFT,),
        "The head compares directions: features and rows are normalised.",
    ),
)


class HeadStart(NamedTuple):
    """How a head was initialised.

    Attributes:
        scale: s, the length of the rows; of a cosine head the factor of its cosines.
        examples: (K,), the number of examples in each class mean.
        loss: the cross-validated, class-balanced cross-entropy at this scale; None if no scale was chosen.
    """

    scale: float
    examples: Tensor
    loss: float | None


def init_head_from_class_means(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    class_counts: Any,
    *,
    scale: float | None = None,
    examples_per_class: int | None = None,
    reduce: Reduce | None = None,
    head: str | None = None,
    progress: str | None = None,
) -> HeadStart:
    """Set each row of the head to the direction of its class's mean feature, in one pass over the training set.

        w_c = s (μ_c − μ̄) / ‖μ_c − μ̄‖        b_c = −w_c · μ̄

    If `scale` is None, s minimises the class-balanced cross-entropy of exact leave-one-out predictions for a sample of
    the features, at most 10,000 / K per class. Classes with a single example are skipped there.

    An absent class gets the row 0 and the bias −log(N + 1). The initial head never predicts it, because for every
    input some other class has a logit of at least 0: Σ_c ‖μ_c − μ̄‖ w_c = 0.

    A cosine head (`use_cosine_head`) has no bias. Its rows are w_c = s μ_c / ‖μ_c‖, without μ̄, as in LIFT, and it keeps
    its own scale. The row of an absent class points away from μ̄; without a bias, nothing rules such a class out.

    Only the last linear layer changes. A head of several layers (RoBERTa's dense, tanh, out_proj) and a pooler (BERT's
    dense, tanh) keep their weights, and the class means are those of their outputs. If these layers are newly
    initialised, they act as a random projection: the classes stay separable, but the pretraining did not include it.

    Args:
        model: an image or sequence classification model, also with PEFT adapters. It runs in evaluation mode; its modes
            and hooks are restored. Call this before the model is sharded.
        batches: model inputs with `labels`, such as a DataLoader. With several processes, each passes its own share
            of the data, at least one batch. Examples that a sampler repeats are counted twice.
        class_counts: (K,) integers >= 0, the training examples of each class over all processes.
        scale: s > 0; None to choose it.
        examples_per_class: use only the first examples of each class, at most this number; the model does not process
            the others. None for all. The number is divided among the processes and rounded up.
        reduce: sums a tensor over all processes, such as `lambda x: accelerator.reduce(x, "sum")`; None if there is
            only one process.
        head: the name of the layer that computes the logits, if it cannot be found automatically.
        progress: the label of the progress bar; None for no bar.

    Returns:
        The scale, the examples used and the loss.

    Raises:
        ValueError: the head is not linear or has no bias, there are no examples, a number is out of range, features
            are not finite, or no scale can be chosen because no class has two examples.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> data = [{"input": torch.tensor([[3.0, 1.0], [1.0, 1.0]]), "labels": torch.tensor([0, 1])}]
        >>> start = init_head_from_class_means(model, data, [1, 1], scale=2.0)
        >>> model[0].weight.tolist(), model[0].bias.tolist()  # μ̄ = (2, 1)
        ([[2.0, 0.0], [-2.0, 0.0]], [-4.0, 4.0])

    Reference:
        LIFT arXiv 2309.10019 initialises a cosine classifier with class means or text features. Differs from it: the
        rows of a linear head are centred, and it has a bias and a chosen scale.
    """
    counts = ClassFrequencies.from_counts(class_counts).counts
    check_number("scale", scale, above=0, optional=True)
    check_number("examples_per_class", examples_per_class, least=1, whole=True, optional=True)
    device = next(model.parameters()).device
    reduce = reduce or (lambda tensor: tensor)
    if examples_per_class is not None:
        processes = round(float(reduce(torch.ones((), device=device))))
        batches = _limit(batches, counts.tolist(), math.ceil(examples_per_class / processes))
    sums = _ClassSums(len(counts), keep=scale is None)
    for features, labels, module in features_in_batches(model, batches, len(counts), head, progress):
        sums.update(features, labels)
        layer = module
    if sums.totals is None:
        raise ValueError("there are no examples to initialise the head from.")
    examples, means = reduce(sums.examples), reduce(sums.totals)
    means = means / examples.clamp(min=1)[:, None]
    if not bool(means.isfinite().all()):
        raise ValueError("the features are not finite: the model's weights or inputs contain NaN or infinity.")
    centre = means[examples > 0].mean(0)
    if isinstance(layer, CosineHead):
        layer.point_at(torch.where((examples > 0)[:, None], means, -centre))
        return HeadStart(layer.scale, examples.cpu(), None)
    check_is_linear(layer)
    if layer.bias is None:
        raise ValueError(
            "class means need a head with a bias, and this head has none; a bias added now would be lost when the "
            "model is loaded. Use a cosine head (use_cosine_head), which needs no bias."
        )
    loss = None
    if scale is None:
        scale, loss = _choose_scale(means, examples, centre, sums.kept_features(), sums.kept_labels(), reduce)
    rows = scale * nn.functional.normalize(torch.where((examples > 0)[:, None], means - centre, 0.0))
    bias = torch.where(examples > 0, -rows @ centre, -math.log(float(examples.sum()) + 1))
    with torch.no_grad():
        layer.weight.copy_(rows)
        layer.bias.copy_(bias)
    return HeadStart(scale, examples.cpu(), loss)


class _ClassSums:
    """The sum and number of features of each class, and the first few features of each class."""

    def __init__(self, num_classes: int, keep: bool) -> None:
        # Limits the N × K scores to 2²⁴ numbers, but keeps at least one example of each class.
        self.quota = max(1, min(2**24 // num_classes**2, 10_000 // num_classes)) if keep else 0
        self.num_classes = num_classes
        self.totals: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def update(self, features: Tensor, labels: Tensor) -> None:
        precise = torch.float32 if features.device.type == "mps" else torch.float64
        counted = labels != IGNORED_LABEL
        features, labels = features[counted].to(precise), labels[counted]
        if self.totals is None:
            self.totals = features.new_zeros(self.num_classes, features.shape[1])
            self.examples = labels.new_zeros(self.num_classes)
        if self.quota:
            rank = torch.nn.functional.one_hot(labels, self.num_classes).cumsum(0).gather(1, labels[:, None])[:, 0]
            first = rank + self.examples[labels] <= self.quota
            self._kept.append((features[first], labels[first]))
        self.totals.index_add_(0, labels, features)
        self.examples.index_add_(0, labels, torch.ones_like(labels))

    def kept_features(self) -> Tensor:
        return torch.cat([features for features, _ in self._kept])

    def kept_labels(self) -> Tensor:
        return torch.cat([labels for _, labels in self._kept])


def _limit(
    batches: Iterable[Mapping[str, Tensor]], class_counts: list[int], limit: int
) -> Iterator[Mapping[str, Tensor]]:
    """Yield only the first `limit` examples of each class, and stop as soon as all classes have theirs."""
    room = [min(limit, count) for count in class_counts]
    for batch in batches:
        if "labels" not in batch:
            yield batch  # raises in features_in_batches
            continue
        rows = []
        for row, label in enumerate(batch["labels"].tolist()):
            if 0 <= label < len(room):
                room[label] -= 1
                if room[label] < 0:
                    continue
            rows.append(row)
        if rows:
            yield {name: value[rows] for name, value in batch.items()}
        if max(room) <= 0:
            return


def _choose_scale(
    means: Tensor, examples: Tensor, centre: Tensor, features: Tensor, labels: Tensor, reduce: Reduce
) -> tuple[float, float]:
    """Choose s by the class-balanced cross-entropy of leave-one-out predictions; return both."""
    usable = examples[labels] > 1
    features, labels = features[usable], labels[usable]
    kept = reduce(torch.bincount(labels, minlength=len(means)).to(means))
    if not bool(kept.any()):
        raise ValueError("the scale cannot be chosen, as no class has two examples. Give it as scale=.")
    weights = 1 / (kept[labels] * (kept > 0).sum())
    scores = _leave_one_out_scores(means, examples, centre, features, labels)
    own = float(reduce((weights * scores.gather(1, labels[:, None])[:, 0].abs()).sum()))

    def loss(log_scale: float) -> float:
        losses = nn.functional.cross_entropy(math.exp(log_scale) * scores, labels, reduction="none")
        return float(reduce((weights * losses).sum()))

    # The loss is convex in s. If the classes are separable it has no minimum; logits of about 20 are then sufficient.
    middle = -math.log(max(own, 1e-12))
    best = minimize_scalar(loss, bounds=(middle - 5, middle + 3), method="bounded", options={"xatol": 0.01})
    return math.exp(best.x), float(best.fun)


def _leave_one_out_scores(means: Tensor, examples: Tensor, centre: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Compute the projections (N, K) of each example on the rows computed without this example.

    Leaving x out of class y moves μ_y by (μ_y − x) / (n_y − 1), and μ̄ by this divided by the number of present classes.
    """
    present = examples > 0
    rows = torch.where(present[:, None], means - centre, 0.0)
    moved = (means[labels] - features) / (examples[labels] - 1)[:, None]
    drift = moved / present.sum()
    x = features - centre - drift
    dots = x @ rows.T - (x * drift).sum(1, keepdim=True)
    squares = (rows**2).sum(1) - 2 * drift @ rows.T + (drift**2).sum(1, keepdim=True)
    own = rows[labels] - drift + moved
    index = labels[:, None]
    dots.scatter_(1, index, (x * own).sum(1, keepdim=True))
    squares.scatter_(1, index, (own**2).sum(1, keepdim=True))
    scores = dots / squares.clamp(min=torch.finfo(dots.dtype).tiny).sqrt()
    return scores.masked_fill(~present, -torch.inf)
