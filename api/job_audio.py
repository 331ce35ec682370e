"""All samples of a job, or of several, in one file."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import quote

from litestar import Request, Response, get
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from litestar.status_codes import HTTP_304_NOT_MODIFIED

from api.http import archive, ranges
from api.http.archive import Entry
from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.http.several import several
from api.jobs import shown
from domain.errors import ConflictError, Fault, InvalidError, NotFoundError
from domain.events.jobs import Format
from domain.file_names import file_name, stem
from domain.jobs import Job
from projections.audio import samples

MAX_JOBS: Final = 50
Ids: TypeAlias = Annotated[
    list[str],
    several("jobs", 1, MAX_JOBS),
]


@get("/jobs/{job_id:str}/audio.zip", operation_id="getJobAudio", opt=CURRENT, tags=["audio"])
async def job_audio(
    request: Request[Any, Any, Any],
    services: Injected,
    job_id: FromPath[str],
    output_format: Annotated[Format | None, QueryParameter(name="format")] = None,
) -> Response[Any]:
    """Every sample of an ended job in one ZIP file, as `format`, by default what the job asked for."""
    job = await _ended(services, job_id)
    name = f"{stem(job.request.prompt)}-{job.id[-6:]}.zip"
    return await _archive(request, services, [job], output_format, (f"{job.id}.zip", name))


@get("/jobs/audio.zip", operation_id="getJobsAudio", opt=CURRENT, tags=["audio"])
async def jobs_audio(
    request: Request[Any, Any, Any],
    services: Injected,
    ids: Ids,
    output_format: Annotated[Format | None, QueryParameter(name="format")] = None,
) -> Response[Any]:
    """Every sample of several ended jobs in one ZIP file, as `format`, by default what each job asked for."""
    asked = [entry for part in ids for entry in part.split(",") if entry]
    if not 1 <= len(asked) <= MAX_JOBS or len(set(asked)) < len(asked):
        detail = f"ids names {len(asked)} jobs, {len(set(asked))} different ones; name 1 to {MAX_JOBS}, each once."
        raise InvalidError([Fault("/ids", detail)])
    jobs = [await _ended(services, id_) for id_ in asked]
    return await _archive(request, services, jobs, output_format, ("selection.zip", "selection.zip"))


ROUTES: Final = (job_audio, jobs_audio)


async def _ended(services: Services, job_id: str) -> Job:
    """Raises ConflictError for a job that is open, and NotFoundError for one that has no audio."""
    job = await shown(services, job_id)
    if job.is_open:
        made = f"{len(job.kept)} of {job.wanted} samples"
        raise ConflictError(f"Job {job_id} is {job.status} and has made {made}; ask again when it has ended.")
    if not job.audible:
        raise NotFoundError("audio of job", job_id)
    return job


async def _archive(
    request: Request[Any, Any, Any],
    services: Services,
    jobs: Sequence[Job],
    output_format: Format | None,
    names: tuple[str, str],
) -> Response[Any]:
    """`names` are the file's name in ASCII and in full."""
    digits = 6 if len({job.id[-6:] for job in jobs}) == len(jobs) else 32
    entries: list[Entry] = []
    versions = hashlib.sha256()
    for job in jobs:
        found, version = await _entries(services, job, output_format or job.request.output_format, digits)
        entries += found
        versions.update(version)
    plain, name = names
    etag = f'"{versions.hexdigest()}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}",
    }
    if ranges.unchanged(request.headers, etag):
        return Response(None, status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    try:
        headers["Content-Length"] = str(archive.size(entries))
    except ValueError as error:
        raise InvalidError([Fault("/ids", f"{error} Ask for fewer jobs, or for format=mp3.")]) from None
    return Stream(archive.stream(entries), headers=headers, media_type="application/zip")


async def _entries(services: Services, job: Job, output_format: Format, digits: int) -> tuple[list[Entry], bytes]:
    """What the archive holds of the job, and what its ETag is made of."""
    entries, versions = [], b""
    for sample in samples(job):
        stored = await services.renditions.get(sample, output_format)
        name = file_name(job.request.prompt, job.id, sample.index, output_format, digits=digits)
        entries.append(Entry(name, stored.size, datetime.fromisoformat(sample.created_at), stored.read))
        versions += f"{name} {sample.sha256} {stored.etag}\n".encode()
    return entries, versions
