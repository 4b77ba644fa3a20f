"""Naive references: the formulas of the papers term by term, written without torch and without hf_sharp.

The tests find a reference by the name of the loss or the sharpness method, draw class counts, batches and options at
random, and compare. For a loss named `mine` with the option `epsilon` write

    def naive_loss_mine(logits, labels, counts, epsilon=1.0):

which returns one value per example. `logits` is a list of N lists of K numbers, `labels` a list of N class indices
(ignored examples are removed before), `counts` a list of K integers. A loss that needs features takes three more:
`features` (N lists of d numbers), `weight` (K lists of d) and `bias` (K) of the head; and `earlier`, the pairs of
features and labels that the same loss has been given in training before. For a sharpness method named `mine` write

    def naive_coefficients_mine(counts, alpha=0.5):

which returns one coefficient per class. It raises ValueError where the method must refuse the counts or the options.

Options have the same names and defaults as in hf_sharp; add the range of a new one to `RANGES`. All numbers have 40
digits: take `exp`, `log` and `sqrt` from this module. Differences of a reference are then exact derivatives.
"""

import inspect

import numpy as np
import torch
from mpmath import MPContext
from torch.func import functional_call

mp = MPContext()
mp.dps = 40
exp, log, sqrt, mpf = mp.exp, mp.log, mp.sqrt, mp.mpf

# The values that options are drawn from: (lowest, highest), or a list. "focal.loss_gamma" is for one loss or method.
RANGES = {
    "loss_beta": (0.0, 0.9999),
    "loss_gamma": (-1.0, 2.0),
    "focal.loss_gamma": (0.0, 3.0),
    "loss_margin": (0.0, 1.0),
    "loss_scale": (0.5, 40.0),
    "loss_tau": (-0.5, 2.0),
    "lm_weight": (0.0, 2.0),
    "lm_alpha": (0.0, 2.0),
    "lm_beta": (0.0, 2.0),
    "lm_gamma": (0.0, 2.0),
    "lm_delta_v": (0.0, 2.0),
    "lm_delta_d": (0.0, 8.0),
    "lm_momentum": (0.0, 0.99),
    "lm_aggregation": ["max", "mean"],
    "lm_frequency_margins": [False, True],
    "rare_threshold": [1, 2, 5, 20, 100, 500],
    "focal_gamma": (0.0, 6.0),
    "focal_lambda": (0.0, 1.5),
    "focal_sampling": ["exact", "stochastic"],
    "cc_radius": (0.0, 1.0),
    "cc_phi": (0.0, 1.0),
}


# ---- losses ----------------------------------------------------------------------------------------------------------


def cross_entropy(z, y):
    return log(sum(exp(logit) for logit in z)) - z[y]


def at_least_one(counts):
    """Absent classes count as classes with one example."""
    return [mpf(max(n, 1)) for n in counts]


def mean_of_present(values, counts):
    present = [value for value, n in zip(values, counts, strict=True) if n > 0]
    return sum(present) / len(present)


def log_priors(counts):
    return [log(n / sum(counts)) for n in at_least_one(counts)]


def temperatures(counts, gamma):
    n = at_least_one(counts)
    return [(n_c / max(n)) ** gamma for n_c in n]


def naive_loss_cross_entropy(logits, labels, counts):
    return [cross_entropy(z, y) for z, y in zip(logits, labels, strict=True)]


def naive_loss_weighted(logits, labels, counts):
    w = [1 / n for n in at_least_one(counts)]
    mean = mean_of_present(w, counts)
    return [w[y] / mean * cross_entropy(z, y) for z, y in zip(logits, labels, strict=True)]


def naive_loss_class_balanced(logits, labels, counts, loss_beta=0.9999):
    beta = mpf(loss_beta)
    w = [(1 - beta) / (1 - beta**n) for n in at_least_one(counts)]
    mean = mean_of_present(w, counts)
    return [w[y] / mean * cross_entropy(z, y) for z, y in zip(logits, labels, strict=True)]


def naive_loss_focal(logits, labels, counts, loss_gamma=2.0):
    values = []
    for z, y in zip(logits, labels, strict=True):
        p = exp(z[y]) / sum(exp(logit) for logit in z)
        values.append(-((1 - p) ** loss_gamma) * log(p))
    return values


def naive_loss_ldam(logits, labels, counts, loss_margin=0.5, loss_scale=30.0):
    rarest = max(mpf(n) ** -0.25 for n in counts if n > 0)
    values = []
    for z, y in zip(logits, labels, strict=True):
        margin = loss_margin * min(mpf(max(counts[y], 1)) ** -0.25 / rarest, 1)
        values.append(cross_entropy([loss_scale * (z_c - margin * (c == y)) for c, z_c in enumerate(z)], y))
    return values


