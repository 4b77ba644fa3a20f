"""Adaptations: how a backbone is fitted to the support set of a task, and how it then classifies the queries.

    prototype    logit_c = 10 · cos(f, μ_c),  μ_c the mean of class c's support features
    linear       logistic regression on 10 f / ‖f‖
    affine       logit_c = 10 · cos(A f, A μ_c),  A (d, d) from I by 40 Adadelta steps on the support's cross-entropy
    lora         the same, with LoRA adapters in the backbone that are learned together with A
    finetune     the same without A, by 40 AdamW steps on all weights of the backbone

Prototypes are computed from the support set only. An adaptation never sees the labels of queries: a `Task` has none.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from hf_sharp.few_shot.adapters import add_lora
from hf_sharp.few_shot.backbone import Backbone
from hf_sharp.few_shot.domain import Domain
from hf_sharp.few_shot.episodes import Task

SCALE = 10.0
STEPS = 40
# Adadelta's learning rates in the authors' code, on unseen domains and on domains that the backbone was trained on.
# For `lora` they are those of TSA's adapters (α, residual and in matrix form) and of its linear map (β).
_RATES = {
    "affine": {"learning_rate": (1.0, 0.1)},
    "lora": {"learning_rate": (0.5, 0.05), "map_learning_rate": (1.0, 0.1)},
}
# The number of tasks to adapt at once, which bounds the memory for any number of episodes.
_WINDOW = 64
_BATCH_NUMBERS = 4_000_000


@dataclass(frozen=True)
class Embedded:
    """The examples of a domain with their features.

    Attributes:
        backbone: the backbone; None if only the features are known, which suffice for `prototype`, `linear`, `affine`.
        domain: the examples; None if only the features are known.
        features: (N, d) features of all examples, converted to float32.
    """

    backbone: Backbone | None
    domain: Domain | None
    features: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", self.features.float())
        if not self.features.isfinite().all():
            raise ValueError("the features are not all finite numbers. Check the backbone and its dtype.")

    def part(self, rows: np.ndarray) -> Tensor:
        """Return the features of some examples."""
        return self.features[torch.as_tensor(rows, device=self.features.device)]


Adaptation = Callable[..., Iterator[Tensor]]


def prototype(embedded: Embedded, tasks: Sequence[Task]) -> Iterator[Tensor]:
    """Classify by the class mean with the largest cosine.

    Args:
        embedded: the examples.
        tasks: the tasks.

    Yields:
        (Q, k) logits, task by task.

    Example:
        >>> embedded = Embedded(None, None, torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1]]))
        >>> task = Task(np.array([0, 1]), np.array([0, 1]), np.array([2]))
        >>> next(prototype(embedded, [task])).round(decimals=1)  # almost parallel to the first
        tensor([[10.0000,  0.3000]])

    Reference:
        Snell et al., "Prototypical Networks", arXiv 1703.05175; with the cosine, arXiv 2107.00358.
    """
    for task in tasks:
        means = _means(embedded.part(task.support), task)
        yield _cosine_logits(embedded.part(task.query), means)


def linear(embedded: Embedded, tasks: Sequence[Task], C: float = 1.0) -> Iterator[Tensor]:  # noqa: N803
    """Fit a logistic regression to the support's features, normalised to length 10.

    Args:
        embedded: the examples.
        tasks: the tasks.
        C: scikit-learn's inverse strength of the L2 penalty.

    Yields:
        (Q, k) log-probabilities, task by task.

    Reference:
        Tian et al., "Rethinking Few-Shot Image Classification", arXiv 2003.11539, section 3.2.

    Differs from the authors' code: the features have length 10 instead of 1, for which this L2 penalty is too strong.
    """
    for task in tasks:
        support, query = (
            (SCALE * functional.normalize(embedded.part(rows), dim=1)).double().cpu().numpy()
            for rows in (task.support, task.query)
        )
        with warnings.catch_warnings():  # few examples of many classes are the normal case here
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            fitted = LogisticRegression(C=C, max_iter=1000).fit(support, task.support_labels)
        yield torch.from_numpy(fitted.predict_log_proba(query))


def affine(
    embedded: Embedded, tasks: Sequence[Task], steps: int = STEPS, learning_rate: float = 1.0
) -> Iterator[Tensor]:
    """Learn a linear map of the features for every task; many tasks are processed at once.

    Args:
        embedded: the examples.
        tasks: the tasks.
        steps: the number of Adadelta steps, 40 in the paper; 0 gives `prototype`.
        learning_rate: Adadelta's learning rate; in the paper 1 on unseen domains and 0.1 on seen ones.

    Yields:
        (Q, k) logits, task by task.

    Reference:
        Li et al., "Universal Representation Learning from Multiple Domains for Few-shot Classification" (URL), arXiv
        2103.13841, section 3.3; arXiv 2404.07696.
    """
    for start in range(0, len(tasks), _WINDOW):
        window = tasks[start : start + _WINDOW]
        # Tasks of similar size are batched together, so that there is little padding.
        order = sorted(range(len(window)), key=lambda i: (len(window[i].support), window[i].ways))
        maps: dict[int, Tensor] = {}
        for batch in _in_batches(order, window, embedded.features.shape[1]):
            learned = _learn_maps(embedded, [window[i] for i in batch], steps, learning_rate)
            maps.update(zip(batch, learned, strict=True))
        for i, task in enumerate(window):
            means = _means(embedded.part(task.support), task)
            yield _cosine_logits(embedded.part(task.query) @ maps[i].T, means @ maps[i].T)


def lora(
    embedded: Embedded,
    tasks: Sequence[Task],
    steps: int = STEPS,
    learning_rate: float = 0.5,
    map_learning_rate: float = 1.0,
    rank: int = 4,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Learn LoRA adapters in a copy of the backbone and a linear map of its features, for every task.

    Args:
        embedded: the examples, with their backbone.
        tasks: the tasks.
        steps: Adadelta steps, each on the whole support set.
        learning_rate: the learning rate of the adapters; for TSA's α, 0.5 on unseen domains and 0.05 on seen ones.
        map_learning_rate: the learning rate of the map; for TSA's β, 1 on unseen domains and 0.1 on seen ones.
        rank: the rank of the adapters, which are added to every linear layer.
        seed: the seed of the adapters' initial weights.

    Yields:
        (Q, k) logits, task by task.

    Raises:
        ImportError: PEFT is not installed.

    Reference:
        Modelled on TSA, which adapts convolutional networks: Li et al., "Cross-domain Few-shot Learning with
        Task-specific Adapters", arXiv 2107.00358.
    """
    backbone, domain = _with_backbone(embedded, "lora")
    for task in tasks:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = add_lora(_frozen_copy(backbone), rank, alpha=rank)
        matrix = torch.eye(embedded.features.shape[1], device=embedded.features.device, requires_grad=True)
        adapters = [p for p in adapted.parameters() if p.requires_grad]
        groups = [{"params": adapters, "lr": learning_rate}, {"params": [matrix], "lr": map_learning_rate}]
        optimizer = torch.optim.Adadelta(groups)
        yield _adapt(backbone, domain, task, adapted, matrix, optimizer, steps)


