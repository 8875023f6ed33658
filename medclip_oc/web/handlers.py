"""What the page calls, without gradio. They answer in HTML; what was wrong they raise."""

import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from PIL import Image
from torch import Tensor

from ..config.checks import option
from ..config.inference import ZeroshotConfig
from ..data.index import CAPTION
from ..data.shards import ShardSet
from ..errors import InputError, WorkError
from ..imaging import decode
from ..inference import prompt_sets, prompts, search
from ..inference.embedder import Embedder
from ..inference.feature_index import Index
from ..inference.prompt_sets import PromptSet
from ..inference.ranking import Judging, Ranking, embed_candidates
from ..relevance.maps import explain
from ..relevance.overlay import overlay
from ..reporting import html

Seen = tuple[Image.Image, str, bool] | None
"""The picture that is asked about, its file's name, and whether a window was chosen here."""
_EXPLAINED = 3  # of the best candidates
_SAMPLES = 8
MOST_FOUND = 50
answer = partial(html.render, "answer.html.j2")


@dataclass
class Handlers:
    """Of one model, by the options that name it, and perhaps one index."""

    embedder: Embedder
    model: dict[str, str | None]
    index: Index | None = None
    sets: dict[str, tuple[PromptSet, Ranking | Judging]] = field(default_factory=dict)

    def captions(self, file: str) -> str:
        """Those in a file, one a line."""
        named = prompts.gather(ZeroshotConfig(checkpoint="", images=[""], texts_file=file))
        return "\n".join(" ".join(text.split()) for each in named for text in each.positive)

    def rank(self, seen: Seen, lines: str, threshold: float | None, why: bool) -> str:
        """Captions, one a line; a threshold of -1 is below any cosine: none."""
        texts = [line.strip() for line in lines.splitlines() if line.strip()]
        if not texts:
            raise InputError("type a caption, or several, one per line")
        if threshold is None or not -1 <= threshold <= 1:
            raise InputError("the cosine of a threshold: from -1 (none) to 1")
        asked: dict[str, Any] = {"texts": texts, "threshold": threshold if threshold > -1 else None}
        candidates = prompts.gather(ZeroshotConfig(checkpoint="", images=[""], **asked))
        ranked = embed_candidates(self.embedder, candidates, asked["threshold"], quiet=True)
        if why and asked["threshold"] is None:
            asked |= {"explain": "maps", "explain_top": _EXPLAINED}
        return self._judged(seen, candidates, ranked, why, **asked)

    def findings(self, seen: Seen, name: str, why: bool) -> str:
        """The classes of a shipped prompt set: each judged by itself, or ranked."""
        if name not in prompt_sets.names():
            raise InputError("pick a prompt set")
        if name not in self.sets:
            chosen = prompt_sets.load(name)
            how = {"multi_label": chosen.multi_label, "quiet": True}
            self.sets[name] = chosen, embed_candidates(self.embedder, chosen.classes, **how)
        chosen, ranked = self.sets[name]
        asked = {"prompts": name, "multi_label": chosen.multi_label}
        return self._judged(seen, chosen.classes, ranked, why, **asked)

    def search(self, seen: Seen, text: str, number: float | None) -> str:
        """Pairs of the index nearest to a text, or without one to the picture."""
        assert self.index is not None
        if number is None or not 1 <= number <= MOST_FOUND or number % 1:
            raise InputError(f"how many: a whole number from 1 to {MOST_FOUND}")
        if text := text.strip():
            (features, cut), asked = self.embedder.texts([text]), {"search": text}
        elif seen is None:
            raise InputError("type a text, or drop an image first")
        else:
            features, name = self._features(seen)
            cut, asked = [], {"search_image": name}
        rows, problem = search.answers(self.index, [""], features, int(number)), ""
        try:
            for row in rows:
                row["picture"] = html.preview(decode.decode(self.pairs.read(row["position"]).image))
        except (InputError, WorkError) as error:
            problem = f"no pictures: {error}"
        asked = {"index": str(self.index.folder), **asked, "top": str(int(number))}
        windowed = not text and seen and seen[2]
        return self._answer(asked, found=rows, cut=cut, problem=problem, windowed=windowed)

    def _features(self, seen: Seen) -> tuple[Tensor, str]:
        """(1, D), and the picture's name."""
        if seen is None:
            raise InputError("drop an image first, or pick a sample")
        pixels = self.embedder.clip.preprocess(seen[0].convert("RGB"))  # (3, H, W)
        return self.embedder.forward("image", pixels[None]), seen[1]

    def _judged(
        self, seen: Seen, candidates: Any, ranked: Ranking | Judging, why: bool, **asked: Any
    ) -> str:
        features, name = self._features(seen)
        rows, maps = ranked.rows([name], ranked.scores(features)), []
        rows.sort(key=lambda row: -row["probability"])
        if why and seen:
            first = {each.name: each.positive[0] for each in candidates}
            texts = [first.get(row.get("text", row.get("finding"))) for row in rows]
            best = [text for text in texts if text][:_EXPLAINED]
            for each in explain(self.embedder.clip, seen[0], best, words=True):
                maps.append((each.text, html.preview(overlay(seen[0], each), side=2048)))
        asked = {"images": name, **asked}
        windowed = seen and seen[2]
        return self._answer(asked, rows=rows, maps=maps, cut=ranked.cut, windowed=windowed)

    def _answer(self, asked: dict[str, Any], **shown: Any) -> str:
        """With the command that does the same."""
        words = ["python", "-m", "medclip_oc.zeroshot"]
        for name, value in (self.model | asked).items():
            if value is not None and value is not False:
                values = value if isinstance(value, list) else [value] * (value is not True)
                words += [option(name), *map(str, values)]
        return answer(command=shlex.join(words), **shown)

    @cached_property
    def pairs(self) -> ShardSet:
        """What the index was made of; InputError: it is gone, or has changed."""
        assert self.index is not None
        about = self.index.about
        key = about.get("caption_key", CAPTION)  # absent from early ones
        pairs = ShardSet.open(about["data"], about["split"], key, bare=True)
        if pairs.fingerprint != about["data_fingerprint"]:
            raise InputError(f"{about['data']} has changed since it was embedded")
        return pairs

    @cached_property
    def samples(self) -> list[tuple[Image.Image, str, str]]:
        """Pictures, names and captions of a few that the run validated on, where they are read."""
        clip, samples = self.embedder.clip, list[tuple[Image.Image, str, str]]()
        with suppress(InputError, WorkError, KeyError, TypeError):  # gone, or never there
            pairs = ShardSet.open(clip.run["config"]["data"]["valid"], "valid", clip.caption_key)
            for position in range(0, len(pairs), -(-len(pairs) // _SAMPLES)):
                sample = pairs.read(position)
                name = f"{sample.key}.{sample.extension}"
                samples.append((decode.decode(sample.image), name, sample.caption))
        return samples
