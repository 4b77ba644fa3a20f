"""Methods and losses in a sentence, and what to cite for them."""

from __future__ import annotations

SHARPNESS = {
    "none": "No sharpness-aware step: one gradient, as in plain training.",
    "sam": "SAM: the gradient is taken where the loss is worst within the radius ρ.",
    "imbsam": "ImbSAM: the gradient of the rare classes' loss is taken where it is worst within the radius ρ.",
    "focal_sam": "Focal-SAM: the share λ(1 − π)^γ of each class's loss is taken where it is worst within the radius ρ.",
    "cc_sam": "CC-SAM: the classifier head is perturbed along each class's own gradient.",
}
# What to cite for a method: authors, title, and an arXiv number or where else it appeared.
CITATIONS: dict[str, tuple[str, str, str]] = {
    "sam": ("Foret et al.", "Sharpness-Aware Minimization for Efficiently Improving Generalization", "2010.01412"),
    "adaptive": (
        "Kwon et al.",
        "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
        "2102.11600",
    ),
    "imbsam": (
        "Zhou et al.",
        "ImbSAM: A Closer Look at Sharpness-Aware Minimization in Class-Imbalanced Recognition",
        "2308.07815",
    ),
    "focal_sam": (
        *("Li et al.", "Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed Classification", "2505.01660"),
    ),
    "cc_sam": (
        *("Zhou et al.", "Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition"),
        "CVPR 2023",
    ),
    "learned": (
        *("Wang et al.", "Enhancing Sharpness-Aware Minimization by Learning Perturbation Radius", "2408.08222"),
    ),
    "sharpness_every": (*("Liu et al.", "Towards Efficient and Scalable Sharpness-Aware Minimization", "2203.02714"),),
    "momentum": (
        *("Becker et al.", "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead", "2401.12033"),
    ),
    "class_balanced": ("Cui et al.", "Class-Balanced Loss Based on Effective Number of Samples", "1901.05555"),
    "focal": ("Lin et al.", "Focal Loss for Dense Object Detection", "1708.02002"),
    "ldam": (*("Cao et al.", "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", "1906.07413"),),
    "logit_adjusted": ("Menon et al.", "Long-tail learning via logit adjustment", "2007.07314"),
    "balanced_softmax": ("Ren et al.", "Balanced Meta-Softmax for Long-Tailed Visual Recognition", "2007.10740"),
    "cdt": (
        *("Ye et al.", "Identifying and Compensating for Feature Deviation in Imbalanced Deep Learning", "2001.01385"),
    ),
    "ldt": (
        *("Behnia et al.", "On the Implicit Geometry of Cross-Entropy Parameterizations for Label-Imbalanced Data"),
        "2303.07608",
    ),
    "vs": (
        *("Kini et al.", "Label-Imbalanced and Group-Sensitive Classification under Overparameterization"),
        "2103.01550",
    ),
    "large_margin": ("Nguyen et al.", "Large Margin Discriminative Loss for Classification", "2405.18499"),
    "sampler": (
        *("Kang et al.", "Decoupling Representation and Classifier for Long-Tailed Recognition", "1910.09217"),
    ),
}