def finetune(
    embedded: Embedded, tasks: Sequence[Task], steps: int = STEPS, learning_rate: float = 1e-4
) -> Iterator[Tensor]:
    """Train a copy of the whole backbone for every task.

    Args:
        embedded: the examples, with their backbone.
        tasks: the tasks.
        steps: AdamW steps, each on the whole support set.
        learning_rate: AdamW's learning rate.

    Yields:
        (Q, k) logits, task by task.
    """
    backbone, domain = _with_backbone(embedded, "finetune")
    for task in tasks:
        adapted = _frozen_copy(backbone).requires_grad_(True)
        optimizer = torch.optim.AdamW(adapted.parameters(), lr=learning_rate, weight_decay=0.0)
        yield _adapt(backbone, domain, task, adapted, None, optimizer, steps)


ADAPTATIONS: Mapping[str, Adaptation] = {
    "prototype": prototype,
    "linear": linear,
    "affine": affine,
    "lora": lora,
    "finetune": finetune,
}


def published_rates(adaptation: str, seen: bool) -> dict[str, float]:
    """Return the learning rates that the authors of an adaptation use.

    Args:
        adaptation: one of `ADAPTATIONS`.
        seen: whether the backbone was trained on the domain of the tasks.

    Returns:
        Options of the adaptation; empty for adaptations without published rates.

    Example:
        >>> published_rates("affine", seen=True), published_rates("prototype", seen=True)
        ({'learning_rate': 0.1}, {})

    Reference:
        The code of URL (arXiv 2103.13841) for `affine`, and of TSA (arXiv 2107.00358) for `lora`.
    """
    return {option: rates[seen] for option, rates in _RATES.get(adaptation, {}).items()}


def _means(features: Tensor, task: Task) -> Tensor:
    labels = torch.as_tensor(task.support_labels, device=features.device)
    one_hot = functional.one_hot(labels, task.ways).to(features)
    return (one_hot.T @ features) / one_hot.sum(0)[:, None]


def _cosine_logits(features: Tensor, means: Tensor) -> Tensor:
    return SCALE * functional.normalize(features, dim=-1) @ functional.normalize(means, dim=-1).mT


