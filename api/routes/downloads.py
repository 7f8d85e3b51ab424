"""A blob as a response: one range, a strong ETag, a digest, piece by piece from storage."""

import base64
import re

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from api import storage
from api.errors import AppError

_ONE_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))")


def download(
    request: Request, key: str, *, sha256: str, size: int, media_type: str, filename: str
) -> Response:
    """Answer GET or HEAD for a blob (RFC 9110, sections 13 and 14).

    Several ranges are answered by the whole, as the RFC allows. `If-Range` and `If-None-Match`
    compare strongly: the ETag is the blob's SHA-256.

    Raises:
        AppError: 416, the range lies outside.
    """
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "Content-Disposition": f'attachment; filename="{filename}"',
    }
    if etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    wanted = _range(request, etag, size)
    if wanted is not None:
        (start, end), status = wanted, 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(
        storage.stream(key, start, end), status, headers=headers, media_type=media_type
    )


def _range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """[start, end) of the one range asked for; None for the whole."""
    if request.headers.get("if-range", etag) != etag:
        return None
    match = _ONE_RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    if start >= end:
        raise AppError(
            416, "RANGE_NOT_SATISFIABLE", f"Expected a range within {size} bytes, got {match[0]!r}."
        )
    return start, end
