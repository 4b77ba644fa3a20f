"""Corrections for class imbalance after training, folded into the head so that any `pipeline()` applies them.

    logit_adjustment   b_c ← b_c − τ log π_c
    tau_norm           w_c ← w_c / ‖w_c‖^τ
    predicted_norm     w_c ← w_c (t / p_c)^(τ/2),  p = diag of the predicted W Wᵀ, t its mean; needs no data
    least_shift        W ← W + τ (W' − W),  W' the nearest symmetric classifier (rows: an equiangular tight frame)

τ is the strength: 0 leaves the head unchanged, 1 is the full correction.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor, nn

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.losses import build_loss
from hf_sharp.losses.base import log_priors
from hf_sharp.model.head import ClassifierHead, check_is_linear, features_in_batches, is_cosine_linear
from hf_sharp.model.modeling_cosine_head import CosineLinear
from hf_sharp.model.predicted_geometry import predict_for_loss, tight_frame
from hf_sharp.model.records import RECORD
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.nearest import check_name

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
STRENGTHS = tuple(round(0.1 * step, 1) for step in range(31))
CRITERIA: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "balanced_accuracy": lambda y, predicted: recall_score(y, predicted, labels=np.unique(y), average="macro"),
    "accuracy": accuracy_score,
}


class Head(NamedTuple):
    """A head's weight W (K, d) and bias b (K,) or None, in float64."""

    weight: Tensor
    bias: Tensor | None


def _logit_adjustment(head: Head, class_counts: Tensor, strength: float) -> Head:
    if head.bias is None:
        raise ValueError(
            "logit_adjustment changes the head's bias, but this head has none, and a bias added now would be lost "
            "when the model is loaded. Choose tau_norm, predicted_norm or least_shift."
        )
    return Head(head.weight, head.bias - strength * log_priors(class_counts))


def _tau_norm(head: Head, class_counts: Tensor, strength: float) -> Head:
    norms = _row_lengths("tau_norm", head)[:, None]
    return Head(head.weight / norms.clamp(min=torch.finfo(norms.dtype).tiny) ** strength, head.bias)


def _predicted_norm(
    head: Head, class_counts: Tensor, strength: float, loss: str = "cross_entropy", loss_gamma: float | None = None
) -> Head:
    _row_lengths("predicted_norm", head)
    options: dict[str, Any] = {} if loss_gamma is None else {"loss_gamma": loss_gamma}
    gram = predict_for_loss(build_loss(loss, class_counts.numpy(), **options)).classifier_gram
    squares = torch.tensor(gram.diagonal().copy())
    return Head(head.weight * ((squares.mean() / squares) ** (strength / 2))[:, None], head.bias)


def _row_lengths(method: str, head: Head) -> Tensor:
    lengths = torch.linalg.vector_norm(head.weight, dim=1)
    if len(lengths) > 2 and (lengths.max() - lengths.min()) < 1e-5 * lengths.max():
        raise ValueError(
            f"{method} corrects the lengths of the head's rows, and those of this head have one length, as in a cosine "
            "head. Choose logit_adjustment or least_shift."
        )
    return lengths


def _least_shift(head: Head, class_counts: Tensor, strength: float) -> Head:
    if (classes := len(head.weight)) - 1 > (size := head.weight.shape[1]):
        raise ValueError(
            f"an equiangular frame of {classes} rows needs at least {classes - 1} features, and the head has {size}. "
            "Choose logit_adjustment, tau_norm or predicted_norm."
        )
    frame = torch.tensor(tight_frame(len(head.weight)))
    # Procrustes: the matrix nearest to W among all a · P Q with orthonormal rows Q; the frame P is its own square root.
    left, _, right = torch.linalg.svd(frame @ head.weight, full_matrices=False)
    rank = len(head.weight) - 1
    symmetric = frame @ (left[:, :rank] @ right[:rank])
    symmetric *= (head.weight * symmetric).sum() / (symmetric**2).sum()
    return Head(torch.lerp(head.weight, symmetric, strength), head.bias)


METHODS: dict[str, Callable[..., Head]] = {
    "logit_adjustment": _logit_adjustment,
    "tau_norm": _tau_norm,
    "predicted_norm": _predicted_norm,
    "least_shift": _least_shift,
}


