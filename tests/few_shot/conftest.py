"""Tiny domains, and backbones whose features are known."""

import datasets
import numpy as np
import pytest
import torch

from hf_sharp.few_shot import Embedded, Task, make_domain
from tests.conftest import make_images


@pytest.fixture(scope="session")
def images():
    """Six classes of twelve 8 × 8 images that their class shows in, prepared for the model."""
    return make_domain(make_images([12] * 6), "images")


@pytest.fixture(scope="session")
def texts():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 6)
    words = [" ".join(f"w{w}" for w in [label, *rng.integers(5, 40, 4)][: 2 + i % 4]) for i, label in enumerate(labels)]
    names = [f"kind {label}" for label in labels]
    return make_domain(datasets.Dataset.from_dict({"text": words, "label": names}), "texts")


def gaussians(means, per_class, seed=0):
    """Embedded examples of N(mean, I), class by class."""
    rng = np.random.default_rng(seed)
    means = np.asarray(means, float)
    labels = np.repeat(np.arange(len(means)), per_class)
    return torch.tensor(means[labels] + rng.normal(size=(len(labels), means.shape[1]))).float(), labels


def embedded_of(features):
    return Embedded(None, None, features)


def task_of(labels, shots, seed=0):
    """A task with some shots of every class; all else is queried. And the answers."""
    rng = np.random.default_rng(seed)
    support = np.concatenate([rng.choice(np.flatnonzero(labels == c), shots, replace=False) for c in np.unique(labels)])
    query = np.setdiff1d(np.arange(len(labels)), support)
    return Task(support, labels[support], query), labels[query]