def naive_loss_logit_adjusted(logits, labels, counts, loss_tau=1.0):
    log_pi = log_priors(counts)
    return [
        cross_entropy([z_c + loss_tau * log_pi[c] for c, z_c in enumerate(z)], y)
        for z, y in zip(logits, labels, strict=True)
    ]


def naive_loss_balanced_softmax(logits, labels, counts):
    n = at_least_one(counts)
    return [  # −log (n_y exp z_y / Σ_c n_c exp z_c)
        -log(n[y] * exp(z[y]) / sum(n_c * exp(z_c) for n_c, z_c in zip(n, z, strict=True)))
        for z, y in zip(logits, labels, strict=True)
    ]


def naive_loss_cdt(logits, labels, counts, loss_gamma=0.3):
    delta = temperatures(counts, loss_gamma)
    return [cross_entropy([delta[c] * z_c for c, z_c in enumerate(z)], y) for z, y in zip(logits, labels, strict=True)]


def naive_loss_ldt(logits, labels, counts, loss_gamma=0.3):
    delta = temperatures(counts, loss_gamma)
    return [cross_entropy([delta[y] * z_c for z_c in z], y) for z, y in zip(logits, labels, strict=True)]


def naive_loss_vs(logits, labels, counts, loss_gamma=0.3, loss_tau=1.0):
    delta, log_pi = temperatures(counts, loss_gamma), log_priors(counts)
    return [
        cross_entropy([delta[c] * z_c + loss_tau * log_pi[c] for c, z_c in enumerate(z)], y)
        for z, y in zip(logits, labels, strict=True)
    ]


def dot(v, w):
    return sum(v_i * w_i for v_i, w_i in zip(v, w, strict=True))


def norm(v):
    return sqrt(dot(v, v))


def minus(v, w):
    return [v_i - w_i for v_i, w_i in zip(v, w, strict=True)]


def class_means(features, labels):
    """The mean feature of every class of the batch, by class."""
    rows = {c: [f for f, y in zip(features, labels, strict=True) if y == c] for c in set(labels)}
    return {c: [sum(column) / len(column) for column in zip(*rows[c], strict=True)] for c in rows}


def naive_centroids(features, labels, running, momentum):
    """Running centroids after a batch, by class: m_c = (1 − μ) m̂_c + μ · running, or m̂_c for a class seen first."""
    after = dict(running)
    for c, mean in class_means(features, labels).items():
        after[c] = [(1 - momentum) * m + momentum * r for m, r in zip(mean, running.get(c, mean), strict=True)]
    return after


def naive_large_margin_terms(
    labels,
    features,
    weight,
    bias,
    running,
    margins,
    lm_weight=1.0,
    lm_alpha=1.0,
    lm_beta=1.0,
    lm_gamma=0.001,
    lm_delta_v=0.5,
    lm_momentum=0.99,
    lm_aggregation="max",
):
    """What the large-margin loss adds to cross-entropy, for δ_d,c in `margins` and the centroids so far, by class."""
    means = class_means(features, labels)
    centroids = naive_centroids(features, labels, running, lm_momentum)
    values = []
    for f, c in zip(features, labels, strict=True):
        compact = max(norm(minus(f, centroids[c])) - lm_delta_v, 0) ** 2
        short = []
        for k in range(len(weight)):
            if k != c:
                across = minus(weight[c], weight[k])
                distance = (dot(across, means[c]) + bias[c] - bias[k]) / norm(across)
                short.append(max(margins[c] - distance, 0))
        margin = max(short) if lm_aggregation == "max" else sum(short) / len(short)
        share = mpf(len(labels)) / (len(means) * labels.count(c))
        size = norm(centroids[c])
        values.append(lm_weight * share * (lm_alpha * compact + lm_beta * margin + lm_gamma * size))
    return values


def naive_loss_large_margin(
    logits,
    labels,
    counts,
    features,
    weight,
    bias,
    earlier=(),
    lm_weight=1.0,
    lm_alpha=1.0,
    lm_beta=1.0,
    lm_gamma=0.001,
    lm_delta_v=0.5,
    lm_delta_d=6.0,
    lm_momentum=0.99,
    lm_aggregation="max",
    lm_frequency_margins=False,
):
    running = {}
    for batch in earlier:
        running = naive_centroids(*batch, running, lm_momentum)
    quarter = [n ** (-0.25 if lm_frequency_margins else 0) for n in at_least_one(counts)]
    margins = [lm_delta_d * value / mean_of_present(quarter, counts) for value in quarter]
    options = (lm_weight, lm_alpha, lm_beta, lm_gamma, lm_delta_v, lm_momentum, lm_aggregation)
    terms = naive_large_margin_terms(labels, features, weight, bias, running, margins, *options)
    return [cross_entropy(z, y) + term for z, y, term in zip(logits, labels, terms, strict=True)]


