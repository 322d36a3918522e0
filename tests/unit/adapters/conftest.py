"""Fixtures of the planted model."""

import pytest
from planted import PlantedExample, PlantedModel, planted_records


@pytest.fixture
def planted() -> PlantedModel:
    return PlantedModel()


@pytest.fixture
def records() -> list[PlantedExample]:
    return planted_records()
