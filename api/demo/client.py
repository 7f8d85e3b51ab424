"""A client of the service as anybody would write one: upload, ask, poll, download."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2

Resource = dict[str, Any]

CHUNK_BYTES = 2**20
DEFAULT_WAIT_SECONDS = 2.0


class RequestFailed(RuntimeError):
    """The service refused, or the work failed; the message is its sentence."""


class Client:
    """A connection to one service with one key."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=60)

    def upload(self, data: Path) -> Resource:
        """Send a zip; returns the data set as it is then."""
        return self._json(
            self._http.post("/v1/datasets", params={"name": data.name}, content=_chunks(data))
        )

    def protect(self, dataset_id: str, config: Mapping[str, Any], key: str) -> Resource:
        """Ask for a protection; `key` makes a repeated call harmless."""
        body = {"dataset_id": dataset_id, "config": dict(config)}
        return self._json(
            self._http.post("/v1/protections", json=body, headers={"Idempotency-Key": key})
        )

    def poll(self, path: str) -> Iterator[Resource]:
        """The resource again and again until it is done, as often as the service asks."""
        while True:
            response = self._http.get(path)
            resource = self._json(response)
            yield resource
            if resource["done"]:
                return
            time.sleep(float(response.headers.get("Retry-After", DEFAULT_WAIT_SECONDS)))

    def download(self, path: str, to: Path) -> None:
        """Save a response's body; nothing half-written stays under the name `to`."""
        part = to.with_name(to.name + ".part")
        with self._http.stream("GET", path) as response, part.open("wb") as file:
            if response.is_error:
                response.read()
                self._json(response)
            for chunk in response.iter_bytes(CHUNK_BYTES):
                file.write(chunk)
        part.replace(to)

    @staticmethod
    def _json(response: httpx2.Response) -> Resource:
        try:
            body: Resource = response.json()
        except ValueError as error:
            raise RequestFailed(f"expected JSON, got HTTP {response.status_code}") from error
        if response.is_error:
            raise RequestFailed(f"{body.get('code')}: {body.get('detail')}")
        return body


def _chunks(data: Path) -> Iterator[bytes]:
    with data.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
