"""Adaptations: how a backbone is fitted to the support set of a task, and what it then says of the queries.

    prototype    logit_c = 10 · cos(f, μ_c),  μ_c the mean of class c's support features
    linear       logistic regression on 10 f / ‖f‖
    affine       logit_c = 10 · cos(A f, A μ_c),  A (d, d) from I by 40 Adadelta steps on the support's cross-entropy
    lora         the same, and LoRA adapters in the backbone are learned with A
    finetune     the same without A, by 40 AdamW steps on all of the backbone

The prototypes are always the support's: of the labels of queries an adaptation sees nothing, as a `Task` has none.
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
# Tasks adapted side by side: as many as these numbers allow, so that memory does not grow with the episodes.
_TINY = 1e-12
_WINDOW = 64
_BATCH_NUMBERS = 4_000_000


@dataclass(frozen=True)
class Embedded:
    """A domain as a backbone sees it.

    Attributes:
        backbone: the backbone; None where only features are known, which is enough for `prototype`, `linear` and
            `affine`.
        domain: the examples; None likewise.
        features: (N, d) of every example; they become float32.
    """

    backbone: Backbone | None
    domain: Domain | None
    features: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", self.features.float())

    def part(self, rows: np.ndarray) -> Tensor:
        """Give the features of some examples."""
        return self.features[torch.as_tensor(rows, device=self.features.device)]


Adaptation = Callable[..., Iterator[Tensor]]


def prototype(embedded: Embedded, tasks: Sequence[Task]) -> Iterator[Tensor]:
    """Classify by the nearest class mean, in cosine.

    Args:
        embedded: the examples.
        tasks: the tasks.

    Yields:
        (Q, k) logits, task by task.

    Example:
        >>> embedded = Embedded(None, None, torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1]]))
        >>> task = Task(np.array([0, 1]), np.array([0, 1]), np.array([2]))
        >>> next(prototype(embedded, [task])).round(decimals=1)  # nearly along the first
        tensor([[10.0000,  0.3000]])

    Reference:
        Snell et al., "Prototypical Networks", arXiv 1703.05175; the cosine as in arXiv 2107.00358.
    """
    for task in tasks:
        means = _means(embedded.part(task.support), task)
        yield _cosine_logits(embedded.part(task.query), means)


def linear(embedded: Embedded, tasks: Sequence[Task], C: float = 1.0) -> Iterator[Tensor]:  # noqa: N803
    """Fit a logistic regression to the support's features, each made as long as the cosine's scale.

    Args:
        embedded: the examples.
        tasks: the tasks.
        C: scikit-learn's inverse strength of the ridge.

    Yields:
        (Q, k) log-probabilities, task by task.

    Reference:
        Tian et al., "Rethinking Few-Shot Image Classification", arXiv 2003.11539, section 3.2.

    Differs from the authors' code: features have the norm 10 rather than 1, whose ridge would be too strong for them.
    """
    for task in tasks:
        support, query = (
            (SCALE * functional.normalize(embedded.part(rows), dim=1)).double().cpu().numpy()
            for rows in (task.support, task.query)
        )
        with warnings.catch_warnings():  # a few examples of many classes are what this is for
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            fitted = LogisticRegression(C=C, max_iter=1000).fit(support, task.support_labels)
        yield torch.from_numpy(fitted.predict_log_proba(query))


def affine(
    embedded: Embedded, tasks: Sequence[Task], steps: int = STEPS, learning_rate: float = 1.0
) -> Iterator[Tensor]:
    """Learn a linear map of the features for every task, many tasks at a time.

    Args:
        embedded: the examples.
        tasks: the tasks.
        steps: of Adadelta, the paper's 40; 0 is `prototype`.
        learning_rate: of Adadelta.

    Yields:
        (Q, k) logits, task by task.

    Reference:
        Li et al., "Universal Representation Learning from Multiple Domains for Few-shot Classification" (URL), arXiv
        2103.13841, section 3.3; arXiv 2404.07696.
    """
    for start in range(0, len(tasks), _WINDOW):
        window = tasks[start : start + _WINDOW]
        # Tasks of like size together, so that little of a batch is padding.
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
    learning_rate: float = 1.0,
    rank: int = 4,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Learn LoRA adapters in a copy of the backbone, and a linear map of its features, for every task.

    Args:
        embedded: the examples, with their backbone.
        tasks: the tasks.
        steps: of Adadelta, each on the whole support set.
        learning_rate: of Adadelta.
        rank: of the adapters, in every linear layer.
        seed: of the adapters' beginnings.

    Yields:
        (Q, k) logits, task by task.

    Raises:
        ImportError: `peft` is not installed.

    Reference:
        In the role that TSA (Li et al., "Cross-domain Few-shot Learning with Task-specific Adapters", arXiv 2107.00358)
        has for convolutional networks.
    """
    backbone, domain = _with_backbone(embedded, "lora")
    for task in tasks:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = add_lora(_frozen_copy(backbone), rank, alpha=rank)
        matrix = torch.eye(embedded.features.shape[1], device=embedded.features.device, requires_grad=True)
        learned = [matrix, *(p for p in adapted.parameters() if p.requires_grad)]
        optimizer = torch.optim.Adadelta(learned, lr=learning_rate)
        yield _adapt(backbone, domain, task, adapted, matrix, optimizer, steps)


