"""Exports datasets when somebody has asked for it."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from domain.correlation import correlated
from domain.datasets import DATASETS, Dataset, Export, export_id, folder
from domain.errors import Text2SongError, UnavailableError, UncertainError
from domain.events import MAX_ERROR, Recorded
from domain.events.datasets import (
    DatasetExported,
    DatasetExportFailed,
    DatasetExportRequested,
    DatasetRecordsErased,
)
from domain.journal import Journal, until_done
from domain.ports import ObjectStore, ReadStore
from workers.dataset_archive import Archive
from workers.uploads import finished

WHO: Final = "The export of datasets"

logger: Final = logging.getLogger(__name__)


class ExportOfDatasets:
    """The archive is stored first and said to be there second: killed in between, it is made again, the same one.

    An archive that was made while records were being erased is refused by the dataset, and made again without them.
    """

    name = "dataset-exports"
    topics = (DATASETS.name,)

    def __init__(self, journal: Journal, store: ReadStore, objects: ObjectStore, scratch: Path | None = None) -> None:
        """`scratch` is a folder for temporary files."""
        self._journal = journal
        self._store = store
        self._objects = objects
        self._scratch = scratch

    async def react(self, batch: Sequence[Recorded]) -> None:
        asking = (DatasetExportRequested, DatasetRecordsErased)
        asked = {recorded.key: recorded.correlation for recorded in batch if isinstance(recorded.event, asking)}
        if not asked:
            return
        for dataset in (await self._store.get(DATASETS, list(asked))).values():
            for export in dataset.exports:
                if export.status == "requested":
                    about = {"text2song.key": dataset.id, "format": export.format}
                    with correlated(asked[dataset.id]), self._journal.span("export dataset", "consumer", about):
                        await self._export(dataset, export)

    async def _export(self, dataset: Dataset, export: Export) -> None:
        try:
            done: DatasetExported | DatasetExportFailed = await self._archived(dataset, export)
        except (UnavailableError, UncertainError):
            raise
        except Exception as error:
            if not isinstance(error, Text2SongError):
                logger.exception("The %s export of dataset %s failed.", export.format, dataset.id)
            said = str(error) if isinstance(error, Text2SongError) else f"{type(error).__name__}: {error}"
            done = DatasetExportFailed(
                dataset_id=dataset.id,
                format=export.format,
                request_id=export.request_id,
                error=said[:MAX_ERROR],
            )
        await until_done(partial(self._journal.append, done, event_id=export_id(done)), WHO)

    async def _archived(self, dataset: Dataset, export: Export) -> DatasetExported:
        """Raises DamagedError where the list is gone or damaged, and UnavailableError where the disk is full."""
        with Archive(self._objects, dataset, export, self._scratch) as archive:
            await archive.write()
            place = f"{folder(dataset.id)}/exports/{export.format}"
            await self._sweep(place, dataset.erasures)
            key = f"{place}/{dataset.erasures}-{archive.sha256}.zip"
            await finished(partial(self._objects.put_file, key, archive.file, replace=False))
        return DatasetExported(
            dataset_id=dataset.id,
            format=export.format,
            request_id=export.request_id,
            archive=key,
            size=archive.size,
            sha256=archive.sha256,
            rows=archive.rows,
            left_out=dict(sorted(archive.left_out.items())),
            missing=tuple(archive.missing),
            erasures=dataset.erasures,
        )

    async def _sweep(self, place: str, erasures: int) -> None:
        """Removes archives that still have what is erased by now, also those that the dataset refused."""
        for stored in await self._objects.list(place):
            known = stored.key.rpartition("/")[2].partition("-")[0]
            if known.isdecimal() and int(known) < erasures:
                await self._objects.delete(stored.key)
