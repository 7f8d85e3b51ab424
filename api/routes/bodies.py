"""What comes in over the wire."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_type_hints
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from sep_core.cells import Evaluation
from sep_core.config import SEPConfig
from sep_core.ranges import of_annotation


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


def _optional(of: type, names: Iterable[str], notes: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a dataclass that a request may leave out, described as they are there.

    Args:
        notes: what the service does with a field beyond that.
    """
    kinds = get_type_hints(of, include_extras=True)
    return {name: (kinds[name] | None, _field(kinds[name], notes.get(name, ""))) for name in names}


def _field(kind: Any, more: str) -> Any:
    meant = next(note for note in get_args(kind) if isinstance(note, str))
    within = of_annotation(kind)
    low, high = (within.low, within.high) if within else (None, None)
    return Field(None, description=meant + more, ge=low, le=high)


_CONFIG_NOTES = {
    "input_pixels": "; default: 32 for `quick`, `paper` and, on a CPU, `auto`; else 32, 64, 128 or "
    "224, the largest that the median of the training images' shorter sides reaches",
    "crop_padding": "; default: an eighth of `input_pixels`",
}
_PRESET: dict[str, Any] = {
    "preset": (
        Literal["auto", "quick", "fast", "hardened", "paper"],
        Field(
            "auto",
            description="`auto`: chosen from the data and the workers when planned; `hardened`: "
            "stronger than `fast` against grey, projection and tuned backbones, weaker elsewhere",
        ),
    )
}
ConfigIn = create_model(
    "ConfigIn",
    __base__=_Strict,
    __doc__="Fields of a protection's configuration that differ from the preset.",
    **_PRESET,
    **_optional(SEPConfig, SEPConfig.__dataclass_fields__, _CONFIG_NOTES),
)


_EVALUATION_NOTES = {
    "countermeasures": ". `pretrained-frozen` and `pretrained-tuned` begin with weights that the "
    "service's operator has given for a network: where there are none, the request is refused "
    "(`PRETRAINED_UNAVAILABLE`); where they are not the network's at `input_pixels`, the first "
    "step fails (`PRETRAINED_UNFIT`)",
}
EvaluationIn = create_model(
    "EvaluationIn",
    __base__=_Strict,
    __doc__="How the result is judged: every network under every countermeasure, several times.",
    **_optional(Evaluation, ("countermeasures", "networks", "seeds"), _EVALUATION_NOTES),
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

    dataset_id: UUID = Field(description="a data set of the caller's that is `ready`")
    config: ConfigIn = Field(
        default_factory=ConfigIn, description="a preset, and fields in place of the preset's"
    )
    evaluation: EvaluationIn = Field(
        default_factory=EvaluationIn, description="which trainings judge the result"
    )
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
