"""Failures that a person or a program must be able to act on: each names the field, the value and what was expected."""

from typing import Any


class InputError(ValueError):
    """Input that breaks a rule. Over HTTP it becomes a problem document, on the command line a message and exit 2."""

    status = 422

    def __init__(self, field: str, value: Any, expected: str) -> None:
        self.field, self.value, self.expected = field, value, expected
        super().__init__(f"{field} = {value!r}: expected {expected}")


class NotFoundError(InputError):
    """Something named does not exist."""

    status = 404


class ConflictError(InputError):
    """The state of things does not allow it now."""

    status = 409


class ForbiddenError(InputError):
    """The role or the configuration does not allow it."""

    status = 403
