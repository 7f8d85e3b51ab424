"""What comes in over the wire."""

from typing import Any, Literal, get_type_hints
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from sep_core.cells import Evaluation
from sep_core.config import SEPConfig


class _Strict(BaseModel):
    """Neither "8" nor true is the number that somebody meant; a list is JSON's tuple."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, body: Any) -> Any:
        # `strict` keeps them apart in what FastAPI has parsed already.
        if not isinstance(body, dict):
            return body
        return {name: tuple(v) if isinstance(v, list) else v for name, v in body.items()}


_CONFIG_HELP = {
    "protected_classes": "names of the data set's classes whose images are changed; default all. "
    "Images of the others leave as clean copies, and can be learned from; the verdict is on test "
    "images of these classes alone",
    "protected_fraction": "share of the images of each split and class that is changed, above 0 up "
    "to 1, at least one of each; default 1. Images of the same pixels in these classes are "
    "treated alike, so it may be more where the data have duplicates. The others leave as clean "
    "copies",
}
_FIELDS: dict[str, Any] = {
    name: (kind | None, Field(None, description=_CONFIG_HELP.get(name)))
    for name, kind in get_type_hints(SEPConfig).items()
} | {
    "preset": (
        Literal["auto", "quick", "fast", "hardened", "paper"],
        Field("auto", description="`auto`: chosen from the data and the workers when planned"),
    ),
    "input_pixels": (
        int | None,
        Field(
            None,
            description="side of the square that networks see; default: 32 for `quick`, `paper` "
            "and, on a CPU, `auto`; else 32, 64, 128 or 224, the largest that the median of the "
            "training images' shorter sides reaches",
        ),
    ),
    "crop_padding": (
        int | None,
        Field(None, description="of random crops, in pixels; default: an eighth of `input_pixels`"),
    ),
}
ConfigIn = create_model(
    "ConfigIn",
    __base__=_Strict,
    __doc__="Fields of a protection's configuration that differ from the preset.",
    **_FIELDS,
)


_HELP = {
    "countermeasures": "what whoever trains on the released data does; default `crop-flip`. "
    "`pretrained-frozen` and `pretrained-tuned` begin with weights that the service's operator has "
    "given for a network: where there are none, the request is refused (`PRETRAINED_UNAVAILABLE`); "
    "where they are not the network's at `input_pixels`, the first step fails (`PRETRAINED_UNFIT`)",
    "networks": "which networks they train; default the configuration's appropriator",
    "seeds": "trainings of each kind; default 1. In all at most 500 trainings",
}
_JUDGED: dict[str, Any] = {
    name: (kind | None, Field(None, description=_HELP[name]))
    for name, kind in get_type_hints(Evaluation).items()
    if name in _HELP
}
EvaluationIn = create_model(
    "EvaluationIn",
    __base__=_Strict,
    __doc__="How the result is judged: every network under every countermeasure, several times.",
    **_JUDGED,
)


class ProtectionIn(BaseModel):
    """What to protect, and how."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "dataset_id": "7f8e1b6e-8a3f-4f0e-9d55-0a4be2ad3f7c",
                    "config": {"preset": "quick", "epsilon_levels": 8},
                    "evaluation": {"countermeasures": ["crop-flip", "jpeg-10"], "seeds": 3},
                }
            ]
        },
    )

    dataset_id: UUID
    config: ConfigIn = Field(default_factory=ConfigIn)
    evaluation: EvaluationIn = Field(default_factory=EvaluationIn)
    priority: int = Field(
        0,
        strict=True,
        ge=-10,
        le=10,
        description="among the caller's own protections, whose steps of a higher one come first; "
        "callers take turns whatever theirs",
    )
    validate_only: bool = Field(
        False, strict=True, description="make nothing, and answer with the plan and what it takes"
    )
