"""Export shards as WebDataset tars, for the loaders of others.

    uv run pipelines/export.py --shards output/shards --output output/webdataset

A tar a shard, with the same rows in the same order: `.jpg`, `.png` or `.webp`, `.txt` with the first caption, and
`.json` with every column but the image. Equal rows give equal bytes. A run that was interrupted goes on where it
stopped when it is started again.
"""

from dataclasses import asdict, dataclass
from typing import Any

from llip import storage
from llip.data import integrity, manifest
from llip.data.manifest import FileEntry, Manifest
from llip.lease import sole_writer
from pipelines import command


@dataclass(frozen=True, kw_only=True)
class Export:
    """Model to export, and its destination."""

    shards: str = "output/shards"
    """Folder of finished shards."""
    output: str = "output/webdataset"
    """Folder of the tars."""


def export(settings: Export) -> Manifest:
    """Write the tars; returns the manifest of the output. Does nothing where that is done already.

    Raises ValueError where `shards` is no finished folder of shards, where one of its files is missing or damaged, and
    for an output made from others or being written.
    """
    from pipelines.stages.work import digest

    output, folder = storage.absolute(settings.output), storage.absolute(settings.shards)
    shards = manifest.read(folder, "shards")
    config = {"shards_digest": digest([asdict(file) for file in shards.files])}
    if manifest.is_done(output, "webdataset", config):
        print(f"{output} holds the tars already")
        return manifest.read(output, "webdataset")
    integrity.check_sizes(folder, shards)
    command.start_ray()
    with sole_writer(output):
        return _export(folder, shards, config, output)


def _export(folder: str, shards: Manifest, config: dict[str, Any], output: str) -> Manifest:
    from pipelines.stages import write_webdataset
    from pipelines.stages.work import Stage, digest, run

    progress = storage.join(output, "progress")
    written = run(
        Stage(name="export", markers=storage.join(progress, digest(config))),
        list(enumerate(shards.files)),
        write_webdataset.write_tar,
        sizes=[file.rows for file in shards.files],
        shared={"shards": folder, "folder": output},
    )
    files = tuple(FileEntry(**entry) for entry in written)
    result = Manifest(kind="webdataset", files=files, config=config, source={"shards": folder})
    assert result.rows == shards.rows, f"{result.rows} rows written of {shards.rows}"
    manifest.write(output, result)
    storage.remove(progress)
    print(f"{result.rows:,} rows in {len(files)} tars of {result.bytes / 1e6 / len(files):.1f} MB: {output}")
    return result


def cli() -> None:
    """The command line."""
    command.run(Export, export, "Export shards as WebDataset tars.")


if __name__ == "__main__":
    cli()
