"""Which file is of which class and split, by the folders it lies in."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from api.archive.model import Entry, Refusal
from api.archive.names import MANIFEST_NAME, folded, is_litter, looks_like_image, path_parts, shown

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
EXPECTED_LAYOUT = (
    "Expected one folder a class, such as train/cat/1.png, train/dog/2.png and test/cat/3.png, "
    "or cat/1.png and dog/2.png."
)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Below what makes an archive unsafe, by more than a new ending adds.
_LONGEST_NAME = 1000

Path = tuple[str, ...]
"""Of a file; where it is the folders that count, without its name."""


@dataclass(frozen=True)
class Layout:
    """The folders above everything, and whether split folders come next."""

    top: Path
    has_splits: bool


def sort_out(names: Iterable[str], layout: Layout) -> Iterator[Entry | Refusal]:
    """What becomes of every file (no folders), in the order of the names."""
    for name in names:
        yield _place(name, path_parts(name), layout)


def find_layout(names: Iterable[str]) -> Layout:
    """By what looks like an image in a folder: a stray README.txt or logo.png has no say."""
    with_images, folders = set[Path](), set[Path]()
    for name in names:
        *folder, file = path_parts(name)
        if folder and not is_litter(name):
            (with_images if looks_like_image(file) else folders).add((*folder, ""))
    voters: Collection[Path] = with_images or folders
    top: Path = ()
    while (step := _step_down(voters)) is not None:
        top += (step,)
        voters = {path[1:] for path in voters if path[0] == step and len(path) >= 3}
    return Layout(top, any(_in_split(path) for path in voters))


def _step_down(voters: Collection[Path]) -> str | None:
    """The folder that is above the classes and splits, not one of them; None when there is none.

    That is the only folder, if it has folders in it, or the only one with a train folder in it.
    """
    if any(_in_split(path) for path in voters):
        return None
    with_train = {path[0] for path in voters if _in_split(path[1:], "train")}
    if len(with_train) == 1:
        return with_train.pop()
    folders = {path[0] for path in voters}
    deep = any(len(path) >= 3 for path in voters)
    return folders.pop() if len(folders) == 1 and deep else None


def _in_split(path: Path, *splits: str) -> bool:
    """`train/cat/x.png`, but not `train/x.png`: trains may be a class."""
    return len(path) >= 3 and SPLITS.get(path[0].lower()) in (splits or set(SPLITS.values()))


def _place(name: str, path: Path, layout: Layout) -> Entry | Refusal:
    if is_litter(name):
        return Refusal(name, "METADATA_FILE", "Left there by an operating system or a tool.")
    if len(name) > _LONGEST_NAME:
        reason = f"Expected a name of at most {_LONGEST_NAME} characters, got {len(name)}."
        return Refusal(name, "NAME_TOO_LONG", reason)
    if _CONTROL_CHARACTER.search(name):
        reason = f"Expected a name without control characters, got {shown(name)}."
        return Refusal(name, "CONTROL_CHARACTER_IN_NAME", reason)
    if len(path) > 1 and folded(path[0]) == MANIFEST_NAME:
        return Refusal(name, "RESERVED_NAME", f"Expected no folder called {MANIFEST_NAME}.")
    below = path[len(layout.top) :]
    if path[: len(layout.top)] != layout.top:
        return _misplaced(name, f"outside the folder {'/'.join(layout.top)}/")
    return _place_in_splits(name, below) if layout.has_splits else _place_in_class(name, below)


def _place_in_splits(name: str, below: Path) -> Entry | Refusal:
    split = SPLITS.get(below[0].lower()) if len(below) > 1 else None
    if split is None:
        reason = f"Expected a train, val or test folder, got {shown(name)} beside them."
        return Refusal(name, "BESIDE_SPLIT_FOLDERS", reason)
    return _place_in_class(name, below[1:], split)


def _place_in_class(name: str, below: Path, split: str = "train") -> Entry | Refusal:
    if len(below) < 2:
        return _misplaced(name, "in no class folder")
    # A Mac spells the same class differently (decomposed) in the folders that it made itself.
    return Entry(name, split, unicodedata.normalize("NFC", below[0]))


def _misplaced(name: str, where: str) -> Refusal:
    reason = f"Expected a class folder, as in train/cat/1.png, got {shown(name)} {where}."
    return Refusal(name, "NOT_IN_CLASS_FOLDER", reason)
