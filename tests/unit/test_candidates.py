from typing import Any

import pytest
from msgspec.structs import replace

from domain.adapters import has_preference
from domain.errors import InvalidError
from domain.events.adapters import AdapterFile, AdapterRegistered
from domain.events.jobs import AdapterSnapshot, JobStarted, JobSubmitted
from domain.events.prompts import PromptAttributes
from domain.generation import GenerationRequest, Rerun, rerun, submission
from domain.jobs import Job
from domain.models import NOISE, Model, Registry
from projections.audio import documents, samples
from tests.history import SUBMITTED, fold, recorded, sample

OTHER = replace(NOISE, id="example/diffusion", family="diffusion")
PLAIN = AdapterSnapshot(id="a1", name="jazz", version="1.0.0", base_model=NOISE.id, storage_path="adapters/a1")
TASTED = replace(PLAIN, has_preference=True)


def made(by: Any, *scores: tuple[float | None, float | None], best_of: int = 2) -> Job:
    submitted = replace(SUBMITTED, seeds=[7, 8, 9, 10], best_of=best_of, best_of_by=by)
    events = [replace(sample(i), seed=7 + i, likelihood=like, preference=want) for i, (like, want) in enumerate(scores)]
    job = fold(recorded(submitted, JobStarted(job_id=submitted.job_id, attempt=1, worker_id="w1"), *events))
    assert job is not None
    return job


def kept(job: Job) -> list[int]:
    return [each.event.index for each in job.kept]


def test_the_highest_score_is_kept_of_each_row_that_is_whole() -> None:
    job = made("likelihood", (0.1, 9.0), (0.2, 1.0), (0.4, 0.0))
    assert kept(job) == [1]
    assert kept(made("likelihood", (0.1, 9.0), (0.2, 1.0), (0.4, 0.0), (0.3, 5.0))) == [1, 2]
    assert kept(made("preference", (0.1, 9.0), (0.2, 1.0), (0.4, 0.0), (0.3, 5.0))) == [0, 3]
    assert (job.wanted, job.missing) == (2, [3])


def test_of_equal_scores_the_first_is_kept_and_one_without_a_score_last() -> None:
    assert kept(made("likelihood", (0.1, None), (0.1, None), (None, 1.0), (-5.0, None))) == [0, 3]
    assert kept(made("preference", (0.1, None), (0.2, None))) == [0]


def test_without_candidates_every_sample_is_kept() -> None:
    assert kept(made(None, (None, None), (None, None), best_of=1)) == [0, 1]


def test_what_listeners_see_is_the_best_with_all_scores_while_the_others_are_hidden() -> None:
    job = made("likelihood", (0.1, None), (0.2, None), (0.4, None))
    (shown,) = samples(job)
    assert (shown.index, shown.generation_params.seed, shown.picked_by, shown.hidden) == (0, 8, "likelihood", False)
    assert [(score.seed, score.likelihood) for score in shown.scores] == [(7, 0.1), (8, 0.2)]
    assert {each.generation_params.seed: each.hidden for each in documents(job)} == {7: True, 8: False, 9: True}


def test_the_best_is_saved_over_the_candidate_that_it_was() -> None:
    """Its document is written again when the last of its row decides, so it must be of that event."""
    before = {each.id: each.position for each in documents(made("likelihood", (0.9, None)))}
    after = {each.id: each.position for each in samples(made("likelihood", (0.9, None), (0.1, None)))}
    assert all(after[id_] > before[id_] for id_ in after)


def submit(adapter: AdapterSnapshot | None = None, model: Model = NOISE, **fields: Any) -> JobSubmitted:
    return submission(
        GenerationRequest(prompt="rain", **fields),
        job_id="job-1",
        prompt_id="prompt-1",
        text="rain",
        attributes=PromptAttributes(),
        registry=Registry(model),
        adapter=adapter,
        digest=None,
    )


