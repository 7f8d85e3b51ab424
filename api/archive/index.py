"""The result of an ingestion as JSON, to be kept beside the data set."""

from pydantic import TypeAdapter

from api.archive.model import IngestResult

_ADAPTER = TypeAdapter(IngestResult)


def dump_index(result: IngestResult) -> bytes:
    """JSON in UTF-8; the same result gives the same bytes."""
    return _ADAPTER.dump_json(result)


def load_index(data: bytes) -> IngestResult:
    """What `dump_index` was given.

    Raises:
        ValueError: it is not an index.
    """
    return _ADAPTER.validate_json(data)
