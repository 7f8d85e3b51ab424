"""What goes out over the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.models import DatasetState, ProtectionState, StepKind, StepState

Seconds = Annotated[float, AfterValidator(lambda value: round(value, 1))]


class DatasetOut(BaseModel):
    """A data set: an uploaded archive, immutable, known by its digest."""

    id: UUID
    name: str
    state: DatasetState
    done: bool = Field(description="whether `state` is final: stop polling")
    sha256: str = Field(description="of the uploaded archive")
    size_bytes: int
    images: int | None = Field(description="accepted images")
    refused_count: int | None = Field(description="files that are not part of the data set")
    classes: list[str] | None
    counts: dict[str, dict[str, int]] | None = Field(description="images by split and class")
    sizes: dict[str, int] | None = Field(description="the most frequent sizes, WIDTHxHEIGHT")
    median_side: int | None = Field(
        description="of the training images' shorter sides, in pixels: presets choose the size "
        "that networks see by it"
    )
    progress: float = Field(description="of the ingestion, 0 to 1")
    eta_seconds: Seconds | None = Field(
        description="to the end of the ingestion, judged by its progress; null unless it has some"
    )
    error_code: str | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


class RefusedFile(BaseModel):
    """A file that was not accepted, and so does not leave."""

    name: str
    code: str
    reason: str


class DatasetDetail(DatasetOut):
    """A data set with every refused file."""

    refused: list[RefusedFile]


class DatasetPage(BaseModel):
    """Newest first."""

    items: list[DatasetOut]
    next_cursor: str | None


class StepOut(BaseModel):
    """One unit of work of a protection."""

    kind: StepKind
    index: int
    state: StepState
    progress: float = Field(description="0 to 1; of what does not run, what is kept of it")
    eta_seconds: Seconds | None = Field(
        description="to the step's end, judged by its progress; null unless it runs and has some"
    )
    attempt: int = Field(
        description="that runs, or was the last: attempts broken off by what happens to machines "
        "are not counted, nor those before one that kept something of its work"
    )
    worker: str | None
    error_code: str | None = Field(
        description="of the failure; of a step that is to be tried again, why it was broken off"
    )
    error: str | None
    next_attempt_at: datetime | None = Field(
        description="before which a ready step is not tried again; null unless it has to wait"
    )
    started_at: datetime | None
    finished_at: datetime | None
    input_sha256: str | None = Field(
        description="of all that its result depends on, on a kind of device and with one version "
        "of the software (`training.versions` of the report): the upload, what is frozen, what "
        "the steps before it found; null until it is done"
    )
    output_sha256: str | None = Field(description="of what it found; null until it is done")


class ProtectionOut(BaseModel):
    """A protection: its request, its progress, its result."""

    id: UUID
    dataset_id: UUID | None = Field(description="null once the data set has been deleted")
    dataset_name: str
    state: ProtectionState
    done: bool = Field(description="whether `state` is final: stop polling")
    cancel_requested: bool
    priority: int
    progress: float = Field(description="share of the work done, 0 to 1")
    eta_seconds: Seconds | None = Field(description="to the end, judged by the work done so far")
    waits_for: str | None = Field(
        description="the worker without which none of its steps can run; null where there is one"
    )
    requested: dict[str, Any] = Field(
        description="preset, overrides and evaluation as asked for, without keys"
    )
    config: dict[str, Any] | None = Field(
        description="the frozen configuration without its keys; null until planned"
    )
    plan: dict[str, Any] | None = Field(description="what the bytes depend on beside; frozen too")
    evaluation: dict[str, Any] | None = Field(
        description="the trainings that judge it, by network, countermeasure and seed, and the "
        "SHA-256 of each network's pretrained weights where they begin with such; frozen too"
    )
    archive: "ArchiveOut | None" = Field(description="null until `state` is succeeded")
    error_code: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    kept_until: datetime | None = Field(
        description="when the operator's policy deletes it, with its archive; null where none does"
    )


class ArchiveOut(BaseModel):
    """The protected archive, ready for download."""

    url: str
    sha256: str
    size_bytes: int


class PlanOut(BaseModel):
    """What a request would come to."""

    config: dict[str, Any] = Field(description="as it would be frozen, without its keys")
    plan: dict[str, Any] = Field(
        description="for the fastest worker present; for a CPU where there is none"
    )
    evaluation: dict[str, Any]
    steps: dict[StepKind, int] = Field(description="how many of each kind")
    gflop: dict[str, float] = Field(
        description="work of `train`, `perturb`, `evaluate`; `total`. A training on the originals "
        "that an earlier protection has done on such a worker is none."
    )
    workers: int = Field(description="that serve the GPU queue now")
    seconds: dict[str, Seconds] | None = Field(
        description="of each kind of step and in `total`, from a calibration of these workers (at "
        "32 pixels, and at 64 for all from there on; and of images of a megapixel at their own "
        "size), if they had nothing else to do, `encode` beside `perturb`, and the trainings of "
        "one network after those of another; null where none is calibrated"
    )


class ProtectionDetail(ProtectionOut):
    """A protection with its steps."""

    steps: list[StepOut]


class EventOut(BaseModel):
    """Something that has happened to a protection or to one of its steps."""

    model_config = ConfigDict(from_attributes=True)

    id: int = Field(description="grows with time; not without gaps")
    at: datetime
    what: str = Field(
        description="`protection.` and a state, or `planned`, `cancel_requested`, "
        "`retry_requested`, `deleted`; `step.` and a state"
    )
    data: dict[str, Any] = Field(description="of a step its kind and index; what else there is")


class EventPage(BaseModel):
    """Oldest first."""

    items: list[EventOut]
    next_after: int | None = Field(description="`after` of the next page; null at the end")


class ProgressOut(BaseModel):
    """How far a protection is."""

    progress: float = Field(description="share of the work done, 0 to 1")
    eta_seconds: Seconds | None


class ProtectionPage(BaseModel):
    """Newest first."""

    items: list[ProtectionOut]
    next_cursor: str | None


class Health(BaseModel):
    """Whether the service can do its work."""

    status: Literal["ok"]
