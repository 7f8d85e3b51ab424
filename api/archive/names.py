"""Names in an archive: their parts, what collides, what is litter, what a file leaves as."""

import unicodedata
from collections.abc import Callable, Iterator
from itertools import count

MANIFEST_NAME = "manifest.json"
"""Written by us at the top of a released archive; no image takes its place."""

LOSSLESS_ENDINGS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
"""Endings under which pixels leave as they are, and Pillow's name of the format."""

_OTHER_ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
_LITTER_FILES = {".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_LITTER_FOLDERS = {
    *("__macosx", ".spotlight-v100", ".trashes", ".fseventsd"),
    *("$recycle.bin", "@eadir", ".ipynb_checkpoints"),
}
_SHOWN_CHARACTERS = 120


def shown(name: str) -> str:
    """The name as a sentence may quote it: without control characters, not endless."""
    if len(name) > _SHOWN_CHARACTERS:
        name = name[: _SHOWN_CHARACTERS - 3] + "..."
    return repr(name)


def path_parts(name: str) -> tuple[str, ...]:
    """Folders and file name, without the empty and `.` steps that some tools write."""
    return tuple(part for part in name.split("/") if part not in ("", "."))


def folded(path: str) -> str:
    """Equal for paths that a Mac's or Windows' file system takes for the same.

    Windows ends a name before the dots and spaces that it ends with.
    """
    path = "/".join(part.rstrip(". ") or part for part in path.split("/"))
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def parents(path: str) -> Iterator[str]:
    """`a/b` and `a` of `a/b/c`, deepest first."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def is_litter(name: str) -> bool:
    """Whether an operating system or tool put it there, not the owner of the images."""
    parts = [part.lower() for part in path_parts(name)]
    if not parts:
        return False
    in_litter = any(part in _LITTER_FOLDERS for part in parts[:-1])
    return in_litter or parts[-1].startswith("._") or parts[-1] in _LITTER_FILES


def looks_like_image(name: str) -> bool:
    """By its ending only: enough to find the layout by."""
    ending = _ending(name)
    return ending in LOSSLESS_ENDINGS or ending in _OTHER_ENDINGS


def released_format(released_name: str) -> str:
    """Pillow's name of the lossless format that this ending promises.

    Raises:
        ValueError: the ending promises none.
    """
    try:
        return LOSSLESS_ENDINGS[_ending(released_name)]
    except KeyError:
        raise ValueError(
            f"expected a name ending in one of {sorted(LOSSLESS_ENDINGS)}, got {released_name!r}"
        ) from None


def released_name(name: str, claim: Callable[[str], bool]) -> str:
    """The name in the released archive of an accepted image.

    The ending alone decides: a lossless one stays and the file is written in that format, any
    other becomes `.png`, so the ending is true of the content even where the source's lied. A new
    name is never that of any file or folder of the upload, so a released `a.png` is never mistaken
    for another's.

    Args:
        claim: takes a path that nothing has; tells whether it did.
    """
    path = "/".join(path_parts(name))
    if _ending(path) in LOSSLESS_ENDINGS:
        return path
    return next(free for free in _png_names(path) if claim(free))


def _png_names(path: str) -> Iterator[str]:
    """For `a.jpg`: `a.png`, `a.jpg.png`, `a.jpg-2.png`, `a.jpg-3.png`, ..."""
    if _ending(path) in _OTHER_ENDINGS:
        yield path[: -len(_ending(path))] + ".png"
    yield path + ".png"
    yield from (f"{path}-{number}.png" for number in count(2))


def _ending(name: str) -> str:
    """With its dot, in lower case; none for `a` and `.jpg`."""
    file_name = name.rpartition("/")[2]
    dot = file_name.rfind(".")
    return file_name[dot:].lower() if dot > 0 else ""
