"""What the environment says. Every name below is `SEPGATE_<NAME>` there."""

import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# A unix socket's path must fit into sockaddr_un: 108 bytes with the final NUL.
MAX_SOCKET_PATH = 100


class Settings(BaseSettings):
    """Where things are and how long things may take. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="SEPGATE_")

    data_dir: Path = Field(Path("sepgate-data"), description="folder of the embedded default")
    database_url: str = Field("", description="SQLAlchemy URL; default SQLite in data_dir")
    redis_url: str = Field("", description="Celery broker URL; default a socket in data_dir")
    storage_url: str = Field("", description="file:// or s3:// of the blobs; default in data_dir")

    max_upload_bytes: int = 64 * 2**30
    min_free_bytes: int = Field(512 * 2**20, description="room that uploads must leave on the disk")

    lease_seconds: float = Field(90, description="a step whose lease is not renewed is given away")
    lease_renew_seconds: float = Field(15, description="a third of a lease at most")
    stall_seconds: float = Field(900, description="no progress for so long is a hang")
    drain_seconds: float = Field(
        60,
        ge=0,
        le=80,
        description="time that a running step has left in a worker that is told to end",
    )
    max_attempts: int = Field(
        3, description="attempts in a row that end by the step's own fault and keep nothing"
    )
    backoff_seconds: float = Field(2, description="before the next attempt; doubles every time")
    backoff_max_seconds: float = 300
    give_up_seconds: float = Field(
        86_400, description="a step fails that machines kept from getting on for so long"
    )
    shard_seconds: float = Field(
        60,
        gt=0,
        description="how long a shard is to take, a batch at least; less for many workers",
    )
    sweep_seconds: float = Field(5, description="between two looks at what was lost or not sent")
    resend_seconds: float = Field(10, description="a message that nobody claimed is sent again")
    orphan_grace_seconds: float = Field(86_400, description="blobs without a row live so long")
    failed_keep_seconds: float = Field(
        604_800,
        description="what a retry of what failed would go on from is kept so long",
    )
    keep_protections_days: float | None = Field(
        None, gt=0, description="protections that have ended are deleted then; default never"
    )
    keep_datasets_days: float | None = Field(
        None, gt=0, description="data sets are deleted so long after their last use; default never"
    )
    weights_dir: Path | None = Field(
        None, description="folder of pretrained weights, NETWORK.pt; default `weights` in data_dir"
    )
    worker_queue: Literal["gpu", "cpu"] = Field("gpu", description="what a worker process serves")
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="what a gpu worker needs; it ends where that is not there"
    )
    log_format: Literal["text", "json"] = Field("text", description="of the lines that parts log")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    threads: int = Field(0, ge=0, description="of PyTorch on a CPU; 0 is every core")

    @model_validator(mode="after")
    def _renew_in_time(self) -> Self:
        """A lease is renewed three times in its time, or healthy workers would lose theirs."""
        self.lease_renew_seconds = min(self.lease_renew_seconds, self.lease_seconds / 3)
        return self

    @property
    def database(self) -> str:
        """The database's URL, absolute."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'sepgate.sqlite3'}"

    @property
    def broker(self) -> str:
        """The broker's URL in Celery's form."""
        return self.redis_url or f"redis+socket://{self.valkey_socket}?virtual_host=0"

    @property
    def storage(self) -> str:
        """The blob store's URL."""
        return self.storage_url or (self.data_dir.absolute() / "blobs").as_uri()

    @property
    def weights(self) -> Path:
        """Folder of the pretrained weights; it need not exist."""
        return self.weights_dir or self.data_dir.absolute() / "weights"

    @property
    def valkey_socket(self) -> Path:
        """Socket of the embedded queue: in the data folder, unless that path is too long."""
        path = self.data_dir.absolute() / "queue" / "valkey.sock"
        if len(str(path)) <= MAX_SOCKET_PATH:
            return path
        name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"sepgate-{name}" / "valkey.sock"


@lru_cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
