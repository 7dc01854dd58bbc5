"""Scenarios as data: a YAML form of a world, what goes wrong in it, and what must hold; a scenario file is a CI check."""