# ---- sharpness methods -----------------------------------------------------------------------------------------------


def naive_coefficients_none(counts):
    return [0 for _ in counts]


def naive_coefficients_sam(counts):
    return [1 for _ in counts]


def naive_coefficients_imbsam(counts, rare_threshold=20):
    if not any(0 < n < rare_threshold for n in counts):
        raise ValueError("no rare class")
    return [1 if n < rare_threshold else 0 for n in counts]


def naive_coefficients_focal_sam(counts, focal_gamma=1.0, focal_lambda=0.8, focal_sampling="exact"):
    coefficients = [focal_lambda * (1 - mpf(n) / sum(counts)) ** focal_gamma for n in counts]
    if focal_sampling == "stochastic" and max(coefficients) > 1:
        raise ValueError("a coefficient above 1 is no probability")
    return coefficients


def naive_coefficients_cc_sam(counts, cc_radius=1e-6, cc_phi=0.5):
    return [0 for _ in counts]


def head_logits(weight, bias, f):
    return [dot(w, f) + b for w, b in zip(weight, bias, strict=True)]


def naive_head_perturbations(loss, labels, counts, features, weight, bias, cc_radius=1e-6):
    """CC-SAM's δ of weight and bias, by class, for `loss(logits, label)` of one example.

    g_cl = ∇_{θ_l} mean of ℓ over the examples of class c
    δ_cl = r √‖θ‖ k^¼ / (√2 max(n_c − 1, 1)^¼ √‖g_cl‖) · g_cl / ‖g_cl‖

    A gradient no larger than the rounding of float32 has no direction: δ_cl = 0.
    """
    theta = [value for row in weight for value in row] + list(bias)
    perturbations = {}
    for c in set(labels):
        rows = [f for f, y in zip(features, labels, strict=True) if y == c]
        mean = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        residuals = [gradient(lambda z, c=c: loss(z, c), head_logits(weight, bias, f)) for f in rows]  # ∂ℓ/∂z
        of_bias = [sum(column) / len(rows) for column in zip(*residuals, strict=True)]
        of_weight = [  # the mean of ∂ℓ/∂z fᵀ
            [sum(p[k] * f[i] for p, f in zip(residuals, rows, strict=True)) / len(rows) for i in range(len(mean))]
            for k in range(len(weight))
        ]
        size = cc_radius * sqrt(norm(theta)) * mpf(len(theta)) ** 0.25
        size = size / (sqrt(mpf(2)) * mpf(max(counts[c] - 1, 1)) ** 0.25)
        length = norm([value for row in of_weight for value in row])
        weight_scale = size / sqrt(length) / length if length > norm(mean) / 2**23 else 0
        length = norm(of_bias)
        bias_scale = size / sqrt(length) / length if length > mpf(1) / 2**23 else 0
        perturbations[c] = [[weight_scale * g for g in row] for row in of_weight], [bias_scale * g for g in of_bias]
    return perturbations


def naive_class_conditional_losses(loss, labels, features, weight, bias, perturbations, cc_phi=0.5):
    """(1 − φ) ℓ(θ) + φ ℓ(θ + δ_y), one value per example."""
    values = []
    for f, y in zip(features, labels, strict=True):
        d_weight, d_bias = perturbations[y]
        moved_weight = [[w + d for w, d in zip(*rows, strict=True)] for rows in zip(weight, d_weight, strict=True)]
        moved_bias = [b + d for b, d in zip(bias, d_bias, strict=True)]
        at_head, perturbed = head_logits(weight, bias, f), head_logits(moved_weight, moved_bias, f)
        values.append((1 - cc_phi) * loss(at_head, y) + cc_phi * loss(perturbed, y))
    return values


# ---- finding and differentiating -------------------------------------------------------------------------------------


def reference(kind, name, options):
    """Find `naive_<kind>_<name>`, and check that it takes the options that hf_sharp's takes."""
    function = globals().get(f"naive_{kind}_{name}")
    inputs = {"loss": ["logits", "labels", "counts"], "coefficients": ["counts"]}[kind]
    result = {"loss": "loss per example", "coefficients": "coefficient per class"}[kind]
    parameters = ", ".join([*inputs, *sorted(options)])
    assert function, (
        f"{name!r} has no naive reference. Write naive_{kind}_{name}({parameters}) in tests/naive.py: one {result}, "
        "straight from the formula of the paper. The docstring there says how."
    )
    assert defaults_of(function).keys() == set(options), (
        f"naive_{kind}_{name} in tests/naive.py takes the options {sorted(defaults_of(function))}, but {name!r} takes "
        f"{sorted(options)}. Its signature should be ({parameters}), with the paper's values as defaults."
    )
    return function


