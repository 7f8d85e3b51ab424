"""A client of the service as anybody would write one: upload, ask, poll, download."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx2

Resource = dict[str, Any]
Answer = TypeVar("Answer")

CHUNK_BYTES = 2**20
DEFAULT_WAIT_SECONDS = 2.0
ANSWER_SECONDS = 60
UPLOADED_SECONDS = 3600
"""For the answer to an upload: what has arrived is flushed to the disk before."""
PATIENCE_SECONDS = 3600
"""For which a service that does not answer is asked again: it may be backed up, or upgraded."""
AWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


class RequestFailed(RuntimeError):
    """The service refused, or the work failed; the message is its sentence."""


class ServiceAway(RequestFailed):
    """The service, or a proxy before it, says that it does not work just now."""


class Client:
    """A connection to one service with one key."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS)

    def upload(self, data: Path) -> Resource:
        """Send a zip; returns the data set as it is then."""
        timeout = httpx2.Timeout(ANSWER_SECONDS, read=UPLOADED_SECONDS)
        return _body(
            self._http.post(
                "/v1/datasets", params={"name": data.name}, content=_chunks(data), timeout=timeout
            )
        )

    def plan(self, dataset_id: str, asked: Mapping[str, Any]) -> Resource:
        """What a protection would come to; nothing is made."""
        body = {"dataset_id": dataset_id, "validate_only": True} | dict(asked)
        return _body(self._http.post("/v1/protections", json=body))

    def protect(
        self, dataset_id: str, asked: Mapping[str, Any], key: str
    ) -> Iterator[Resource | None]:
        """Ask for a protection; again, where there is no answer: `key` makes that harmless."""
        body = {"dataset_id": dataset_id} | dict(asked)
        headers = {"Idempotency-Key": key}
        post = partial(self._http.post, "/v1/protections", json=body, headers=headers)
        return _patiently(lambda: _body(post()))

    def poll(self, path: str) -> Iterator[Resource | None]:
        """The resource again and again until it is done, as often as the service asks.

        None where there is no answer: it is asked again.
        """
        for response in _patiently(partial(self._answered, path)):
            if response is None:
                yield None
                continue
            resource = _body(response)
            yield resource
            if resource["done"]:
                return
            time.sleep(float(response.headers.get("Retry-After", DEFAULT_WAIT_SECONDS)))

    def download(self, path: str, to: Path) -> Iterator[Path | None]:
        """Save a response's body as `to`, going on from where a connection broke (None).

        Nothing half-written stays under that name.
        """
        part = to.with_name(to.name + ".part")
        with part.open("wb") as file:
            tag, furthest = list[str](), 0

            def progress() -> int:
                nonlocal furthest
                furthest = max(furthest, file.tell())
                return furthest

            for whole in _patiently(lambda: self._fetched(path, file, tag), progress):
                if whole:
                    break
                yield None
        part.replace(to)
        yield to

    def _answered(self, path: str) -> httpx2.Response:
        response = self._http.get(path)
        if response.status_code in AWAY:
            _body(response)
        return response

    def _fetched(self, path: str, file: BinaryIO, tag: list[str]) -> bool:
        """What `file` lacks, once `tag` says of which version of the resource it is."""
        lacking = {"Range": f"bytes={file.tell()}-", "If-Range": tag[0]} if tag else {}
        with self._http.stream("GET", path, headers=lacking) as response:
            if response.is_error:
                response.read()
                _body(response)
            if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                file.seek(0)
                file.truncate()
                tag[:] = response.headers.get_list("ETag")
            file.writelines(response.iter_bytes())
        return True


def _patiently(
    attempt: Callable[[], Answer], progress: Callable[[], object] = lambda: None
) -> Iterator[Answer | None]:
    """What comes of an attempt, time and again; None where the service is away.

    Args:
        progress: is more after an attempt that failed, and yet got on.

    Raises:
        ServiceAway: it has been for PATIENCE_SECONDS.
        TransportError: it has not answered for as long.
    """
    failing: tuple[object, float] | None = None
    while True:
        try:
            answer = attempt()
        except (ServiceAway, httpx2.TransportError):
            if failing is None or failing[0] != progress():
                failing = progress(), time.monotonic()
            if time.monotonic() > failing[1] + PATIENCE_SECONDS:
                raise
            yield None
            time.sleep(DEFAULT_WAIT_SECONDS)
        else:
            failing = None
            yield answer


def _body(response: httpx2.Response) -> Resource:
    """Of what is JSON and no error."""
    failed = ServiceAway if response.status_code in AWAY else RequestFailed
    try:
        body: Resource = response.json()
    except ValueError as error:
        raise failed(f"expected JSON, got HTTP {response.status_code}") from error
    if response.is_error:
        raise failed(f"{body.get('code')}: {body.get('detail')}")
    return body


def _chunks(data: Path) -> Iterator[bytes]:
    with data.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
