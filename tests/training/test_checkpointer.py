"""When a state is saved, what stays of it, and what a run's parts have to do with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medclip_oc.config.schema import CheckpointConfig
from medclip_oc.errors import InputError, WorkError
from medclip_oc.models import checkpoint
from medclip_oc.runtime.distributed import World
from medclip_oc.training import checkpointer, resume
from medclip_oc.training.checkpointer import Checkpointer
from medclip_oc.training.resume import Origin
from medclip_oc.training.run_dir import RunFolder
from medclip_oc.training.trainer import Trainer
from tests.support.cli import one_line, run_training
from tests.support.interrupted import configure
from tests.support.reference import ONE


def saver(folder: Path, *, main: bool = True, **settings: Any) -> Checkpointer:
    run = RunFolder(folder / "run")
    run.prepare(clear=False)
    return Checkpointer(run, CheckpointConfig(**settings), list[str]().append, main=main)


def test_steps_and_the_main_ranks_clock_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    one, other = (saver(tmp_path, main=m, every_steps=3, every_minutes=2) for m in (True, False))
    assert [one.due(step) for step in (1, 2, 3)] == [False, False, True]
    now[0] = 121.0
    assert one.due(4)
    assert not other.due(4), "the main rank tells it"
    assert other.due(6)
    one.save({"step": 4, "w": torch.zeros(1)}, best=False, since=0.0)
    assert not one.due(5)
    one.wait()
    assert not saver(tmp_path, every_minutes=None).due(4)


@pytest.mark.parametrize("background", [True, False])
def test_a_state_is_that_of_its_step(tmp_path: Path, background: bool) -> None:
    """Later steps don't reach into what is being written."""
    one, weight = saver(tmp_path, background=background), torch.zeros(1000)
    for step in (1, 2, 3):
        weight += 1
        content = {"step": step, "state_dict": {"w": weight}, "training": {"x": (weight,)}}
        one.save(content, best=step == 2, since=0.0)
    weight += 1
    one.wait()
    found = {file.name: checkpoint.load(file) for file in one.folder.checkpoints.iterdir()}
    assert (one.folder.checkpoints / "last.pt").samefile(one.folder.state(3))
    values = {name: content["state_dict"]["w"][0].item() for name, content in found.items()}
    newest = {"step-00000002.pt": 2.0, "step-00000003.pt": 3.0}
    assert values == newest | {"last.pt": 3.0, "best.pt": 2.0}
    assert found["last.pt"]["training"]["x"][0][0] == 3
    assert "training" not in found["best.pt"]


def test_what_goes_wrong_in_the_background_is_told(tmp_path: Path) -> None:
    one = saver(tmp_path)
    one.folder.checkpoints.rmdir()
    one.save({"step": 1}, best=False, since=0.0)
    with pytest.raises(WorkError, match=r"step-00000001\.pt: .* \(No such file or directory\)"):
        one.wait()
    assert "No such file" in str(one.error())


def test_where_resuming_is_not_worth_it_the_weights_alone_are_kept(
    packed: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"checkpoint": {"keep_last": 0, "every_steps": 1}, "train__epochs": 1}
    config, folder = configure(packed, tmp_path, "run", **kept), tmp_path / "run"
    assert run_training(config) == 0
    [file] = (folder / "checkpoints").iterdir()
    assert file.name == "best.pt"
    needed = capsys.readouterr().err.partition("checkpoints take up to ")[2].split()[0]
    assert 1e9 * float(needed) == pytest.approx(2 * file.stat().st_size, rel=0.03)
    monkeypatch.setattr(Trainer, "agree", lambda self: (True, False))  # told to stop
    assert run_training(config) == 1
    shown = capsys.readouterr().err
    assert "no state to resume from; it begins again" in shown
    assert "stopped after step 1 of 3; nothing to resume from is kept" in one_line(shown)
    assert not (folder / "interrupted").exists()


def state_of(parts: dict[str, Any]) -> dict[str, Any]:
    progress = checkpointer.Progress(7, 0.25, validated=False, scores={"mrr": 0.5})
    training = checkpointer.capture(parts, progress, {}, ONE)
    content = {"step": 7, "training": training, "metrics": progress.scores}
    assert checkpointer.Progress.of(content) == progress
    return content


def restore(content: dict[str, Any], parts: dict[str, Any], world: World = ONE) -> None:
    checkpointer.restore(Origin(Path("x.pt"), content), parts, seed=0, world=world)


def test_parts_go_on_and_new_ones_begin() -> None:
    def part(value: float) -> torch.nn.Linear:
        layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(layer.weight, value)
        return layer

    saved, known, new = part(2.0), part(0.0), part(5.0)
    torch.manual_seed(3)
    state = state_of({"average": saved})
    drawn = torch.rand(4)
    restore(state, {"average": known, "new": new})
    assert (known.weight.item(), new.weight.item()) == (2.0, 5.0)
    assert torch.rand(4).equal(drawn)
    other = World(1, 2, torch.device("cpu"))  # a rank that the saved run didn't have
    restore(state, {}, world=other)
    others = torch.rand(4)
    assert not others.equal(drawn)
    torch.manual_seed(other.rank)
    assert not torch.rand(4).equal(others), "it doesn't begin again"


def test_the_optimizer_takes_averages_from_the_state_and_rates_from_the_configuration() -> None:
    def adamw(decay: float, size: int = 3) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        weight = torch.nn.Parameter(torch.ones(size))
        return weight, torch.optim.AdamW([weight], weight_decay=decay)

    weight, one = adamw(0.1)
    weight.grad = torch.full((3,), 0.5)
    one.step()
    state = state_of({"optimizer": checkpointer.OptimizerState(one)})
    again, two = adamw(0.3)
    restore(state, {"optimizer": checkpointer.OptimizerState(two)})
    assert two.param_groups[0]["weight_decay"] == 0.3
    assert two.state[again]["exp_avg"].equal(one.state[weight]["exp_avg"])
    _, larger = adamw(0.1, size=4)
    with pytest.raises(InputError, match=r"x\.pt: its optimizer doesn't fit .*model.pretrained"):
        restore(state, {"optimizer": checkpointer.OptimizerState(larger)})


def test_a_parameter_without_gradients_has_no_averages() -> None:
    """Its run resumes all the same; one that lost averages doesn't."""
    unused, used = (nn.Parameter(torch.ones(n)) for n in (3, 2))
    optimizer = torch.optim.AdamW([unused, used])
    used.sum().backward()
    optimizer.step()
    state = checkpointer.OptimizerState(optimizer).state_dict()
    resume._check_averages(state, 1, False, "file")
    checkpointer.OptimizerState(optimizer).load_state_dict(state)
    before = {name: value for name, value in state.items() if name != "averaged"}
    resume._check_averages(before, 1, False, "file")
    with pytest.raises(InputError, match="file: it has averages of 1 of 2 parameters"):
        resume._check_averages(state | {"averaged": 2}, 1, False, "file")