def defaults_of(reference):
    """The options of a reference, with their defaults."""
    inputs = {"logits", "labels", "counts", "features", "weight", "bias", "earlier"}
    parameters = inspect.signature(reference).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in inputs}


def names(kind):
    """The names of all references of losses ("loss") or of methods ("coefficients")."""
    prefix = f"naive_{kind}_"
    return {name.removeprefix(prefix) for name in globals() if name.startswith(prefix)}


def exact(values):
    """Numbers, or lists and dictionaries of them, with 40 digits."""
    return _nested(mpf, values)


def derivative(function, point, direction):
    """The derivative of a function of numbers, lists or dictionaries along a direction, by central differences."""
    step = mpf(10) ** -12
    ahead, behind = (
        function(_nested(lambda value, along, size=size: value + size * along, point, direction))
        for size in (step, -step)
    )
    return (ahead - behind) / (2 * step)


def _nested(function, *values):
    if isinstance(values[0], dict):
        return {key: _nested(function, *(value[key] for value in values)) for key in values[0]}
    if isinstance(values[0], list):
        return [_nested(function, *row) for row in zip(*values, strict=True)]
    return function(*values)


def gradient(function, vector):
    """The gradient of a function of a list of numbers."""
    unit = [[mpf(i == k) for i in range(len(vector))] for k in range(len(vector))]
    return [derivative(function, vector, direction) for direction in unit]


# ---- the gradient of a step ------------------------------------------------------------------------------------------


def naive_gradient(
    model, micro_batches, counts, method, rho, eta=None, tau=0.0, groups=None, scope="all", **coefficient_options
):
    """The gradient of one accumulation window, as a flat float64 vector: a model in torch, the formula as it stands.

    g_c  = ∇ mean(c_y · ℓ)(w)
    ε    = ρ · T² g_c / (‖T g_c‖ + 1e-12)
    grad = Σ over micro-batches of  ∇ Σ_j (1 − c_y) ℓ_j(w) / N  +  ∇ Σ_j c_y ℓ_j(w + ε) / N

    `groups` are lists of indices of the micro-batches that share one ε; default: every one has its own.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    shapes = [dict(model.named_parameters())[name].shape for name in names]
    w = torch.cat([dict(model.named_parameters())[name].detach().flatten() for name in names])
    c = [float(value) for value in globals()[f"naive_coefficients_{method}"](counts, **coefficient_options)]
    log_priors = torch.log(torch.tensor([max(n, 1) for n in counts], dtype=w.dtype) / sum(counts))

    def losses(vector, batch):
        pieces = torch.split(vector, [int(np.prod(shape)) for shape in shapes])
        weights = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "host_labels")}
        z = functional_call(model, weights, kwargs=inputs).logits + tau * log_priors
        return [torch.logsumexp(z[j], 0) - z[j, y] for j, y in enumerate(batch["labels"].tolist())]

    def gradient(vector, batch, weights):
        vector = vector.clone().requires_grad_()
        total = sum(weight * loss for weight, loss in zip(weights, losses(vector, batch), strict=True))
        return torch.autograd.grad(total, vector)[0]

    n_window = sum(len(batch["labels"]) for batch in micro_batches)
    result = torch.zeros_like(w)
    for group in groups or [[i] for i in range(len(micro_batches))]:
        batches = [micro_batches[i] for i in group]
        c_ys = [[c[y] for y in batch["labels"].tolist()] for batch in batches]
        n_group = sum(map(len, c_ys))
        g = sum(
            gradient(w, batch, [value / n_group for value in c_y]) for batch, c_y in zip(batches, c_ys, strict=True)
        )
        if eta is None:
            t = torch.ones_like(w)
        else:
            t = torch.cat(
                [
                    (piece.abs() + eta) if scope == "all" or len(shape) >= 2 else torch.ones_like(piece)
                    for piece, shape in zip(torch.split(w, [int(np.prod(s)) for s in shapes]), shapes, strict=True)
                ]
            )
        epsilon = rho * t**2 * g / ((t * g).norm() + 1e-12)
        for batch, c_y in zip(batches, c_ys, strict=True):
            result += gradient(w, batch, [(1 - value) / n_window for value in c_y])
            result += gradient(w + epsilon, batch, [value / n_window for value in c_y])
    return result
