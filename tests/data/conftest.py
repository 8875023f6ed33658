"""A model that embeds in milliseconds."""

import pytest

from medclip_oc.config.schema import ModelConfig
from medclip_oc.models import factory


@pytest.fixture(scope="session")
def clip(tiny: ModelConfig) -> factory.Clip:
    return factory.build(tiny)
