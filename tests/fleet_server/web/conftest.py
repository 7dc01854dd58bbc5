"""The server's pages and API are tested over HTTP."""

from collections.abc import Iterator

import pytest

from fleet_server.database import Database
from tests.fleet_server.web.site import Site, serving


@pytest.fixture
def site(database: Database, database_url: str) -> Iterator[Site]:
    """A server over the database of `database`, with one user for each role."""
    with serving(database_url) as running:
        yield running
