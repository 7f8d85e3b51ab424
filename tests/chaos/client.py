"""The one who uses the service while it is harmed."""

import time
from typing import Any
from uuid import uuid4

import httpx2

from tests.acceptance.stack import SMALL_JOB
from tests.chaos.world import World

PATIENCE_SECONDS = 600


class Client:
    """Who asks again until it is heard, by keys that make asking twice harmless."""

    def __init__(self, made: World) -> None:
        key = made.stack.authorisation
        self._http = httpx2.Client(
            base_url=made.stack.url, timeout=10, headers={"Authorization": key}
        )

    def close(self) -> None:
        """Its connections."""
        self._http.close()

    def ask(self, dataset_id: str, seed: str) -> str:
        """A protection's id."""
        body = {"dataset_id": dataset_id, "config": SMALL_JOB | {"seed": seed}}
        headers = {"Idempotency-Key": uuid4().hex}
        return str(
            self._patiently("POST", "/v1/protections", json=body, headers=headers).json()["id"]
        )

    def show(self, path: str) -> Any:
        """A resource."""
        return self._patiently("GET", path).json()

    def events(self, protection_id: str) -> list[dict[str, Any]]:
        """All that has happened to a protection, in order."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self.show(f"/v1/protections/{protection_id}/events?limit=200&after={after}")
            found += page["items"]
            after = page["next_after"]
        return found

    def content(self, path: str) -> bytes:
        """A download."""
        return self._patiently("GET", path).content

    def delete(self, path: str) -> None:
        """A resource, which may be gone already if the answer was lost."""
        self._patiently("DELETE", path, gone=True)

    def _patiently(
        self, method: str, path: str, *, gone: bool = False, **more: Any
    ) -> httpx2.Response:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, **more)
            except httpx2.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500:
                absent = gone and answer.status_code == 404
                assert answer.is_success or absent, f"{method} {path}: {answer.text}"
                return answer
            assert time.monotonic() < deadline, f"{method} {path}: no answer"
            time.sleep(0.2)
