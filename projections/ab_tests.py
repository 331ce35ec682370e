"""A/B tests and the votes that count, folded together from one topic."""

from collections.abc import Sequence
from typing import Final

from domain.ab_tests import AB_TESTS, AB_VOTES, Vote, counted
from domain.aggregates import AGGREGATES
from domain.events import Recorded
from domain.events.ab_tests import ABVoteCast
from domain.ports import Changes, Reader

VIEWS: Final = (AB_TESTS, AB_VOTES)


async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
    """Votes come first: as long as a test is still the old one, folding the batch again finds the same votes."""
    # Tests before votes: of a test as another host has saved it meanwhile, the votes are saved already.
    before = await store.get(AB_TESTS, list({recorded.key for recorded in batch}))
    cast = {recorded.event.vote_id for recorded in batch if isinstance(recorded.event, ABVoteCast)}
    known = await store.get(AB_VOTES, list(cast)) if cast else {}
    tests, votes = dict(before), dict[str, Vote]()
    for recorded in batch:
        vote = counted(tests.get(recorded.key), recorded)
        if vote is not None and vote.id not in known:
            votes.setdefault(vote.id, vote)
        test = AGGREGATES[AB_TESTS.name].apply(tests.get(recorded.key), recorded)
        if test is not None:
            tests[recorded.key] = test
    changed = [test for key, test in tests.items() if test is not before.get(key)]
    return Changes([*((AB_VOTES, vote) for vote in votes.values()), *((AB_TESTS, test) for test in changed)])
