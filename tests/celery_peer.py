"""The peer of the acceptance bench: POST /generate on FastAPI, Celery, Redis and PostgreSQL.

It runs in an environment of its own, made by the bench; DATABASE_URL and BROKER_URL open its servers.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from celery import Celery
from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import JSON, DateTime
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Label = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=20, max_overflow=0)
sessions = async_sessionmaker(engine, expire_on_commit=False)
celery = Celery("studio", broker=os.environ["BROKER_URL"])
celery.conf.task_ignore_result = True


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    prompt: Mapped[str]
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)


class GenerationRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    model_id: Label | None = None
    num_samples: Annotated[int, Field(ge=1, le=16)] = 1
    duration: Annotated[float, Field(ge=1, le=30)] = 8
    adapter_id: Label | None = None
    seed: Seed | None = None
    seeds: Annotated[list[Seed], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] = 1
    top_k: Annotated[int, Field(ge=0, le=100_000)] = 250
    top_p: Annotated[float, Field(gt=0, le=1)] = 1
    guidance_scale: Annotated[float, Field(ge=1, le=20)] = 3
    output_format: Literal["flac", "wav", "mp3", "ogg"] = "flac"
    priority: Annotated[int, Field(ge=0, le=9)] = 0
    user_id: Label | None = None
    client_id: Label | None = None
    campaign_id: Label | None = None
    brief_id: Label | None = None
    collection: Label | None = None


class JobReceipt(BaseModel):
    job_id: UUID
    status: str


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as opened:
        yield opened


app = FastAPI(lifespan=lifespan)


@app.post("/generate", status_code=202)
async def generate(request: GenerationRequest, database: Annotated[AsyncSession, Depends(session)]) -> JobReceipt:
    job = Job(
        id=uuid4(),
        status="queued",
        created_at=datetime.now(UTC),
        prompt=request.prompt,
        parameters=request.model_dump(exclude={"prompt"}),
    )
    database.add(job)
    await database.commit()
    celery.send_task("studio.generate", args=[str(job.id)], task_id=str(job.id))
    return JobReceipt(job_id=job.id, status=job.status)


@app.get("/health")
async def health() -> str:
    return "ready"
