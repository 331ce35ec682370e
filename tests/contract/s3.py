"""An S3 server as the object store's contract meets it: a bucket for each test, over connections to be cut."""

from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from msgspec.structs import replace

from infra.storage.s3_objects import Bucket, S3Objects
from tests.proxy import Proxy
from tests.servers import servers


class S3ObjectsHarness:
    def __init__(self, _folder: Path) -> None:
        self.addresses = addresses = servers().addresses
        self.bucket = Bucket(
            endpoint=addresses.s3_endpoint,
            name=f"test-{uuid4().hex}",
            region=addresses.s3_region,
            access_key=addresses.s3_access_key,
            secret_key=addresses.s3_secret_key,
        )
        self.proxy: Proxy | None = None

    async def open(self) -> S3Objects:
        return await S3Objects.open(self.bucket)

    async def open_through_proxy(self) -> S3Objects:
        self.proxy = await Proxy.to(urlsplit(self.addresses.s3_endpoint).netloc)
        return await S3Objects.open(replace(self.bucket, endpoint=f"http://{self.proxy.address}"))

    async def close(self) -> None:
        if self.proxy is not None:
            await self.proxy.close()
        objects = await S3Objects.open(self.bucket)
        for info in await objects.list(""):
            await objects.delete(info.key)
        await objects._client.delete_bucket(Bucket=self.bucket.name)
        await objects.close()