def adjust_head(
    model: Model, class_counts: Any, method: str = "logit_adjustment", *, head: str | None = None, **options: Any
) -> Model:
    """Fold a correction for class imbalance into the head of a trained model.

    Args:
        model: an image or sequence classification model with a linear head, or with a cosine head as it is saved. It
            is not changed.
        class_counts: (K,) integers >= 0, the training examples of each class.
        method: one of `METHODS`; see the module's formulas.
        head: the name of the layer that computes the logits, if several linear layers have K outputs.
        **options: `strength`, τ >= 0, default 1; and for predicted_norm the `loss` that the model was trained with and
            its `loss_gamma`.

    Returns:
        A copy of the model with the corrected head. Its config records the correction (`hf_sharp_adjustment`).

    Raises:
        ValueError: an unknown method or option, a negative strength, a head that was already adjusted or that the
            method cannot change, or counts that do not match the head's classes.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> adjusted = adjust_head(model, [90, 10], "logit_adjustment", strength=1.0)
        >>> (adjusted[0].bias - model[0].bias).tolist()  # −log 0.9 and −log 0.1
        [0.10536..., 2.30258...]

    Reference:
        Logit adjustment arXiv 2007.07314, section 4.1; tau-normalisation arXiv 1910.09217, section 4; the norms and the
        frame arXiv 2303.07608. Finding the nearest symmetric classifier is a Procrustes problem.
    """
    strength = options.pop("strength", 1.0)
    counts, known = _checked(model, class_counts, method, options, strength)
    record = {"method": method, "strength": float(strength), **known, "class_counts": counts.tolist()}
    return change_head(model, lambda old: METHODS[method](old, counts, strength, **options), record, len(counts), head)


def change_head(
    model: Model, change: Callable[[Head], Head], record: Mapping[str, Any], num_classes: int, head: str | None = None
) -> Model:
    """Copy a model, change its head, and record the change in its config.

    Args:
        model: as for `adjust_head`.
        change: takes the head and returns the new one; a bias cannot be added.
        record: the record to store in the config (`hf_sharp_adjustment`), with `method` and `strength`.
        num_classes: K.
        head: as for `adjust_head`.

    Returns:
        The copy.
    """
    adjusted = copy.deepcopy(model)
    layer = find_head(adjusted, num_classes, head)
    write_head(layer, change(read_head(layer)))
    if (config := getattr(adjusted, "config", None)) is not None:
        setattr(config, RECORD, dict(record))
    return adjusted


def choose_strength(
    model: nn.Module,
    validation: Iterable[Mapping[str, Tensor]],
    class_counts: Any,
    method: str = "logit_adjustment",
    *,
    metric: str = "balanced_accuracy",
    strengths: Iterable[float] = STRENGTHS,
    head: str | None = None,
    **options: Any,
) -> tuple[float, dict[float, float]]:
    """Choose the strength of a correction on validation data, in one pass over the data.

    Args:
        model: as for `adjust_head`.
        validation: batches of model inputs with `labels`. Never use test data here: a model chosen on it has no valid
            test result.
        class_counts: (K,) the training examples of each class.
        method: as for `adjust_head`.
        metric: the metric to maximise: balanced_accuracy or accuracy.
        strengths: the candidates.
        head: as for `adjust_head`.
        **options: as for `adjust_head`, without `strength`.

    Returns:
        The best strength, the smallest one in case of a tie, and the metric of every candidate.

    Raises:
        ValueError: as for `adjust_head`; also if the metric is unknown or there are no examples.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2))
        >>> _ = [p.data.zero_() for p in model.parameters()]  # predicts class 0 until the bias prefers the rare class
        >>> data = [{"input": torch.zeros(3, 1), "labels": torch.tensor([1, 1, 0])}]
        >>> choose_strength(model, data, [90, 10], strengths=[0.0, 1.0], metric="accuracy")
        (1.0, {0.0: 0.333..., 1.0: 0.666...})
    """
    check_name("metric", metric, CRITERIA)
    if not (candidates := sorted(set(map(float, strengths)))):
        raise ValueError("there are no strengths to choose from.")
    counts, _ = [_checked(model, class_counts, method, options, strength) for strength in candidates][-1]
    features, labels, layer = collect_features(model, validation, len(counts), head)
    old, scores = read_head(layer), {}
    for strength in candidates:
        weight, bias = METHODS[method](old, counts, strength, **options)
        logits = torch.nn.functional.linear(features, weight.to(features), None if bias is None else bias.to(features))
        scores[strength] = float(CRITERIA[metric](labels.numpy(), logits.argmax(1).numpy()))
    return max(scores, key=lambda strength: (scores[strength], -strength)), scores


