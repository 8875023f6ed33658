"""The exact cached step: contrast G pairs while the graphs of only some chunks are in memory.

Gradient caching (GradCache, Gao et al. 2021, section 3) splits a step in three: every chunk's
features, without a graph; ONE loss over all G pairs, whose gradient with respect to the features is
kept; every chunk once more, with a graph, whose backward starts from those feature gradients.

The result is the gradient of one big batch, for every parameter, temperature and bias included.
Dropout and patch dropout see the same random numbers in both passes. Batch norm is exact against
one big batch while its statistics are frozen; with live statistics the step is exact against the
same chunks normalised one by one, and the running statistics are updated once (by the first pass).

Where padding takes no part in the text tower, a chunk holds texts of about one length, cut to the
longest. Dropout then draws other numbers than for padded texts, and is exact against these chunks.

The price is one more forward, and less where memory is left: chunks that keep their graph
(`keep_chunks`), frozen towers and leading frozen blocks run once, see micro_batched_tower.py.

Across ranks, each computes the rows of its own images (Inf-CLIP, Cheng et al. 2024, shards the loss
likewise): the texts are gathered once, the column statistics added up once, the gradients of the
texts added up and scattered once, and the parameters' gradients added up once, at the end, in one
all-reduce. DistributedDataParallel, whose reducer is armed by each forward, has no part in it. Soft
targets (see soft_targets.py) need every rank's labels besides, and a number a pair.

B pairs per rank, G pairs over all ranks, C pairs per chunk, D embedding size, L context length, K
most concepts of a pair.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime import devices, distributed
from .loss import Block, Gradients, LossName, contrast, tile_side
from .micro_batched_tower import MicroBatchedTower, live_batch_norms, statistics_kept
from .soft_targets import Labels, Rule, Targets

_SHARE = 0.8  # of the memory that is free: what kept graphs may take
_STEPS_BEFORE_CHOICE = 2  # by then the optimizer's state is there, and one-time costs are over


class CachedStep:
    """Computes loss and gradients of one optimizer step; the optimizer itself is the caller's.

    Args:
        towers: the model (see `models.clip.Towers`), on its device. Every rank gets rank 0's
            weights.
        loss: "clip" or "siglip".
        world: this process among the others.
        micro_batch_size: C. Without kept chunks, the step holds the graph of this many images, or
            of as many texts, at a time.
        text_micro_batch_size: C for texts, where it differs.
        keep_chunks: of how many chunks of each tower the graph is kept in place of a second
            forward; "auto", on CUDA: as many as fit the memory that is free in the third step.
        precision: "fp32", "bf16" or "fp16".
        scaler: loss scaling for fp16; its `unscale_` and `step` are the caller's.
        compiled: whether to run the towers through torch.compile.
        rule: what is right, where it is more than each pair's own partner.
    """

    def __init__(
        self,
        towers: Any,
        loss: LossName,
        world: distributed.World,
        *,
        micro_batch_size: int,
        text_micro_batch_size: int | None = None,
        keep_chunks: int | Literal["auto"] = 0,
        precision: str = "fp32",
        scaler: torch.amp.GradScaler | None = None,
        compiled: bool = False,
        rule: Rule = Rule(),  # noqa: B008 (frozen)
    ) -> None:
        self.towers, self.loss, self.world, self.scaler = towers, loss, world, scaler
        self.rule = rule
        self.keep_chunks, self._steps, self._compiled = keep_chunks, 0, compiled
        self._notices: list[str] = []
        self.images, self.texts = (
            MicroBatchedTower(
                # its own random numbers would differ between the graphs with and without gradients
                torch.compile(embed, options={"fallback_random": True}) if compiled else embed,
                world.device,
                chunk=size,
                precision=precision,
                blocks=[] if compiled else blocks(),  # compiled code runs as a whole
            )
            for embed, size, blocks in (
                (towers.embed_images, micro_batch_size, towers.image_blocks),
                (towers.embed_texts, text_micro_batch_size or micro_batch_size, towers.text_blocks),
            )
        )
        if not compiled:  # each length would be compiled anew
            self.texts.split = towers.by_length
        if keep_chunks != "auto":
            self.images.keep = self.texts.keep = keep_chunks
        distributed.broadcast_([*towers.parameters(), *towers.buffers()])

    def __call__(self, images: Tensor, tokens: Tensor, labels: Labels | None = None) -> Tensor:
        """Put the gradients of one step into `.grad`, in place of what was there.

        Args:
            images: (B, 3, H, W) uint8, on any device; only the chunk in work is moved. Or (B, D)
                float32: features of a tower that doesn't train, which then doesn't run.
            tokens: (B, L) int64, or likewise features. B is the same on every rank.
            labels: of these B pairs; None if each pair's own partner alone is right.

        Returns:
            The loss over all G pairs, (), float32; the same on every rank.
        """
        for parameter in self.towers.parameters():
            parameter.grad = None
        self._steps += 1
        if self._steps == 1 and not tokens.is_floating_point():
            self._notices.append(self._text_length(tokens))
        if self.keep_chunks == "auto" and self._steps == _STEPS_BEFORE_CHOICE + 1:
            self._keep_what_fits(len(images))
        image_features, text_features = (  # (B, D) each
            rows.to(self.world.device) if rows.is_floating_point() else tower.features(rows)
            for tower, rows in ((self.images, images), (self.texts, tokens))
        )
        scale, bias = self.towers.inverse_temperature(), self.towers.logit_bias()
        bias = bias if self.loss == "siglip" else None  # the softmax of InfoNCE cancels it
        targets = self._targets(labels, image_features)
        loss, gradients = self._contrast(image_features, text_features, scale, bias, targets)
        # a tower with checkpointed blocks runs them again in any backward
        with statistics_kept(self.towers):
            if self.images.trains and gradients.images is not None:
                self.images.backward(gradients.images)
            if self.texts.trains and gradients.texts is not None:
                self.texts.backward(gradients.texts)
        for value, own in ((scale, gradients.scale), (bias, gradients.bias)):
            if value is not None and value.requires_grad:
                value.backward(own)
        distributed.all_reduce_gradients(self.towers.parameters())
        # live running statistics are averaged, so that every rank holds the same model
        for layer in live_batch_norms(self.towers):
            for running in (layer.running_mean, layer.running_var):
                if running is not None:
                    distributed.all_reduce_sum_(running).div_(self.world.size)
        return loss

    def notices(self) -> list[str]:
        """What a user should hear of the steps since the last call."""
        notices, self._notices = self._notices, []
        return notices

    def _text_length(self, tokens: Tensor) -> str:
        """Whether texts are cut to their length, in words."""
        if self._compiled or not self.towers.cuts_text():
            reason = "train.compile" if self._compiled else "padding takes part in this tower"
            return f"text: padded ({reason})"
        _, chunks = self.texts.split(tokens, self.texts.chunk)
        mean = sum(chunk.numel() for chunk in chunks) / len(tokens)
        return f"text: cut to length (mean {mean:.0f} of {tokens.shape[1]} tokens)"

    def _targets(self, labels: Labels | None, like: Tensor) -> Targets | None:
        """What is right among all ranks' pairs; None: each pair's own partner."""
        if self.rule.plain:
            return None
        rows = len(like)
        assert labels is not None, "the rule compares pairs"
        targets = Targets(self.rule, gather_labels(labels, like.device), like.dtype)
        if targets.trivial:
            return None
        if self.loss == "clip":
            own = slice(self.world.rank * rows, (self.world.rank + 1) * rows)
            targets.complete(own, distributed.all_gather, tile_side(like.device))
        return targets

    def _contrast(
        self,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        targets: Targets | None,
    ) -> tuple[Tensor, Gradients]:
        """Loss over all ranks' pairs, and its gradients for this rank's (B, D) features.

        Those of scale and bias are this rank's share, as the parameters' gradients will be.
        """
        block = Block(
            images,
            distributed.all_gather(texts),  # (G, D)
            scale.detach(),
            None if bias is None else bias.detach(),
            first=self.world.rank * len(images),
            targets=targets,
        )
        wanted = bool(self.images.trains), bool(self.texts.trains)
        combine = partial(distributed.all_reduce_logsumexp, near=block.scale)
        share, gradients = contrast(self.loss, block, wanted=wanted, combine=combine)
        if gradients.texts is not None:
            gradients = gradients._replace(texts=distributed.reduce_scatter(gradients.texts))
        if self.scaler is not None:
            factor = self.scaler.scale(torch.ones((), device=share.device))
            gradients = Gradients._make(g if g is None else g * factor for g in gradients)
        return distributed.all_reduce_sum_(share).float(), gradients

    def _keep_what_fits(self, rows: int) -> None:
        """Choose how many chunks keep their graph, by what the last step saw."""
        free = devices.free_bytes(self.world.device) or 0
        towers = {"text": self.texts, "image": self.images}
        parameters = sum(p.numel() * p.element_size() for p in self.towers.parameters())
        # room for the gradients, and for one graph beside the kept ones
        room = int(_SHARE * free) - parameters - max(t.graph_bytes for t in towers.values())
        kept = list[str]()
        for name, tower in towers.items():
            chunks = -(-rows // tower.chunk)
            fitting = room // tower.graph_bytes if tower.graph_bytes else chunks
            tower.keep = max(0, min(chunks, fitting))
            room -= tower.keep * tower.graph_bytes
            kept.append(f"{tower.keep} of {chunks} {name} chunks")
        self._notices.append(
            f"train.keep_chunks: {free / 1e9:.1f} GB are free; the graphs of "
            f"{' and '.join(reversed(kept))} are kept"
        )


def gather_labels(labels: Labels, device: torch.device) -> Labels:
    """The labels of every rank, in rank order: 24 bytes a pair, and its concepts."""
    width = torch.full_like(labels.captions, labels.concepts.shape[1])
    facts = torch.stack([labels.captions, labels.images, width], 1)  # (B, 3)
    facts = distributed.all_gather(facts.to(device))  # (G, 3)
    padding = int(facts[:, 2].max()) - labels.concepts.shape[1]
    concepts = F.pad(labels.concepts, (0, padding)).to(device)
    return Labels(facts[:, 0], facts[:, 1], distributed.all_gather(concepts))
