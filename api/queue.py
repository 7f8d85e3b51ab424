"""The Celery app and `send`. No result backend, no chords: rows say what is done and what is next.

Early acknowledgement without prefetch ran every message once where late acknowledgement ran long
ones again (docs/decisions/0003-queue.md); what is lost all the same, the sweep finds.
"""

import logging
from typing import Any

from celery import Celery
from kombu.exceptions import ChannelError, OperationalError
from redis.exceptions import ResponseError

from api.models import Queue
from api.settings import settings

RUN_STEP = "sepgate.run_step"
CHECKED, CHECKED_SECONDS = "sepgate.checked", 60
"""A key that is written to see whether one can be."""

log = logging.getLogger(__name__)


def _configuration() -> dict[str, Any]:
    """Asked for when it is needed: who imports this may still decide on settings."""
    return {
        "broker_url": settings().broker,
        "task_ignore_result": True,
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_proc_alive_timeout": 60,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "socket_connect_timeout": 2,
            "socket_timeout": 30,
            # A request does not wait for a broker that is away; the sweep knocks again.
            "max_retries": 0,
            "interval_start": 0,
        },
        "worker_send_task_events": False,
    }


app = Celery("sepgate")
app.add_defaults(_configuration)


def send(step_id: object, queue: Queue) -> bool:
    """Knock for one step. False if the broker is away or full: the sweep will knock again."""
    try:
        app.send_task(RUN_STEP, args=[str(step_id)], queue=str(queue), retry=False)
    except OperationalError as error:
        log.warning("the broker takes no messages: %s", error)
        return False
    return True


def waiting(queue: Queue) -> int:
    """Messages that lie in a queue.

    Raises:
        OperationalError: the broker is away.
    """
    with app.connection_for_read() as connection:
        try:
            channel: Any = connection.default_channel  # the stubs lack its methods
            declared = channel.queue_declare(str(queue), passive=True)
        except ChannelError:  # an empty list is no list in Redis
            return 0
        return int(declared.message_count)


def check() -> str | None:
    """Why the broker takes no messages; None if it does. Raises where it does not answer.

    One that is full, or follows another, still answers whoever only asks.
    """
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        try:
            channel.client.set(CHECKED, "", ex=CHECKED_SECONDS)
        except ResponseError as error:
            return f"The queue takes no messages: {error}"
    return None