def finetune(
    embedded: Embedded, tasks: Sequence[Task], steps: int = STEPS, learning_rate: float = 1e-4
) -> Iterator[Tensor]:
    """Train a copy of the whole backbone for every task.

    Args:
        embedded: the examples, with their backbone.
        tasks: the tasks.
        steps: of AdamW, each on the whole support set.
        learning_rate: of AdamW.

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


def _means(features: Tensor, task: Task) -> Tensor:
    labels = torch.as_tensor(task.support_labels, device=features.device)
    one_hot = functional.one_hot(labels, task.ways).to(features)
    return (one_hot.T @ features) / one_hot.sum(0)[:, None]


def _cosine_logits(features: Tensor, means: Tensor) -> Tensor:
    return SCALE * functional.normalize(features, dim=-1) @ functional.normalize(means, dim=-1).mT


def _in_batches(order: Sequence[int], tasks: Sequence[Task], dim: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in order:  # from the smallest task to the largest, so that the newest one sets the shape
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
    # Adadelta treats every number on its own: maps learned side by side are those learned alone.
    maps = torch.eye(dim, device=features.device).repeat(len(tasks), 1, 1).requires_grad_(True)
    optimizer = torch.optim.Adadelta([maps], lr=learning_rate)
    for _ in range(steps):
        maps.grad = _gradient_of_maps(maps.detach(), rows, means, one_hot)
        optimizer.step()
    return maps.detach()


def _gradient_of_maps(maps: Tensor, rows: Tensor, means: Tensor, one_hot: Tensor) -> Tensor:
    """Compute the gradient of the mean cross-entropy of 10 · cos(A f_i, A μ_c), for many A at once.

    With z = A f, p = A μ, and D = ∂L/∂cos:  ∂L/∂z_i = Σ_c D_ic (p_c / ‖p_c‖ − cos_ic z_i / ‖z_i‖) / ‖z_i‖, for p
    likewise, and ∂L/∂A = Σ_i ∂L/∂z_i f_iᵀ + Σ_c ∂L/∂p_c μ_cᵀ. By hand it passes over the (S, d) numbers three times,
    where automatic differentiation does a dozen.

    Args:
        maps: (B, d, d), A.
        rows: (B, S, d), the support's features; rows of zeros fill the shape.
        means: (B, k, d), their class means; classes without examples fill the shape.
        one_hot: (B, S, k), their classes; zeros where rows fill the shape.

    Returns:
        (B, d, d).
    """
    z, p = rows @ maps.mT, means @ maps.mT
    z_norm, p_norm = (torch.linalg.vector_norm(x, dim=-1).clamp(min=_TINY) for x in (z, p))
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
        raise ValueError(f"the adaptation {adaptation!r} changes the backbone, and only features were given.")
    return embedded.backbone, embedded.domain


def _frozen_copy(backbone: Backbone) -> nn.Module:
    # In evaluation mode: dropout would make the same support set another one in every step.
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