def test_each_candidate_has_a_seed_of_its_own() -> None:
    job = submit(best_of=3, num_samples=2, seed=5)
    assert (job.seeds, job.best_of, job.best_of_by) == ([5, 6, 7, 8, 9, 10], 3, "likelihood")
    assert submit(best_of=2, seeds=[9, 4, 7, 1]).seeds == [9, 4, 7, 1]
    assert (submit().best_of, submit().best_of_by) == (1, None)


def test_an_adapters_preference_model_picks_where_it_has_one() -> None:
    assert submit(TASTED, best_of=2, adapter_id="a1").best_of_by == "preference"
    assert submit(TASTED, best_of=2, adapter_id="a1", best_of_by="likelihood").best_of_by == "likelihood"
    assert submit(PLAIN, best_of=2, adapter_id="a1").best_of_by == "likelihood"


@pytest.mark.parametrize(
    ("fields", "pointer", "detail"),
    [
        ({"best_of": 1}, "/best_of", "best_of is 1; ask for 2 to 16, or leave it out."),
        ({"best_of": 17}, "/best_of", "best_of is 17; ask for 2 to 16, or leave it out."),
        ({"best_of": -(10**30)}, "/best_of", "ask for 2 to 16"),
        (
            {"best_of": 4, "num_samples": 5},
            "/best_of",
            "num_samples 5 times best_of 4 is 20 candidates; a job makes up",
        ),
        ({"best_of": 2, "seeds": [1, 2, 3]}, "/seeds", "seeds has 3 entries; each candidate has its own"),
        ({"best_of": 2, "seeds": [1, 2], "num_samples": 2}, "/seeds", "give 2 times best_of 2"),
        ({"best_of_by": "likelihood"}, "/best_of_by", "there is no best_of"),
        ({"best_of": 2, "best_of_by": "preference"}, "/best_of_by", "there is no adapter_id"),
        ({"best_of": 2, "best_of_by": "preference", "adapter": PLAIN}, "/best_of_by", "jazz 1.0.0 has no preference"),
        ({"best_of": 2, "model": OTHER}, "/best_of", f"use one that does: {NOISE.id.split('/', maxsplit=1)[0]}/"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], pointer: str, detail: str) -> None:
    with pytest.raises(InvalidError) as refused:
        submit(**fields)
    assert detail in next(fault.detail for fault in refused.value.faults if fault.pointer == pointer)


def test_a_rerun_makes_as_many_candidates_and_may_keep_their_seeds() -> None:
    job = submit(best_of=3, num_samples=2, seed=5)
    again = rerun(job, Rerun(same_seeds=True), Registry(NOISE))
    assert (again.best_of, again.best_of_by, again.num_samples, again.seeds) == (3, "likelihood", 2, job.seeds)
    assert rerun(job, Rerun(same_seeds=True, num_samples=1), Registry(NOISE)).seeds == [5, 6, 7]
    plain = rerun(job, Rerun(best_of=None), Registry(NOISE))
    assert (plain.best_of, plain.best_of_by, plain.num_samples) == (None, None, 2)


def test_a_preference_model_counts_when_its_files_are_there_and_it_is_better_than_chance() -> None:
    names = ("adapter_config.json", "adapter_model.safetensors", "preference.json", "preference.safetensors")
    files = tuple(AdapterFile(name=name, size=1, sha256="a" * 64) for name in names)
    registered = AdapterRegistered(
        adapter_id="a1",
        adapter_name="jazz",
        adapter_version="1.0.0",
        base_model=NOISE.id,
        rank=4,
        storage_path="adapters/a1",
        size=4,
        sha256="a" * 64,
        files=files,
        metrics={"pair_accuracy_chance": 0.01},
    )
    assert has_preference(registered)
    assert not has_preference(replace(registered, metrics={"pair_accuracy_chance": 0.4}))
    assert not has_preference(replace(registered, metrics={}))
    assert not has_preference(replace(registered, files=files[:3]))
