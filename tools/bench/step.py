"""The cached step beside open_clip's accumulation, and one plain big batch.

    python tools/bench.py step                            # every case: twenty minutes on two cores
    python tools/bench.py step --cases loss vit           # some of them

Kept graphs are gigabytes. Where the system hands out fresh pages slowly, as virtual machines do,
let glibc keep what either side frees; and let idle threads sleep:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 OMP_WAIT_POLICY=passive python tools/...
"""

import ctypes
import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from side_by_side import Comparison, compare
from step_peers import accumulated, batch, cached, light, vitb32_like, whole, worst_error

from medclip_oc.config.checks import Bound, Count, Settings
from medclip_oc.contrastive.loss import Block, contrast
from medclip_oc.contrastive.reference import gradients

Case = Annotated[str, Bound("a case of this benchmark, see --help", lambda name: name in CASES)]
OPEN_CLIP = "open_clip 3.3.0 --accum-freq"
timed = functools.partial(compare, "step")


@dataclass
class Config(Settings):
    """Which cases, and how long."""

    cases: list[Case] = field(default_factory=lambda: list(CASES))
    """Which to run: exact, growing, vit, loss."""
    rounds: Count = 3
    """Paired runs that count, of each comparison of times."""
    threads: Count = 2
    """Threads of torch."""


def run(config: Config) -> Iterator[Comparison]:
    """The comparisons of the cases asked for."""
    torch.set_num_threads(config.threads)
    for name in config.cases:
        yield from CASES[name](config.rounds)


def peaks(towers: torch.nn.Module, **steps: Callable[[], Any]) -> dict[str, Any]:
    """Resident memory at its peak in one call of each, above that before: `NAME_peak_mb`. Linux."""
    found: dict[str, Any] = {}
    for name, step in steps.items():
        towers.zero_grad()
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # what was freed goes back to the system
        # proc(5): the peak starts anew
        Path("/proc/self/clear_refs").write_bytes(b"5")
        before = _status("VmRSS")
        step()
        found[f"{name}_peak_mb"] = round((_status("VmHWM") - before) / 1000)
    return found


def _status(name: str) -> int:
    """A figure of this process from Linux, in kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def exact(rounds: int) -> Iterator[Comparison]:
    """Worst relative error of a parameter's gradient, against one plain big batch."""
    towers = light()
    images, tokens = batch(towers, 1024)
    whole(towers, images, tokens)()
    wanted = gradients(towers)
    cached(towers, images, tokens, 60)()
    ours = gradients(towers)
    accumulated(towers, images, tokens, 64)()
    theirs = gradients(towers)
    mine, peers = worst_error(ours, wanted), worst_error(theirs, wanted)
    rest = {name: g for name, g in wanted.items() if name != "clip.logit_scale"}
    extra = {"theirs_without_temperature": worst_error(theirs, rest)}
    case = "light towers, G=1024, gradient error (ours in uneven chunks of 60, theirs of 64)"
    yield Comparison("step", case, mine, OPEN_CLIP, peers, "relative error", [peers / mine], extra)


def growing(rounds: int) -> Iterator[Comparison]:
    """Light towers: what more pairs cost, against open_clip."""
    towers = light()
    for pairs in (256, 1024, 4096):
        given = batch(towers, pairs)
        ours, theirs = cached(towers, *given, 64), accumulated(towers, *given, 64)
        extra = {"G": pairs, **peaks(towers, ours=ours, theirs=theirs)}
        case = f"light towers, G={pairs}, chunk 64"
        yield timed(
            case, ours, theirs, peer=OPEN_CLIP, rounds=rounds, items=pairs, extra=extra, warmup=0
        )


def vit(rounds: int) -> Iterator[Comparison]:
    """ViT-B/32-like towers at G=256, chunk 32, with no graph kept, half of them, and all."""
    towers = vitb32_like()
    given = batch(towers, 256)
    theirs = accumulated(towers, *given, 32)
    peers = peaks(towers, theirs=theirs)
    for keep in (0, 4, 8):
        ours = cached(towers, *given, 32, keep)
        extra = peers | peaks(towers, ours=ours)
        case = f"ViT-B/32-like, G=256, chunk 32, {keep} of 8 chunks kept"
        yield timed(
            case, ours, theirs, peer=OPEN_CLIP, rounds=rounds, items=256, extra=extra, warmup=0
        )


def loss(rounds: int) -> Iterator[Comparison]:
    """The loss alone, forward and backward."""
    for pairs in (1024, 8192):
        inputs = _Features(pairs)
        ours, theirs = inputs.contrast, functools.partial(inputs.backward, ClipLoss())
        case = f"the loss alone, G={pairs}, D=512, forward and backward"
        extra = peaks(inputs, ours=ours, theirs=theirs)
        yield timed(case, ours, theirs, peer="open_clip's ClipLoss", rounds=rounds, extra=extra)


class _Features(torch.nn.Module):
    """Normalised features of G pairs and a temperature, which all want a gradient."""

    def __init__(self, pairs: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(pairs)
        made = [torch.randn(pairs, 512, generator=generator) for _ in range(2)]
        self.images, self.texts = (torch.nn.Parameter(F.normalize(side, dim=1)) for side in made)
        self.scale = torch.nn.Parameter(torch.tensor(14.3))

    def contrast(self) -> None:
        self.zero_grad()
        _, found = contrast("clip", Block(self.images, self.texts, self.scale))
        self.images.grad, self.texts.grad, self.scale.grad, _ = found

    def backward(self, loss: Callable[..., torch.Tensor]) -> None:
        self.zero_grad()
        loss(self.images, self.texts, self.scale).backward()


CASES: dict[str, Callable[[int], Iterator[Comparison]]] = {
    case.__name__: case for case in (exact, growing, vit, loss)
}
