"""What `celery -A worker.main worker` loads."""

from api import logs
from api.queue import app
from worker import tasks  # noqa: F401  registers the task

logs.configure()
__all__ = ["app"]
