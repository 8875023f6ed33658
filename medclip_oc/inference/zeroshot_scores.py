"""Zero-shot classification of a model in training: the same images, again and again.

N images, M classes, D embedding size.
"""

import hashlib

from ..config.schema import ValidConfig
from ..data.shards import ShardSet
from ..errors import InputError
from ..evaluation.features import Embedded, share
from ..runtime import distributed
from ..runtime.distributed import World
from . import labels, prompt_sets, ranking
from .embedder import Embedder
from .image_inputs import ImageSet, find

_FIGURES = ("accuracy", "balanced_accuracy", "recall", "auroc", "average_precision")


class ZeroshotScores:
    """The figures of `valid.zeroshot`. InputError: prompts, labels or images can't be read, don't
    go together, or don't give `valid.metric`.
    """

    def __init__(self, settings: ValidConfig, pairs: ShardSet | None, world: World) -> None:
        asked, option, self.world = settings.zeroshot, "valid.zeroshot", world
        if asked.prompts is None or asked.labels is None or pairs is None:
            raise InputError(f"{option}: needs prompts, labels, and data.valid")
        self.prompts, self.images = prompt_sets.load(asked.prompts), None
        images = ImageSet([(pairs, n) for n in range(len(pairs))])
        if asked.images:
            images = self.images = find(asked.images, None, f"{option}.images", "valid")
        self.several, self.quiet = self.prompts.multi_label, not world.main
        table = labels.read(f"{option}.labels", asked.labels, self.prompts.classes)
        self.labels = labels.Labels(table, images, single=not self.several)
        judged = repr(self.prompts).encode(), self.labels.truth.tobytes(), self.labels.positions
        self.fingerprint = hashlib.sha256(b"".join(map(bytes, judged))).hexdigest()
        self.labels.scores[:] = 0.5  # until a model is measured
        known = self._figures()
        if settings.metric.startswith("zeroshot/") and settings.metric not in known:
            listed = ", ".join(known)
            raise InputError(f"valid.metric: {settings.metric} is not one of {listed:.200}")

    def measure(self, embedder: Embedder, pairs: Embedded) -> dict[str, float]:
        """`zeroshot/auroc`, ... of all, `zeroshot/auroc/NAME` of a class; the same on every rank.

        `pairs` are those of validation, as the model embedded them.
        """
        how = {"multi_label": self.several, "quiet": self.quiet}  # cut phrasings are told once
        judge, self.quiet = ranking.embed_candidates(embedder, self.prompts.classes, **how), True
        features = pairs.images  # (n, D) of this rank
        if self.images is not None:
            with distributed.errors_together():
                own = self.images.places[slice(*share(len(self.images), self.world))]
                features = embedder.every_image(ImageSet(own))
        shares = judge.scores(features)[1].to(self.world.device)  # (n, M)
        self.labels.scores = distributed.all_gather_ragged(shares).cpu().numpy()
        return self._figures()

    def _figures(self) -> dict[str, float]:
        """Those that exist, of the scores as they are."""
        found = self.labels.measure(draws=0)
        groups = {"": found.get("macro", found)} | found.get("findings", found.get("classes", {}))
        return {
            f"zeroshot/{key}/{name}".rstrip("/"): group[key]
            for name, group in groups.items()
            for key in _FIGURES
            if group.get(key) is not None
        }
