"""The built-in corpus: real drawings and names from ordinary packages, as images with captions of one thing each."""

from typing import TYPE_CHECKING

from llip.data.corpus.config import CaptionTypeMix, CorpusConfig
from llip.lazy import lazily

if TYPE_CHECKING:
    from llip.data.corpus.contact_sheet import write_contact_sheet
    from llip.data.corpus.pool import metadata_entries, spread_over_cores, write_metadata, write_pool
    from llip.data.corpus.sources import license_table

__all__ = [
    "CaptionTypeMix",
    "CorpusConfig",
    "license_table",
    "metadata_entries",
    "spread_over_cores",
    "write_contact_sheet",
    "write_metadata",
    "write_pool",
]

__getattr__ = lazily(
    __name__,
    {
        "license_table": "llip.data.corpus.sources",
        "metadata_entries": "llip.data.corpus.pool",
        "spread_over_cores": "llip.data.corpus.pool",
        "write_contact_sheet": "llip.data.corpus.contact_sheet",
        "write_metadata": "llip.data.corpus.pool",
        "write_pool": "llip.data.corpus.pool",
    },
)
