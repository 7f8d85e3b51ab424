"""A blob as a response: one range, a strong ETag, a digest, piece by piece from storage."""

import base64
import re

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from api import storage
from api.errors import AppError

_ONE_RANGE = re.compile(r"bytes=\s*(?:(\d+)-(\d*)|-(\d+))\s*", re.ASCII | re.IGNORECASE)
# More than any blob has bytes; Python refuses to read numbers of thousands of digits.
_DIGITS = 18


def download(
    request: Request, key: str, *, sha256: str, size: int, media_type: str, filename: str
) -> Response:
    """Answer GET or HEAD for a blob (RFC 9110, sections 13 and 14).

    Several ranges are answered by the whole, as the RFC allows, and so is HEAD with a range, as it
    demands. The ETag is the blob's SHA-256, and strong.

    Raises:
        AppError: 412, `If-Match` names another; 416, the range lies outside.
        FileNotFoundError: the blob is gone.
    """
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    if etag not in _tags(request, "if-match", etag):
        raise AppError(412, "PRECONDITION_FAILED", f"Expected {etag} in If-Match.")
    if etag in (tag.removeprefix("W/") for tag in _tags(request, "if-none-match", etag, absent="")):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    wanted = _range(request, etag, size) if request.method == "GET" else None
    if wanted is not None:
        (start, end), status = wanted, 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(
        storage.stream_begun(key, start, end), status, headers=headers, media_type=media_type
    )


def _tags(request: Request, header: str, etag: str, absent: str = "*") -> list[str]:
    """The entity tags of a condition; `*` stands for the one that there is."""
    tags = [tag.strip() for tag in request.headers.get(header, absent).split(",")]
    return [etag if tag == "*" else tag for tag in tags]


def _range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """[start, end) of the one range asked for; None for the whole."""
    if request.headers.get("if-range", etag) != etag:
        return None
    match = _ONE_RANGE.fullmatch(request.headers.get("range", ""))
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - _number(suffix)), size
    else:
        start, end = _number(first), min(_number(last) + 1 if last else size, size)
    if start >= end:
        raise AppError(
            416,
            "RANGE_NOT_SATISFIABLE",
            f"Expected a range within {size} bytes, got {match[0][:100]!r}.",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:_DIGITS] or "0")
