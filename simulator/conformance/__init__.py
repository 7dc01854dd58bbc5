"""Plays the server against any implementation of docs/protocol.md, and checks it rule by rule."""
