"""Objects in an S3 bucket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from os import SEEK_END
from typing import Any, BinaryIO, Final, Self, TypeAlias
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from msgspec import Struct

from domain.errors import NotFoundError, RefusedError, UnavailableError
from domain.ports import ObjectInfo, check_key
from infra.loopback import is_loopback
from infra.storage import tls

PART: Final = 8 * 1024 * 1024
DELETED_AT_ONCE: Final = 1000
# Where there are objects that may go up in parts.
OURS: Final = ("samples/", "renditions/", "datasets/", "adapters/", "trainings/", "melodies/")
TRIES: Final = 5
ATTEMPTS: Final = 4
STALE: Final = timedelta(days=1)
MISSING: Final = {"404", "NoSuchKey", "NotFound"}
DENIED: Final = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "XAdminUserNotFound"}
THERE: Final = {"PreconditionFailed", "ConditionalRequestConflict"}
Source: TypeAlias = Callable[[int, int], bytes]  # the bytes between two offsets
BOTH: Final = {"ObjectParentIsFile", "ExistingObjectIsDirectory", "ObjectExistsAsDirectory"}


class Bucket(Struct, frozen=True, kw_only=True):
    """`endpoint` is the server's URL, None for Amazon's own; keys that are None are found as S3 clients find them.

    Path style is used, so that any S3 server will do.
    """

    name: str
    region: str
    endpoint: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    cafile: str | None = None


class S3Objects:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._stack = AsyncExitStack()
        self._client: Any = None

    @classmethod
    async def open(cls, bucket: Bucket) -> Self:
        """Makes the bucket where there is none, and clears away uploads that were begun over a day ago.

        Raises UnavailableError when the server cannot be reached or refuses the keys.
        """
        self = cls(bucket)
        try:
            await self._prepare()
        except BaseException:
            await self.close()
            raise
        return self

    async def put(self, key: str, data: bytes, *, replace: bool = True) -> ObjectInfo:
        return await self._put(key, lambda start, end: data[start:end], len(data), replace=replace)

    async def put_file(self, key: str, file: BinaryIO, *, replace: bool = True) -> ObjectInfo:
        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        return await self._put(key, read, await asyncio.to_thread(file.seek, 0, SEEK_END), replace=replace)

    async def _put(self, key: str, read: Source, size: int, *, replace: bool) -> ObjectInfo:
        check_key(key)
        condition = {} if replace else {"IfNoneMatch": "*"}
        with self._refusals(key):
            put = self._put_parts if size > PART else self._put_whole
            tries = TRIES
            while True:
                tries -= 1
                try:
                    return ObjectInfo(key, size, _etag(await put(key, read, size, condition)))
                except ClientError as error:
                    code = _code(error)
                    if condition and code in THERE and (there := await self.stat(key)):
                        return there
                    # A gateway over folders says BOTH too while a delete takes the empty folder away.
                    if code not in THERE | BOTH or not tries:
                        raise

    async def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        with self._refusals(key):
            try:
                found = await self._client.head_object(Bucket=self._bucket.name, Key=key)
            except ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise
        return ObjectInfo(key, found["ContentLength"], _etag(found))

    async def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        if start < 0 or (length is not None and length < 0):
            raise ValueError(f"Bytes {start}+{length} of {key!r} cannot be read: neither may be negative.")
        if length == 0:
            if await self.stat(key) is None:
                raise NotFoundError("object", key)
            return
        ends = "" if length is None else start + length - 1
        with self._refusals(key):
            try:
                found = await self._client.get_object(Bucket=self._bucket.name, Key=key, Range=f"bytes={start}-{ends}")
            except ClientError as error:
                if _code(error) in MISSING:
                    raise NotFoundError("object", key) from None
                if _code(error) in {"416", "InvalidRange"}:
                    return
                raise
            async with found["Body"] as body:
                # As they came from the socket: to cut and join them to one size would copy each byte twice.
                async for chunk, _ in body.raw_stream.content.iter_chunks():
                    yield chunk

    async def list(self, prefix: str) -> list[ObjectInfo]:
        itself = await self.stat(prefix) if prefix else None
        found = await self._below(f"{prefix}/" if prefix else "")
        return sorted([*found, *([itself] if itself else [])], key=lambda info: info.key)

    async def delete(self, prefix: str) -> int:
        check_key(prefix)
        keys = [info.key for info in await self.list(prefix)]
        with self._refusals(prefix):
            for first in range(0, len(keys), DELETED_AT_ONCE):
                page = [{"Key": key} for key in keys[first : first + DELETED_AT_ONCE]]
                answer = await self._client.delete_objects(
                    Bucket=self._bucket.name, Delete={"Objects": page, "Quiet": True}
                )
                if refused := answer.get("Errors"):
                    raise ClientError({"Error": refused[0]}, "DeleteObjects")
        return len(keys)

    async def close(self) -> None:
        await self._stack.aclose()

    async def _prepare(self) -> None:
        bucket = self._bucket
        if bucket.cafile is not None:
            tls.context(bucket.cafile, setting="TEXT2SONG_S3")
        with self._refusals(bucket.name):
            self._client = await self._stack.enter_async_context(
                get_session().create_client(
                    "s3",
                    endpoint_url=bucket.endpoint,
                    region_name=bucket.region,
                    verify=bucket.cafile,
                    aws_access_key_id=bucket.access_key,
                    aws_secret_access_key=bucket.secret_key,
                    config=AioConfig(
                        # None takes them from the environment.
                        proxies={} if is_loopback(urlsplit(bucket.endpoint or "").hostname or "") else None,
                        connect_timeout=3,
                        read_timeout=20,
                        max_pool_connections=32,
                        retries={"mode": "standard", "max_attempts": ATTEMPTS},
                        signature_version="s3v4",
                        s3={"addressing_style": "path"},
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    ),
                )
            )
            try:
                await self._client.head_bucket(Bucket=bucket.name)
            except ClientError as error:
                if _code(error) not in MISSING:
                    raise
                await self._create()
            await self._sweep()

    async def _create(self) -> None:
        # The oldest region is the one that may not be named.
        placed = {"CreateBucketConfiguration": {"LocationConstraint": self._bucket.region}}
        try:
            await self._client.create_bucket(
                Bucket=self._bucket.name, **({} if self._bucket.region == "us-east-1" else placed)
            )
        except ClientError as error:
            if _code(error) != "BucketAlreadyOwnedByYou":
                raise

    async def _sweep(self) -> None:
        """Ends uploads that nobody will finish; a stranger's, who shares the bucket, are the stranger's."""
        paginator = self._client.get_paginator("list_multipart_uploads")
        for prefix in OURS:
            async for page in paginator.paginate(Bucket=self._bucket.name, Prefix=prefix):
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"] < datetime.now(UTC) - STALE:
                        await self._abort(upload["Key"], upload["UploadId"])

    async def _below(self, prefix: str) -> Sequence[ObjectInfo]:
        with self._refusals(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket.name, Prefix=prefix)
            listed = [each async for page in pages for each in page.get("Contents", ())]
        return [ObjectInfo(each["Key"], each["Size"], _etag(each)) for each in listed]

    async def _put_whole(self, key: str, read: Source, size: int, condition: Mapping[str, str]) -> Any:
        data = await asyncio.to_thread(read, 0, size)
        return await self._client.put_object(Bucket=self._bucket.name, Key=key, Body=data, **condition)

    async def _put_parts(self, key: str, read: Source, size: int, condition: Mapping[str, str]) -> Any:
        place = {"Bucket": self._bucket.name, "Key": key}
        upload = (await self._client.create_multipart_upload(**place))["UploadId"]
        try:
            parts = []
            for number, first in enumerate(range(0, size, PART), 1):
                data = await asyncio.to_thread(read, first, min(first + PART, size))
                part = await self._client.upload_part(**place, UploadId=upload, PartNumber=number, Body=data)
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
            return await self._client.complete_multipart_upload(
                **place, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )
        except BaseException:
            await asyncio.shield(self._abort(key, upload))
            raise

    async def _abort(self, key: str, upload: str) -> None:
        # What cannot be aborted now is swept once it is old.
        with suppress(BotoCoreError, ClientError, aiohttp.ClientError, TimeoutError):
            await self._client.abort_multipart_upload(Bucket=self._bucket.name, Key=key, UploadId=upload)

    @contextmanager
    def _refusals(self, key: str) -> Iterator[None]:
        where = f"S3 at {self._bucket.endpoint}" if self._bucket.endpoint else "Amazon's S3"
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code in BOTH:
                raise ValueError(f"{key!r} would make one name both an object and a folder of objects.") from None
            if code in DENIED:
                raise RefusedError(
                    f"{where} refuses the access key {self._bucket.access_key!r} with its secret, or denies it the "
                    f"bucket {self._bucket.name!r} ({code}). Check both in "
                    "TEXT2SONG_S3_ACCESS_KEY and TEXT2SONG_S3_SECRET_KEY, and the rights."
                ) from None
            raise UnavailableError(f"{where} refused {key!r}: {error}. Try again.") from None
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise UnavailableError(
                f"{where} is asked without keys: {str(error).rstrip('.')}. Set TEXT2SONG_S3_ACCESS_KEY and "
                "TEXT2SONG_S3_SECRET_KEY."
            ) from None
        except (BotoCoreError, aiohttp.ClientError, TimeoutError) as error:
            if found := tls.distrusted(error, "TEXT2SONG_S3_CA"):
                raise RefusedError(f"{where}: {found}.") from None
            why = str(error) or "not within its time"
            raise UnavailableError(f"{where} does not answer: {why}. See that it runs; try again.") from None


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code", ""))


def _etag(answer: Any) -> str:
    return str(answer["ETag"]).strip('"')