def _checked(
    model: nn.Module, class_counts: Any, method: str, options: Mapping[str, Any], strength: float
) -> tuple[Tensor, dict[str, Any]]:
    check_name("method", method, METHODS)
    accepted = list(inspect.signature(METHODS[method]).parameters)[3:]
    if unknown := sorted(set(options) - set(accepted)):
        raise ValueError(
            f"{method!r} does not take {', '.join(unknown)}; it takes {', '.join(['strength', *accepted])}."
        )
    check_number("strength", strength, least=0)
    check_unadjusted(model)
    counts = torch.tensor(ClassFrequencies.from_counts(class_counts).counts)
    outputs = getattr(getattr(model, "config", None), "num_labels", len(counts))
    if outputs != len(counts):
        raise ValueError(f"the head has {outputs} outputs, and there are {len(counts)} class counts.")
    return counts, {name: options[name] for name in accepted if options.get(name) is not None}


def check_unadjusted(model: nn.Module) -> None:
    """Raise a ValueError if the model's head was adjusted before, or the model has adapters."""
    if hasattr(model, "peft_config"):
        raise ValueError("the model has adapters. Merge them first: model = model.merge_and_unload().")
    record = getattr(getattr(model, "config", None), RECORD, None)
    if record is not None and record["strength"] != 0:  # a strength of 0 means that nothing was changed
        raise ValueError(
            f"the head was adjusted before ({record['method']}, strength {record['strength']:g}), and corrections must "
            "not be combined. Start from the model as it was trained."
        )


def find_head(model: nn.Module, num_classes: int, name: str | None) -> nn.Linear:
    """Find the linear layer with K outputs; raise a ValueError if there are several."""
    with ClassifierHead(model, num_classes, name) as head:
        if len(head.candidates) > 1:
            raise ValueError(
                f"several linear layers have {num_classes} outputs: {', '.join(map(repr, head.candidates))}. Name the "
                "one that computes the logits with head=."
            )
        return next(iter(head.candidates.values()))


def read_head(layer: nn.Linear) -> Head:
    """Read the weight and bias of a head in float64; ValueError unless finite and with linear logits."""
    if not is_cosine_linear(type(layer)):  # W f / ‖f‖ + b
        check_is_linear(layer)
    if not all(parameter.isfinite().all() for parameter in layer.parameters()):
        raise ValueError("the weights of the head are not all finite numbers: has the training diverged?")
    bias = None if layer.bias is None else layer.bias.detach().cpu().double()
    return Head(layer.weight.detach().cpu().double(), bias)


@torch.no_grad()
def write_head(layer: nn.Linear, head: Head) -> None:
    """Write weight and bias into a layer, in the layer's dtype."""
    layer.weight.copy_(head.weight)
    if head.bias is not None:
        layer.bias.copy_(head.bias)


def collect_features(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], num_classes: int, head: str | None = None
) -> tuple[Tensor, Tensor, nn.Linear]:
    """Collect the features of a dataset, from which the logits of any linear head can be computed.

    Args:
        model: as for `choose_strength`.
        batches: model inputs with `labels`; examples labelled -100 are skipped.
        num_classes: K.
        head: as for `adjust_head`.

    Returns:
        Features (N, d) in float64, normalised for a cosine head; labels (N,), both on the CPU; and the head.

    Raises:
        ValueError: there are no examples, their features are not finite, or a batch as `labels_of` refuses it.
    """
    features, labels = [], []
    for batch_features, batch_labels, module in features_in_batches(model, batches, num_classes, head, "features"):
        layer, counted = module, batch_labels != IGNORED_LABEL
        if any(map(is_cosine_linear, type(layer).__mro__)):
            batch_features = cast(CosineLinear, layer).normalized(batch_features)
        features.append(batch_features[counted].cpu().double())
        labels.append(batch_labels[counted].cpu())
    if not any(map(len, labels)):
        raise ValueError("there are no examples to choose the strength on.")
    if not (all_features := torch.cat(features)).isfinite().all():
        raise ValueError("the features are not all finite numbers. Check the inputs, and the model and its dtype.")
    return all_features, torch.cat(labels), layer
