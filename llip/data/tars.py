"""Tars as the world makes them: several in one file, one behind the other, and headers that have to be right."""

import tarfile
from typing import IO, Any, Self

HEADER_BYTES = 1 << 20
"""Most bytes of an extended header: long names, not contents."""


def opened(file: IO[bytes], mode: str) -> tarfile.TarFile:
    """A tar to read from, to the end of the file. Raises tarfile.ReadError for what is none, also while it is read."""
    options: Any = {"mode": mode, "tarinfo": _Member, "ignore_zeros": True}
    return tarfile.open(fileobj=file, **options)


class _Member(tarfile.TarInfo):
    """A header that has to be right: `tarfile` takes a broken one for the end, and what follows would be lost."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A header. Raises ReadError for an extended one that claims to be long: it would be read into memory."""
        member = super().frombuf(buf, encoding, errors)
        kinds = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
        if member.type in (*kinds, tarfile.GNUTYPE_LONGLINK) and member.size > HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {member.size:,} bytes")
        return member
