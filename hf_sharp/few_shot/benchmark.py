"""Evaluates many backbones on the same episodes of many domains; results are saved, so that a benchmark can resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hf_sharp.few_shot.adaptation import published_rates
from hf_sharp.few_shot.backbone import Backbone, embed, load_backbone
from hf_sharp.few_shot.domain import Domain
from hf_sharp.few_shot.episodes import EpisodeSampler
from hf_sharp.few_shot.evaluation import FewShotResult, evaluate
from hf_sharp.few_shot.parc import episode_scores, select_backbone
from hf_sharp.few_shot.stages import resume_stage


class StoredBackbone:
    """A backbone in a folder. It is loaded on first use, and keeps the features of the last domain that it embedded.

    Args:
        name: the name that results are saved under.
        folder: the folder.
        features: the kind of features, as `load_backbone` takes it.
    """

    def __init__(self, name: str, folder: Path, features: str | None = None) -> None:
        self.name, self.folder, self.features = name, folder, features
        self._embedded: tuple[Domain, Tensor] | None = None

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone."""
        return load_backbone(self.folder, features=self.features)

    def embed(self, domain: Domain) -> Tensor:
        """Return the features of a domain."""
        if self._embedded is None or self._embedded[0] is not domain:
            self._embedded = domain, embed(self.backbone, domain, progress_bar=True)
        return self._embedded[1]


@dataclass(frozen=True)
class EpisodeBenchmark:
    """Test episodes that are the same for every backbone.

    Attributes:
        folder: the folder for the results, a file for each backbone, domain and adaptation.
        episodes: the number of episodes per domain.
        seed: the seed of the episodes.
        ways: the fixed number of classes; None to draw it as in Meta-Dataset.
        shots: the fixed number of support examples per class; None to draw it as in Meta-Dataset.
        options: further options that the results depend on, saved with them.
    """

    folder: Path
    episodes: int = 600
    seed: int = 0
    ways: int | None = None
    shots: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def evaluate(self, stored: StoredBackbone, domain: Domain, adaptation: str, seen: bool) -> FewShotResult:
        """Evaluate a backbone, or read the saved result.

        Args:
            stored: the backbone.
            domain: the domain's test part.
            adaptation: one of `ADAPTATIONS`.
            seen: whether the backbone was trained on the domain, which decides the adaptation's learning rates.

        Returns:
            The result.
        """

        def run() -> dict[str, Any]:
            features = stored.embed(domain)
            options: dict[str, Any] = self._episodes | {"seen": seen, "features": features, "progress_bar": True}
            result = evaluate(stored.backbone, domain, adaptation, **options)
            print(f"{stored.name} on {domain.name}, {adaptation}: {result.accuracy:.1%} ± {result.interval:.1%}")
            return result.as_dict()

        options = self._saved(stored) | published_rates(adaptation, seen)
        return FewShotResult.from_dict(resume_stage(self._file(stored, domain, adaptation), options, run))

    def parc_scores(
        self,
        stored: StoredBackbone,
        domain: Domain,
        components: int | None = None,
        probe: Domain | None = None,
        examples: int = 500,
    ) -> np.ndarray:
        """Score a backbone by PARC, or read the saved scores.

        Args:
            stored: the backbone.
            domain: the domain's test part.
            components: as in `parc_score`.
            probe: examples to score once, for all episodes; None to score the support set of every episode.
            examples: the largest number of probe examples.

        Returns:
            (episodes,) scores; NaN where a support set has no score.
        """

        def run() -> dict[str, Any]:
            if probe is not None:
                named = {stored.name: stored.backbone}
                score = select_backbone(named, probe, examples, self.seed, components=components).scores[stored.name]
                return {"scores": [score] * self.episodes}
            sampler = EpisodeSampler(domain.labels, self.ways, self.shots, None, self.seed)
            scores = episode_scores(stored.embed(domain), list(sampler(self.episodes)), components)
            return {"scores": [None if np.isnan(score) else score for score in scores]}

        of_probe = {"examples": None if probe is None else examples}
        options = self._saved(stored) | {"components": components, **of_probe}
        saved = resume_stage(self._file(stored, domain, "parc"), options, run)
        return np.array(saved["scores"], dtype=float)

    @property
    def _episodes(self) -> dict[str, Any]:
        return {"episodes": self.episodes, "seed": self.seed, "ways": self.ways, "shots": self.shots}

    def _saved(self, stored: StoredBackbone) -> dict[str, Any]:
        return self._episodes | {"features": stored.features} | dict(self.options)

    def _file(self, stored: StoredBackbone, domain: Domain, what: str) -> Path:
        return self.folder / stored.name / f"{domain.name}-{what}.json"
