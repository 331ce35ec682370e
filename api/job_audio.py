"""All samples of a job in one file."""

import hashlib
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

from litestar import Request, Response, get
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from litestar.status_codes import HTTP_304_NOT_MODIFIED

from api.http import archive, ranges
from api.http.archive import Entry
from api.http.positions import CURRENT
from api.http.services import Injected, Services
from api.jobs import shown
from domain.errors import ConflictError, NotFoundError
from domain.events.jobs import Format
from domain.file_names import file_name, stem
from domain.jobs import Job
from projections.audio import samples


@get("/jobs/{job_id:str}/audio.zip", operation_id="getJobAudio", opt=CURRENT, tags=["audio"])
async def job_audio(
    request: Request[Any, Any, Any],
    services: Injected,
    job_id: FromPath[str],
    output_format: Annotated[Format | None, QueryParameter(name="format")] = None,
) -> Response[Any]:
    """Every sample of an ended job in one ZIP file, as `format`, by default what the job asked for."""
    job = await shown(services, job_id)
    if job.is_open:
        made = f"{len(job.samples)} of {len(job.request.seeds)} samples"
        raise ConflictError(f"Job {job_id} is {job.status} and has made {made}; ask again when it has ended.")
    if not job.audible:
        raise NotFoundError("audio of job", job_id)
    entries, etag = await _entries(services, job, output_format or job.request.output_format)
    name = f"{stem(job.request.prompt)}-{job.id[-6:]}.zip"
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename=\"{job.id}.zip\"; filename*=UTF-8''{quote(name)}",
    }
    if ranges.unchanged(request.headers, etag):
        return Response(None, status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    headers["Content-Length"] = str(archive.size(entries))
    return Stream(archive.stream(entries), headers=headers, media_type="application/zip")


ROUTES: Final = (job_audio,)


async def _entries(services: Services, job: Job, output_format: Format) -> tuple[list[Entry], str]:
    """What the archive holds, and its ETag."""
    entries, versions = [], hashlib.sha256()
    for sample in samples(job):
        stored = await services.renditions.get(sample, output_format)
        name = file_name(job.request.prompt, job.id, sample.index, output_format)
        entries.append(Entry(name, stored.size, datetime.fromisoformat(sample.created_at), stored.read))
        versions.update(f"{name} {sample.sha256} {stored.etag}\n".encode())
    return entries, f'"{versions.hexdigest()}"'