def _in_batches(order: Sequence[int], tasks: Sequence[Task], dim: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in order:  # from the smallest task to the largest, so that the latest one sets the shape
        if batch and (len(batch) + 1) * dim * (5 * dim + 4 * len(tasks[i].support)) > _BATCH_NUMBERS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _learn_maps(embedded: Embedded, tasks: Sequence[Task], steps: int, learning_rate: float) -> Tensor:
    features = embedded.features
    size, ways, dim = max(len(task.support) for task in tasks), max(task.ways for task in tasks), features.shape[1]
    rows = features.new_zeros(len(tasks), size, dim)
    labels = torch.full((len(tasks), size), -1, device=features.device)
    for i, task in enumerate(tasks):
        rows[i, : len(task.support)] = embedded.part(task.support)
        labels[i, : len(task.support)] = torch.as_tensor(task.support_labels, device=features.device)
    one_hot = (labels[..., None] == torch.arange(ways, device=features.device)).to(features)
    counts = one_hot.sum(1)
    means = one_hot.mT @ rows / counts.clamp(min=1)[..., None]
    # Adadelta works elementwise, so maps learned in one batch are the same as maps learned separately.
    maps = torch.eye(dim, device=features.device).repeat(len(tasks), 1, 1).requires_grad_(True)
    optimizer = torch.optim.Adadelta([maps], lr=learning_rate)
    for _ in range(steps):
        maps.grad = _gradient_of_maps(maps.detach(), rows, means, one_hot)
        optimizer.step()
    return maps.detach()


def _gradient_of_maps(maps: Tensor, rows: Tensor, means: Tensor, one_hot: Tensor) -> Tensor:
    """Compute the gradient of the mean cross-entropy of 10 · cos(A f_i, A μ_c), for many A at once.

    With z = A f, p = A μ, and D = ∂L/∂cos:  ∂L/∂z_i = Σ_c D_ic (p_c / ‖p_c‖ − cos_ic z_i / ‖z_i‖) / ‖z_i‖, for p
    likewise, and ∂L/∂A = Σ_i ∂L/∂z_i f_iᵀ + Σ_c ∂L/∂p_c μ_cᵀ. This hand-written gradient reads the (S, d) features
    three times; automatic differentiation reads them a dozen times.

    Args:
        maps: (B, d, d), A.
        rows: (B, S, d), the support's features, padded with zeros.
        means: (B, k, d), their class means, padded with classes without examples.
        one_hot: (B, S, k), their classes; zeros for padding.

    Returns:
        (B, d, d).
    """
    z, p = rows @ maps.mT, means @ maps.mT
    z_norm, p_norm = (torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12) for x in (z, p))
    inverse = 1 / (z_norm[:, :, None] * p_norm[:, None])
    cosines = z @ p.mT * inverse
    filling = torch.where(one_hot.any(1), 0.0, -torch.inf)[:, None]
    counted = one_hot.sum(-1, keepdim=True)
    d_cosines = (SCALE * cosines + filling).softmax(-1).sub_(one_hot).mul_(counted * SCALE / counted.sum(1, True))
    radial = d_cosines * cosines
    d_cosines *= inverse
    d_p = torch.baddbmm(p * -(radial.sum(1) / p_norm.square())[..., None], d_cosines.mT, z)
    d_z = torch.baddbmm(z.mul_(-(radial.sum(2) / z_norm.square())[..., None]), d_cosines, p)
    return torch.baddbmm(d_p.mT @ means, d_z.mT, rows)


def _with_backbone(embedded: Embedded, adaptation: str) -> tuple[Backbone, Domain]:
    if embedded.backbone is None or embedded.domain is None:
        raise ValueError(f"the adaptation {adaptation!r} needs a backbone to change, but only features were given.")
    return embedded.backbone, embedded.domain


def _frozen_copy(backbone: Backbone) -> nn.Module:
    # In evaluation mode: with dropout, the support set's features would change in every step.
    return copy.deepcopy(backbone.model).eval().requires_grad_(False)


def _adapt(
    backbone: Backbone,
    domain: Domain,
    task: Task,
    adapted: nn.Module,
    matrix: Tensor | None,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> Tensor:
    def encode(inputs: Mapping[str, Tensor]) -> Tensor:
        features = backbone.encode(inputs, adapted)
        return features if matrix is None else features @ matrix.T

    support: Any = backbone.prepare(domain, task.support)
    labels = torch.as_tensor(task.support_labels, device=backbone.device)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            features = encode(support)
            loss = functional.cross_entropy(_cosine_logits(features, _means(features, task)), labels)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return _cosine_logits(encode(backbone.prepare(domain, task.query)), _means(encode(support), task))
