"""A base dependency does its own job in the package, or setup.cfg says why it is there."""

import ast
import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED_AS = {
    "open_clip_torch": "open_clip",
    "Pillow": "PIL",
    "PyYAML": "yaml",
    "Jinja2": "jinja2",
    "docstring-parser": "docstring_parser",
}


def imported() -> set[str]:
    """The packages that medclip_oc imports anywhere."""
    names = set()
    for path in (ROOT / "medclip_oc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


def test_every_base_dependency_is_used_or_explained() -> None:
    text = (ROOT / "setup.cfg").read_text()
    parser = configparser.ConfigParser()
    parser.read_string(text)
    lines = parser["options"]["install_requires"].split()
    names = {match[0] for line in lines if (match := re.match(r"[A-Za-z][\w.-]*", line))}
    assert {"torch", "open_clip_torch", "webdataset", "pandas", "tqdm", "wandb"} <= names
    explained = set(re.findall(r"^ +# ([\w-]+): \w", text, re.MULTILINE))
    unused = {name for name in names - explained if IMPORTED_AS.get(name, name) not in imported()}
    assert not unused, f"neither imported by medclip_oc nor explained in setup.cfg: {unused}"
