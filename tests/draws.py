"""Random class counts, batches and options, and the comparison of what hf_sharp makes of them with tests/naive.py."""

import torch

from tests.naive import RANGES, defaults_of, derivative, exact

FEATURE_DIM = 3


def draw_options(name, options, rng):
    """Options of a loss or a method, from their ranges; one in four is left out."""
    drawn = {}
    for option in sorted(options):
        values = RANGES.get(f"{name}.{option}", RANGES.get(option))
        assert values is not None, (
            f"option {option!r} of {name!r} has no range. Add it to RANGES in tests/naive.py: (lowest, highest), or a "
            "list of values."
        )
        if rng.random() < 0.75:
            drawn[option] = rng.uniform(*values) if isinstance(values, tuple) else rng.choice(values)
    return drawn


def assert_away_from_defaults(reference, draws):
    """Check that every option of a reference takes other values than its default in some of the drawn options."""
    for option, default in defaults_of(reference).items():
        assert any(options.get(option, default) != default for options in draws), f"{option} is always {default}"


def draw_counts(rng):
    """The training examples of 2 to 6 classes: rare, frequent and absent ones, at least 2 of them present."""
    present = [rng.choice([1, 20, rng.randint(2, 100), rng.randint(100, 2000)]) for _ in range(rng.randint(2, 4))]
    counts = present + [0] * rng.randint(0, 2)
    rng.shuffle(counts)
    return counts


def draw_normal(rng, *shape):
    """Nested lists of standard normal numbers."""
    return [draw_normal(rng, *shape[1:]) for _ in range(shape[0])] if shape else rng.gauss()


def draw_batch(rng, num_classes):
    """Labels, some of them ignored, and what a loss may depend on: logits, and features with weight and bias."""
    labels = [rng.choice([*range(num_classes), -100]) for _ in range(rng.randint(1, 8))]
    return labels, {
        "logits": draw_normal(rng, len(labels), num_classes),
        "features": draw_normal(rng, len(labels), FEATURE_DIM),
        "weight": draw_normal(rng, num_classes, FEATURE_DIM),
        "bias": draw_normal(rng, num_classes),
    }


def counted(labels, rows):
    """The rows of a batch without those of ignored examples."""
    return [row for row, label in zip(rows, labels, strict=True) if label != -100]


def assert_equal(function, reference, labels, inputs, rng):
    """Compare the values per example, and the derivative of their sum along a random direction of all inputs.

    `function` takes tensors, and `reference` numbers and no ignored examples.
    """
    tensors = {key: torch.tensor(value, dtype=torch.float64, requires_grad=True) for key, value in inputs.items()}
    values = function(labels=torch.tensor(labels), **tensors)
    gradients = torch.autograd.grad(values.sum(), list(tensors.values()), materialize_grads=True)
    assert not values[torch.tensor(labels) == -100].any(), "ignored examples have a loss"

    def expected(inputs):
        rows = {key: counted(labels, inputs[key]) for key in ("logits", "features") if key in inputs}
        return reference(labels=counted(labels, labels), **inputs | rows)

    assert_close(values[torch.tensor(labels) != -100], expected(exact(inputs)))
    direction = {key: draw_normal(rng, *tensor.shape) for key, tensor in tensors.items()}
    along = sum(
        (gradient * torch.tensor(direction[key], dtype=torch.float64)).sum()
        for key, gradient in zip(tensors, gradients, strict=True)
    )
    assert_close(along, derivative(lambda moved: sum(expected(moved)), exact(inputs), direction))


def assert_close(tensor, numbers):
    numbers = [float(number) for number in numbers] if isinstance(numbers, list) else float(numbers)
    torch.testing.assert_close(tensor, torch.tensor(numbers, dtype=torch.float64), rtol=1e-9, atol=1e-9)
