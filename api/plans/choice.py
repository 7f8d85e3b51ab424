"""Which images of a data set are changed: those of some classes, or a share of all. Pure."""

from collections.abc import Sequence

import numpy as np

from api import archive
from api.archive import ImageRecord
from sep_core.config import SEPConfig, stable_integer

# So many names of classes are enough to see which kind of name is meant.
CLASSES_SHOWN = 20


def chosen(records: Sequence[ImageRecord], config: SEPConfig) -> archive.Numbers:
    """Indices of the images that are changed, rising: of each split and class the share asked for.

    Every image draws its number from its pixels, and of each group the smallest are taken. So
    nothing depends on names or on the order of the records, a larger share takes the same images
    and some more, and another protection chooses alike: whoever has both must not find an image
    clean in one and changed in the other. Wherever in these classes the same pixels come again,
    they are taken along, though the share is exceeded: no image is to leave both as it was and
    changed. In other classes they are not: they leave as they came.
    """
    classes = None if config.protected_classes is None else frozenset(config.protected_classes)
    names, numbers = archive.words(records, "class_name")
    wanted = [at for at, name in enumerate(names) if classes is None or name in classes]
    members = np.flatnonzero(np.isin(numbers, wanted))
    if config.protected_fraction == 1 or not len(members):
        return members
    splits = archive.words(records, "split")[1]
    groups = (splits * len(names) + numbers)[members]
    drawn = _drawn(records, members)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    taken = [_smallest(drawn[group], config) for group in np.split(order, starts)]
    return members[np.isin(drawn, np.concatenate(taken))]


def _drawn(records: Sequence[ImageRecord], members: archive.Numbers) -> archive.Numbers:
    digests = (records[int(index)].pixels_sha256 for index in members)
    numbers = (stable_integer("protected pixels", digest) for digest in digests)
    return np.fromiter(numbers, np.int64, len(members))


def _smallest(drawn: archive.Numbers, config: SEPConfig) -> archive.Numbers:
    count = max(1, round(len(drawn) * config.protected_fraction))
    return np.partition(drawn, count - 1)[:count]


def check_classes(config: SEPConfig, classes: Sequence[str]) -> None:
    """Refuse names of classes that the data set doesn't have.

    Raises:
        ValueError: naming field, expectation and value.
    """
    known = frozenset(classes)
    unknown = [name for name in config.protected_classes or () if name not in known]
    if unknown:
        raise ValueError(
            f"protected_classes: expected names of the data set's classes ({_some(classes)}), "
            f"got {_some(unknown)}"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - CLASSES_SHOWN} more" if len(names) > CLASSES_SHOWN else ""
    return ", ".join(map(repr, names[:CLASSES_SHOWN])) + more
