from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.mongo import MongoStoreHarness


@pytest.fixture
async def mongo(tmp_path: Path) -> AsyncIterator[MongoStoreHarness]:
    harness = MongoStoreHarness(tmp_path)
    yield harness
    await harness.close()
