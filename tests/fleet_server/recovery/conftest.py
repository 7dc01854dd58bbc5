"""Restoring makes the tables anew, which is their owner's work: here everything runs with that login."""

import pytest


@pytest.fixture
def database_url(owner_url: str) -> str:
    return owner_url
