"""Clips as the codec's codes, kept in a folder under the sound's digest, so that no clip is encoded twice."""

import logging
import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

UNFINISHED: Final = ".part"
STALE_SECONDS: Final = 86_400.0

logger = logging.getLogger(__name__)


class Codes:
    """`of` says which model's codec made them. The folder keeps to `limit` bytes: the longest unused go first."""

    def __init__(self, folder: Path, of: str, limit: int = 500_000_000) -> None:
        self._folder = folder
        self._of = of
        self._limit = limit

    def get(self, sound: NDArray[np.float32], encode: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """`[books, frames]` of a sound `[channels, samples]`. A disk that is full or damaged costs time alone."""
        path = (
            self._folder / f"{sha256(self._of.encode() + str(sound.shape).encode() + sound.tobytes()).hexdigest()}.npy"
        )
        try:
            kept = np.load(path, allow_pickle=False)
            os.utime(path)
            if kept.ndim == 2 and kept.dtype == np.int32:
                return torch.from_numpy(kept.astype(np.int64))
        except (OSError, ValueError, EOFError):
            pass
        codes = encode(torch.from_numpy(sound))
        try:
            self._keep(path, codes.numpy().astype(np.int32))
        except OSError as error:
            logger.warning("The codes of a clip could not be kept in %s: %s.", self._folder, error.strerror)
        return codes

    def _keep(self, path: Path, codes: NDArray[np.int32]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=self._folder, suffix=UNFINISHED, delete=False) as file:
            try:
                np.save(file, codes)
                file.close()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def trim(self) -> None:
        """Makes the folder keep to its limit, without the files of processes that were killed while they wrote them."""
        try:
            for part in self._folder.glob(f"*{UNFINISHED}"):
                if part.stat().st_mtime < time.time() - STALE_SECONDS:
                    part.unlink(missing_ok=True)
            found = [(file.stat().st_mtime, file.stat().st_size, file) for file in self._folder.glob("*.npy")]
        except OSError:
            return
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found, key=lambda each: each[0]):
            if total <= self._limit:
                break
            file.unlink(missing_ok=True)
            total -= size
