"""Packages of the extras, which may not be installed."""

from importlib import import_module
from typing import Any

from ..errors import InputError


def needed(package: str, extra: str) -> Any:
    """An installed package; InputError: it isn't, and which extra brings it."""
    try:
        return import_module(package)
    except ImportError:
        raise InputError(f"needs {package}: pip install 'medclip_oc[{extra}]'") from None
