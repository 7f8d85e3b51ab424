"""Every failure that a client is told of: a status, a code for programs, a sentence for people."""

from collections.abc import Mapping
from typing import Any


class AppError(Exception):
    """A refusal with an HTTP status, an UPPER_SNAKE code and one sentence.

    Args:
        status: of the response, 4xx or 5xx.
        code: stable, to program against.
        message: what was expected, what came, and where.
        retry_after_seconds: when the same request may succeed, if it may.
        details: further members of the problem document (RFC 9457, section 3.2).
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_seconds: int | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.details = dict(details or {})
        self.headers = dict(headers or {})


def not_found(kind: str, identifier: object) -> AppError:
    """Also for what belongs to somebody else: it does not exist for this caller."""
    return AppError(404, "NOT_FOUND", f"There is no {kind} {identifier}.")


class ArchiveRefused(AppError):
    """The uploaded archive as a whole can't become a data set."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(422, code, message)


class StorageFull(AppError):
    """No room left for a blob."""

    def __init__(self, message: str) -> None:
        super().__init__(507, "STORAGE_FULL", message)
