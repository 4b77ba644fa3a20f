"""A slow, readable reference of the sharpness-aware gradient: one flat vector of weights, the formula as it stands.

g_c  = ∇ mean(c_y · ℓ)(w)
ε    = ρ · T² g_c / (‖T g_c‖ + 1e-12)
grad = Σ over micro-batches of  ∇ Σ_j (1 − c_y) ℓ_j(w) / N  +  ∇ Σ_j c_y ℓ_j(w + ε) / N
"""

import numpy as np
import torch
from torch.func import functional_call


def naive_coefficients(method, counts, gamma=1.0, lam=0.8, rare=20):
    counts = np.asarray(counts, dtype=float)
    if method == "focal_sam":
        return [lam * (1 - n / counts.sum()) ** gamma for n in counts]
    return [{"none": 0.0, "sam": 1.0, "imbsam": float(n < rare)}[method] for n in counts]


def naive_gradient(model, micro_batches, counts, method, rho, eta=None, tau=0.0, groups=None, **coefficient_options):
    """The gradient of one accumulation window, as a flat float64 vector.

    `groups` are lists of indices of the micro-batches that share one ε; default: every one has its own.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    shapes = [dict(model.named_parameters())[name].shape for name in names]
    w = torch.cat([dict(model.named_parameters())[name].detach().flatten() for name in names])
    c = naive_coefficients(method, counts, **coefficient_options)
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
                    (piece.abs() + eta) if len(shape) >= 2 else torch.ones_like(piece)
                    for piece, shape in zip(torch.split(w, [int(np.prod(s)) for s in shapes]), shapes, strict=True)
                ]
            )
        epsilon = rho * t**2 * g / ((t * g).norm() + 1e-12)
        for batch, c_y in zip(batches, c_ys, strict=True):
            result += gradient(w, batch, [(1 - value) / n_window for value in c_y])
            result += gradient(w + epsilon, batch, [value / n_window for value in c_y])
    return result
