"""Few-shot classification: episodes, backbones and how to choose one, adaptations, and results with intervals."""

from hf_sharp.few_shot.adaptation import (
    ADAPTATIONS,
    Embedded,
    affine,
    finetune,
    linear,
    lora,
    prototype,
    published_rates,
)
from hf_sharp.few_shot.backbone import Backbone, embed, load_backbone
from hf_sharp.few_shot.domain import Domain, load_domain, make_domain
from hf_sharp.few_shot.episodes import Episode, EpisodeSampler, Task, sample_episode
from hf_sharp.few_shot.evaluation import Comparison, FewShotResult, average, classify, compare, evaluate
from hf_sharp.few_shot.image_domains import (
    DOMAINS,
    DomainNotInstalled,
    digits,
    emoji,
    fashion_mnist,
    font_characters,
    open_domain,
)
from hf_sharp.few_shot.parc import (
    EpisodeSelection,
    Selection,
    episode_scores,
    parc_score,
    select_backbone,
    select_per_episode,
)

__all__ = [
    "ADAPTATIONS",
    "DOMAINS",
    "Backbone",
    "Comparison",
    "Domain",
    "DomainNotInstalled",
    "Embedded",
    "Episode",
    "EpisodeSampler",
    "EpisodeSelection",
    "FewShotResult",
    "Selection",
    "Task",
    "affine",
    "average",
    "classify",
    "compare",
    "digits",
    "embed",
    "emoji",
    "episode_scores",
    "evaluate",
    "fashion_mnist",
    "finetune",
    "font_characters",
    "linear",
    "load_backbone",
    "load_domain",
    "lora",
    "make_domain",
    "open_domain",
    "parc_score",
    "prototype",
    "published_rates",
    "sample_episode",
    "select_backbone",
    "select_per_episode",
]
