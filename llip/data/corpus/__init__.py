"""The built-in corpus: real drawings and names from ordinary packages, as pictures with captions of one thing each."""

import importlib
from typing import TYPE_CHECKING, Any

from llip.data.corpus.config import CorpusConfig, KindMix

if TYPE_CHECKING:
    from llip.data.corpus.contact_sheet import write_contact_sheet
    from llip.data.corpus.metadata import metadata_entries, write_metadata
    from llip.data.corpus.pool import write_pool
    from llip.data.corpus.sources import license_table

__all__ = [
    "CorpusConfig",
    "KindMix",
    "license_table",
    "metadata_entries",
    "write_contact_sheet",
    "write_metadata",
    "write_pool",
]

_HOME = {
    "license_table": "sources",
    "metadata_entries": "metadata",
    "write_contact_sheet": "contact_sheet",
    "write_metadata": "metadata",
    "write_pool": "pool",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the command line only needs the configuration."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
