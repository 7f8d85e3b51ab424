"""What `celery -A worker.main worker` loads."""

from api.queue import app
from worker import tasks  # noqa: F401  registers the task

__all__ = ["app"]
