"""The choices about a method's ascent: the options that each brings into effect, and what to cite."""

from __future__ import annotations

from hf_sharp.registry import Choice, Citation

ASAM = Citation(
    "Jungmin Kwon and Jeongseop Kim and Hyunseo Park and In Kwon Choi",
    "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
    2021,
    arxiv="2102.11600",
)
LETS = Citation(
    "Xuehao Wang and Weisen Jiang and Shuai Fu and Yu Zhang",
    "Enhancing Sharpness-Aware Minimization by Learning Perturbation Radius",
    2024,
    arxiv="2408.08222",
)
LOOKSAM = Citation(
    "Yong Liu and Siqi Mai and Xiangning Chen and Cho-Jui Hsieh and Yang You",
    "Towards Efficient and Scalable Sharpness-Aware Minimization",
    2022,
    arxiv="2203.02714",
)
MOMENTUM_SAM = Citation(
    "Marlon Becker and Frederick Altrock and Benjamin Risse",
    "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead",
    2024,
    arxiv="2401.12033",
)
LATE_SAM = Citation(
    "Zhanpeng Zhou and Mingze Wang and Yuchen Mao and Bingrui Li and Junchi Yan",
    "Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training",
    2024,
    arxiv="2410.10373",
)

# The other choices about an ascent. A choice comes after the one that brings its field into effect.
CHOICES = (
    Choice(
        "ascent",
        lambda values: values.get("ascent") == "gradient",
        ("ascent_scope", "ascent_sync", "ascent_fraction", "sharpness_every"),
    ),
    Choice(
        "ascent",
        lambda values: values.get("ascent") == "momentum",
        citations=(MOMENTUM_SAM,),
        summary="The ascent follows the optimizer's first moment, which needs no extra pass.",
    ),
    Choice(
        "adaptive",
        lambda values: bool(values.get("adaptive")),
        ("adaptive_eta", "adaptive_scope"),
        (ASAM,),
        "The radius is relative to the size of each weight (ASAM).",
    ),
    Choice(
        "rho_schedule",
        lambda values: values.get("rho_schedule") in ("linear", "cosine"),
        ("rho_end",),
        summary="The radius changes from `rho` to `rho_end` during training.",
    ),
    Choice(
        "rho_schedule",
        lambda values: values.get("rho_schedule") == "step",
        ("rho_steps",),
        summary="The radius changes in steps during training.",
    ),
    Choice(
        "rho_schedule",
        lambda values: values.get("rho_schedule") == "learned",
        (
            *("rho_learning_rate", "rho_update", "rho_update_every", "rho_validation_fraction"),
            *("rho_hessian", "rho_objective"),
        ),
        summary="The radius is learned on held-out examples.",
    ),
    # Cited for the published algorithm only; the other objectives and updates are our own.
    Choice(
        "rho_schedule",
        lambda values: (
            values.get("rho_schedule") == "learned"
            and values.get("rho_objective") == "gap"
            and values.get("rho_update") == "adam"
        ),
        citations=(LETS,),
    ),
    Choice(
        "sharpness_every",
        lambda values: values.get("sharpness_every", 1) > 1,
        ("looksam_alpha",),
        (LOOKSAM,),
        "Each ascent is used again in the steps after it (LookSAM).",
    ),
    Choice(
        "sharpness_after",
        lambda values: values.get("sharpness_after", 0) > 0,
        citations=(LATE_SAM,),
        summary="The first part of training takes plain steps.",
    ),
)
