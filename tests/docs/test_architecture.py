"""docs/architecture.md tells of every module, and of the way that a batch and an image take."""

from pathlib import Path

import pytest

from tests.support import trace

PAGE = (trace.ROOT / "docs" / "architecture.md").read_text()


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in (trace.ROOT / "medclip_oc").rglob("*.py")}
    assert {name for name in modules if name not in PAGE} == set()


@pytest.mark.parametrize("way", [trace.image_way, trace.batch_way])
def test_the_ways_are_as_traced(way: object, tmp_path: Path) -> None:
    modules = way(tmp_path)  # type: ignore[operator]
    assert " -> ".join(modules) in " ".join(PAGE.split())
