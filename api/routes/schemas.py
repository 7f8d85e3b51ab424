"""What goes out over the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.models import DatasetState, ProtectionState, StepKind, StepState

Id = Annotated[UUID, Field(description="drawn by the service")]
At = Annotated[datetime, Field(description="in UTC")]
EndedAt = Annotated[datetime | None, Field(description="in UTC; null until `state` is final")]
Code = Annotated[
    str | None,
    Field(description="why it failed, UPPER_SNAKE, to program against; null unless it did"),
]
Reason = Annotated[str | None, Field(description="the same as a sentence; null unless it failed")]
Cursor = Annotated[
    str | None, Field(description="`cursor` of the next page; null where this is the last")
]
Seconds = Annotated[float, AfterValidator(lambda value: round(value, 1))]


RELEASED_BEFORE: Any = Field(
    description="other protections of the same upload that have succeeded. Release one of them: "
    "whoever has two knows much of the originals (threat model)"
)


class DatasetOut(BaseModel):
    """A data set: an uploaded archive, immutable, known by its digest."""

    id: Id
    name: str = Field(description="as uploaded under; need not be unique")
    state: DatasetState = Field(
        description="`ingesting` while it is read; `ready`; `rejected` where it can't be read"
    )
    done: bool = Field(description="whether `state` is final: stop polling")
    sha256: str = Field(description="of the uploaded archive")
    size_bytes: int = Field(description="of the uploaded archive")
    images: int | None = Field(description="accepted images")
    refused_count: int | None = Field(description="files that are not part of the data set")
    classes: list[str] | None = Field(description="names of their folders, in order")
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
    error_code: Code
    error: Reason
    created_at: At
    finished_at: EndedAt


class RefusedFile(BaseModel):
    """A file that was not accepted, and so does not leave."""

    name: str = Field(description="its path in the archive")
    code: str = Field(description="why, UPPER_SNAKE")
    reason: str = Field(description="what was expected, and what came")


class DatasetDetail(DatasetOut):
    """A data set with every refused file."""

    refused: list[RefusedFile] = Field(description="every one of them")


class DatasetPage(BaseModel):
    """Newest first."""

    items: list[DatasetOut] = Field(description="newest first")
    next_cursor: Cursor


class StepOut(BaseModel):
    """One unit of work of a protection."""

    kind: StepKind = Field(description="what it does")
    index: int = Field(description="among those of its kind, from 0")
    state: StepState = Field(
        description="`waiting` for other steps; `ready` for a worker; `running`; `done`; `failed`"
    )
    progress: float = Field(description="0 to 1; of what does not run, what is kept of it")
    eta_seconds: Seconds | None = Field(
        description="to the step's end, judged by its progress; null unless it runs and has some"
    )
    attempt: int = Field(
        description="that runs, or was the last: attempts broken off by what happens to machines "
        "are not counted, nor those before one that kept something of its work"
    )
    worker: str | None = Field(description="that has it, or had it last")
    error_code: str | None = Field(
        description="of the failure; of a step that is to be tried again, why it was broken off"
    )
    error: str | None = Field(description="the same as a sentence")
    next_attempt_at: datetime | None = Field(
        description="before which a ready step is not tried again; null unless it has to wait"
    )
    started_at: datetime | None = Field(description="its last attempt, in UTC")
    finished_at: EndedAt
    input_sha256: str | None = Field(
        description="of all that its result depends on, on a kind of device and with one version "
        "of the software (`training.versions` of the report): the upload, what is frozen, what "
        "the steps before it found; null until it is done"
    )
    output_sha256: str | None = Field(description="of what it found; null until it is done")


class ProtectionOut(BaseModel):
    """A protection: its request, its progress, its result."""

    id: Id
    dataset_id: UUID | None = Field(description="null once the data set has been deleted")
    dataset_name: str = Field(description="as it was uploaded under")
    state: ProtectionState = Field(
        description="`queued` until its first step runs; `running`; then one of the others"
    )
    done: bool = Field(description="whether `state` is final: stop polling")
    cancel_requested: bool = Field(description="it ends as `cancelled` within seconds")
    priority: int = Field(description="among its owner's own, -10 to 10; higher first")
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
    error_code: Code
    error: Reason
    created_at: At
    started_at: datetime | None = Field(description="its first step, in UTC")
    finished_at: EndedAt
    kept_until: datetime | None = Field(
        description="when the operator's policy deletes it, with its archive; null where none does"
    )


class ArchiveOut(BaseModel):
    """The protected archive, ready for download."""

    url: str = Field(description="path at this service; answers ranges")
    sha256: str = Field(description="of the file")
    size_bytes: int = Field(description="of the file")


class PlanOut(BaseModel):
    """What a request would come to."""

    config: dict[str, Any] = Field(description="as it would be frozen, without its keys")
    plan: dict[str, Any] = Field(
        description="for the fastest worker present; for a CPU where there is none"
    )
    evaluation: dict[str, Any] = Field(description="the trainings that would judge it")
    steps: dict[StepKind, int] = Field(description="how many of each kind")
    released_before: list[UUID] = RELEASED_BEFORE
    gflop: dict[str, float] = Field(
        description="work of `train`, `perturb`, `evaluate`; `total`. A training on the originals "
        "that an earlier protection has done on such a worker is none."
    )
    storage_bytes: int = Field(
        description="about how much it takes of the storage while it runs; the archive that stays "
        "is half of it or less where it is of photographs"
    )
    warnings: list[str] = Field(
        description="what it will not come to: a budget that its steps do not reach, classes "
        "without test images or too few of them for a verdict, too little room in the storage"
    )
    workers: int = Field(description="that serve the GPU queue now")
    seconds: dict[str, Seconds] | None = Field(
        description="of each kind of step and in `total`, from a calibration of these workers (at "
        "32 pixels, and at 64 for all from there on; and of images of a megapixel at their own "
        "size), if they had nothing else to do, `encode` beside `perturb`, and the trainings of "
        "one network after those of another; null where none is calibrated. CPUs measure `small`, "
        "GPUs `resnet18` too; others are taken to be as fast for their work, and on a CPU "
        "`linear`, `mlp` and `vit` as much slower as they once were; `encode` and `package` are "
        "taken to be as fast as on one core of a Xeon"
    )


class ProtectionDetail(ProtectionOut):
    """A protection with its steps."""

    steps: list[StepOut] = Field(description="in the order in which they come")
    released_before: list[UUID] = RELEASED_BEFORE


class EventOut(BaseModel):
    """Something that has happened to a protection or to one of its steps."""

    model_config = ConfigDict(from_attributes=True)

    id: int = Field(description="grows with time; not without gaps")
    at: At
    what: str = Field(
        description="`protection.` and a state, or `planned`, `cancel_requested`, "
        "`retry_requested`, `deleted`; `step.` and a state"
    )
    data: dict[str, Any] = Field(description="of a step its kind and index; what else there is")


class EventPage(BaseModel):
    """Oldest first."""

    items: list[EventOut] = Field(description="oldest first")
    next_after: int | None = Field(description="`after` of the next page; null at the end")


class ProgressOut(BaseModel):
    """How far a protection is."""

    progress: float = Field(description="share of the work done, 0 to 1")
    eta_seconds: Seconds | None = Field(description="to the end, judged by the work done so far")


class ProtectionPage(BaseModel):
    """Newest first."""

    items: list[ProtectionOut] = Field(description="newest first")
    next_cursor: Cursor


class Health(BaseModel):
    """Whether the service can do its work."""

    status: Literal["ok"] = Field(description="where it can't, a problem document says why")
