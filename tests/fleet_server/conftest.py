"""Fixtures of the server's tests."""

from tests.fleet_server.fixtures import database

__all__ = ["database"]
