"""The log replayed into a temporary file, and what a dataset is made of read out of it, in memory that does not grow.

Each aggregate is folded by its slice's own `evolve`, and rests in the file between two batches. The file has no name,
so that nothing of it is left whatever becomes of the process.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import groupby
from typing import Any, BinaryIO, Final

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from domain import verdicts
from domain.ab_tests import AB_TESTS, ABTest, Vote, counted, job_id
from domain.aggregates import AGGREGATES
from domain.curation import AnyItem, Choice, Compared, Item, Listed, Rated, compare, numbered, own_means, rate, split
from domain.events import Erased, Recorded
from domain.events.datasets import Agreement, DatasetCreated, Reason
from domain.feedback import FEEDBACK, Feedback
from domain.jobs import JOBS, Job
from domain.raters import Rater, Raters
from domain.selection import takes_listener, takes_moment, takes_rating, takes_samples

TOPICS: Final = (AB_TESTS.name, FEEDBACK.name, JOBS.name)
CACHE_KIB: Final = 64_000
REMEMBERED: Final = 5_000
KEYS_AT_ONCE: Final = 500
TABLES: Final = (
    f"CREATE TABLE {JOBS.name} (id TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID",
    f"CREATE TABLE {FEEDBACK.name} (id TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID",
    f"CREATE TABLE {AB_TESTS.name} (id TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID",
    "CREATE TABLE votes (test TEXT, position INTEGER, id TEXT UNIQUE, body BLOB, PRIMARY KEY (test, position))",
    "CREATE TABLE samples (id TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID",
    "CREATE TABLE judgements (unit TEXT, time TEXT, id TEXT, user TEXT, value, tags BLOB, is_vote INTEGER)",
    "CREATE TABLE ratings (sample TEXT, id TEXT, user TEXT, value REAL)",
    "CREATE TABLE means (sample TEXT PRIMARY KEY, value REAL) WITHOUT ROWID",
)
DOCUMENTS: Final = {JOBS.name: Job, FEEDBACK.name: Feedback, AB_TESTS.name: ABTest}


class Facts(Struct, frozen=True, kw_only=True):
    """A sample that can be heard, and what its job says of it."""

    listed: Listed
    prompt_id: str
    prompt: str
    model_prompt: str
    campaign_id: str | None
    client_id: str | None
    collection: str | None

    def filed(self) -> dict[str, Any]:
        own = {name: getattr(self.listed, name) for name in ("adapter_id", "model_id")}
        return own | {name: getattr(self, name) for name in ("campaign_id", "client_id", "collection")}


class Summary(Struct, frozen=True, kw_only=True):
    """`judgements` counts what listeners said and that was taken in; `left_out` the rest, and what made no item."""

    digest: str
    size: int
    count: int
    splits: dict[Any, int]
    agreement: Agreement
    judgements: int
    left_out: dict[str, int]


class Replay:
    """Only for one thread at a time."""

    def __init__(self, path: str = "") -> None:
        """`path` is of an empty file, by default one in SQLite's own folder for temporary files."""
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}", "temp_store = FILE"):
            self._database.execute(f"PRAGMA {pragma}")
        for table in TABLES:
            self._database.execute(table)
        self._decoders = {name: msgspec.msgpack.Decoder(kind) for name, kind in DOCUMENTS.items()}
        self._encoder = msgspec.msgpack.Encoder()
        self._left_out: Counter[Reason] = Counter()
        self.raters = Raters()
        self._facts = lru_cache(REMEMBERED)(self._stored_facts)
        self._database.execute("BEGIN")

    def close(self) -> None:
        self._database.close()

    def take(self, records: Sequence[Recorded]) -> None:
        """Records of a partition are to come in its order."""
        by_topic: defaultdict[str, list[Recorded]] = defaultdict(list)
        for recorded in records:
            by_topic[recorded.position.topic].append(recorded)
        for topic, found in by_topic.items():
            self._fold(topic, found)

    def erase(self, records: Sequence[Recorded]) -> None:
        """Takes in that feedback is gone, and nothing else: for what stands after the records that count."""
        self._fold(FEEDBACK.name, [recorded for recorded in records if isinstance(recorded.event, Erased)])

    def write(self, request: DatasetCreated, file: BinaryIO) -> Summary:
        """Writes the items' list. To be called once, when everything has been taken in."""
        self._list_samples()
        self._judge(request)
        least = request.filters.min_reliability
        if least is not None:
            for unit, users, judgements in self._units():
                self._count(self.raters, unit, users, judgements)
        known, raters = self.raters, Raters()
        raters.known = {user: Rater(caught=rater.caught, passed=rater.passed) for user, rater in known.known.items()}
        digest, size, count, taken = sha256(), 0, 0, 0
        splits: Counter[str] = Counter()
        for unit, told, said in self._units():
            kept = [at for at, user in enumerate(told) if least is None or known.reliability(user) >= least]
            self._left_out["unreliable"] += len(told) - len(kept)
            if not kept:
                continue
            users, judgements = [told[at] for at in kept], [said[at] for at in kept]
            taken += len(judgements)
            self._count(raters, unit, users, judgements)
            if isinstance(item := self._item(request, unit, judgements), str):
                self._left_out[item] += 1
                continue
            line = msgspec.json.encode(item, order="sorted") + b"\n"
            digest.update(line)
            file.write(line)
            size, count = size + len(line), count + 1
            splits[item.split] += 1
        if least is None:
            self.raters = raters
        return Summary(
            digest=digest.hexdigest(),
            size=size,
            count=count,
            splits=dict(sorted(splits.items())),
            agreement=raters.agreement(),
            judgements=taken,
            left_out={str(reason): number for reason, number in sorted(self._left_out.items()) if number},
        )

    def _fold(self, topic: str, records: Sequence[Recorded]) -> None:
        keys = list({recorded.key for recorded in records})
        states = {key: self._decoders[topic].decode(body) for key, body in self._rows(topic, keys)}
        before = dict(states)
        apply = AGGREGATES[topic].apply
        votes: list[Vote] = []
        for recorded in records:
            state: Any = states.get(recorded.key)
            if topic == AB_TESTS.name and (vote := counted(state, recorded)) is not None:
                votes.append(vote)
            after = apply(state, recorded)
            if after is not None:
                states[recorded.key] = after
            else:
                states.pop(recorded.key, None)
        changed = [(key, self._kept(state)) for key, state in states.items() if state is not before.get(key)]
        self._database.executemany(f"INSERT OR REPLACE INTO {topic} VALUES (?, ?)", changed)  # noqa: S608
        gone = [(key,) for key in before if key not in states]
        self._database.executemany(f"DELETE FROM {topic} WHERE id = ?", gone)  # noqa: S608
        cast = [(vote.event.ab_test_id, vote.position, vote.id, self._encoder.encode(vote)) for vote in votes]
        self._database.executemany("INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?)", cast)

    def _rows(self, topic: str, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for first in range(0, len(keys), KEYS_AT_ONCE):
            page = keys[first : first + KEYS_AT_ONCE]
            marks = ",".join("?" * len(page))
            yield from self._database.execute(f"SELECT id, body FROM {topic} WHERE id IN ({marks})", page)  # noqa: S608

    def _kept(self, state: Any) -> bytes:
        """Without what makes feedback long and no difference."""
        if isinstance(state, Feedback):
            state = replace(state, notes=None, seconds_listened={}, request_digest=None)
        return self._encoder.encode(state)

    def _list_samples(self) -> None:
        decode, encode = self._decoders[JOBS.name].decode, self._encoder.encode
        read = self._database.execute(f"SELECT body FROM {JOBS.name}")  # noqa: S608
        while page := read.fetchmany(KEYS_AT_ONCE):
            found = [facts for (body,) in page for facts in _facts(decode(body))]
            rows = [(facts.listed.sample_id, encode(facts)) for facts in found]
            # Of two jobs that claim one sample, which only a stranger's do, neither the order nor the backend decides.
            self._database.executemany(
                "INSERT INTO samples VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = min(body, excluded.body)", rows
            )

    def _judge(self, request: DatasetCreated) -> None:
        """Lists what counts of feedback and votes."""
        sources = request.filters.sources
        if sources != "votes":
            decode = self._decoders[FEEDBACK.name].decode
            read = self._database.execute(f"SELECT body FROM {FEEDBACK.name}")  # noqa: S608
            while page := read.fetchmany(KEYS_AT_ONCE):
                for (body,) in page:
                    self._judge_feedback(request, decode(body))
        if sources != "feedback" and request.kind == "preference":
            tests = self._database.execute(f"SELECT body FROM {AB_TESTS.name} ORDER BY id")  # noqa: S608
            while page := tests.fetchmany(KEYS_AT_ONCE):
                for (body,) in page:
                    self._judge_votes(request, self._decoders[AB_TESTS.name].decode(body))
        self._average_ratings()

    def _judge_feedback(self, request: DatasetCreated, feedback: Feedback) -> None:
        filters = request.filters
        if not (takes_listener(filters, feedback.user_id) and takes_moment(filters, feedback.created_at)):
            self._left_out["filtered"] += 1
            return
        other = feedback.compared_with
        if request.kind == "preference" and feedback.rating is not None and _is_rated(request):
            row = (feedback.sample.audio_id, feedback.id, feedback.user_id, feedback.rating)
            self._database.execute("INSERT INTO ratings VALUES (?, ?, ?, ?)", row)
        if request.kind == "preference" and other is None:
            if feedback.verdict is not None:
                self._left_out["not_comparable"] += 1
            return
        if request.kind == "supervised" and feedback.rating is None and not feedback.tags:
            self._left_out["unrated"] += 1
            return
        named = [feedback.sample] if request.kind == "supervised" or other is None else [feedback.sample, other]
        facts = [found for each in named if (found := self._facts(each.audio_id)) is not None]
        if len(facts) < len(named):
            self._left_out[self._absence([each.job_id for each in named])] += 1
            return
        if not takes_samples(filters, [each.filed() for each in facts]):
            self._left_out["filtered"] += 1
            return
        if len(facts) == 2 and facts[0].prompt_id != facts[1].prompt_id:
            self._left_out["not_comparable"] += 1
            return
        ids = [each.listed.sample_id for each in facts]
        value: Any = feedback.rating
        if request.kind == "preference":
            value = feedback.verdict if feedback.verdict != "preferred" else _preferred(ids[0], ids)
        self._insert(ids, feedback.created_at, feedback.id, feedback.user_id, value, tags=feedback.tags)

    def _judge_votes(self, request: DatasetCreated, test: ABTest) -> None:
        filters = request.filters
        rows = self._database.execute("SELECT body FROM votes WHERE test = ? ORDER BY position", (test.id,)).fetchall()
        votes = [_vote_decoder.decode(body) for (body,) in rows]
        judged = [_judged(vote) for vote in votes]
        reasons = verdicts.exclusions(judged, duration=test.request.duration)
        for vote, said, reason in zip(votes, judged, reasons, strict=True):
            if not (takes_listener(filters, said.voter) and takes_moment(filters, said.time)):
                self._left_out["filtered"] += 1
                continue
            if said.catch is not None:
                self.raters.caught(said.voter, passed=said.arm is None)
            if reason is not None:
                self._left_out[reason] += 1
                continue
            jobs = {arm: job_id(test.id, said.pair, arm) for arm in ("A", "B")}
            facts = {arm: self._of_job(job) for arm, job in jobs.items()}
            one, other = facts["A"], facts["B"]
            if one is None or other is None:
                self._left_out[self._absence([*jobs.values()])] += 1
            elif one.prompt_id != other.prompt_id or one.listed.sample_id == other.listed.sample_id:
                self._left_out["not_comparable"] += 1
            elif not takes_samples(filters, [one.filed(), other.filed()]):
                self._left_out["filtered"] += 1
            else:
                ids = [one.listed.sample_id, other.listed.sample_id]
                value = said.choice if said.arm is None else _preferred(ids[said.arm == "B"], ids)
                self._insert(ids, said.time, vote.id, said.voter, value, is_vote=True)

    def _insert(
        self,
        ids: Sequence[str],
        time: str,
        id_: str,
        user: str | None,
        value: Any,
        *,
        tags: Sequence[str] = (),
        is_vote: bool = False,
    ) -> None:
        row = ("|".join(sorted(ids)), time, id_, user, value, self._encoder.encode(tags) if tags else None, is_vote)
        self._database.execute("INSERT INTO judgements VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _average_ratings(self) -> None:
        read = self._database.execute("SELECT sample, id, user, value FROM ratings ORDER BY sample, id")
        for sample, rows in groupby(read, key=lambda row: str(row[0])):
            found = list(rows)
            numbers = numbered([user for _, _, user, _ in found])
            rated = [Rated(id=id_, by=by, rating=value) for by, (_, id_, _, value) in zip(numbers, found, strict=True)]
            means = own_means(rated)
            self._database.execute("INSERT INTO means VALUES (?, ?)", (sample, sum(means.values()) / len(means)))

    def _units(self) -> Iterator[tuple[str, list[str | None], list[Any]]]:
        """What was said of each sample or pair, in the order in which it was said, and by whom."""
        read = self._database.execute(
            "SELECT unit, id, user, value, tags, is_vote FROM judgements ORDER BY unit, time, id"
        )
        for unit, rows in groupby(read, key=lambda row: str(row[0])):
            found = list(rows)
            users = [user for _, _, user, *_ in found]
            judgements: list[Any] = []
            for by, (_, id_, _, value, tags, is_vote) in zip(numbered(users), found, strict=True):
                words = _tags_decoder.decode(tags) if tags else ()
                if "|" in unit:
                    judgements.append(Compared(id=id_, by=by, choice=value, tags=words, is_vote=bool(is_vote)))
                else:
                    judgements.append(Rated(id=id_, by=by, rating=value, tags=words))
            yield unit, users, judgements

    def _count(self, raters: Raters, unit: str, users: Sequence[str | None], judgements: Sequence[Any]) -> None:
        if "|" in unit:
            raters.compared(users, judgements)
        else:
            raters.rated(users, judgements)

    def _item(self, request: DatasetCreated, unit: str, judgements: Sequence[Any]) -> AnyItem | Reason:
        facts = [found for id_ in unit.split("|") if (found := self._facts(id_)) is not None]
        first = facts[0]
        base = Item(
            split=split(first.prompt, request.seed, request.held_out),
            prompt_id=first.prompt_id,
            prompt=first.prompt,
            model_prompt=first.model_prompt,
        )
        if len(facts) == 1:
            return rate(base, first.listed, judgements, request.filters)
        item = compare(base, first.listed, facts[1].listed, judgements, request.filters)
        if isinstance(item, str) or not _is_rated(request):
            return item
        rows = self._database.execute("SELECT value FROM means WHERE sample = ?", (item.first.sample_id,)).fetchall()
        return item if takes_rating(request.filters, rows[0][0] if rows else None) else "rating"

    def _stored_facts(self, sample_id: str) -> Facts | None:
        rows = self._database.execute("SELECT body FROM samples WHERE id = ?", (sample_id,)).fetchall()
        return _facts_decoder.decode(rows[0][0]) if rows else None

    def _of_job(self, id_: str) -> Facts | None:
        """The one sample of a job of an A/B test."""
        for _, body in self._rows(JOBS.name, [id_]):
            audible = self._decoders[JOBS.name].decode(body).audible
            return self._facts(audible[0].event.sample_id) if audible else None
        return None

    def _absence(self, job_ids: Sequence[str]) -> Reason:
        """Why samples of these jobs are not there."""
        jobs = [self._decoders[JOBS.name].decode(body) for _, body in self._rows(JOBS.name, list(set(job_ids)))]
        return "deleted" if any(job.is_silent for job in jobs) else "unknown_sample"


def _facts(job: Job) -> Iterator[Facts]:
    request = job.request
    for sample in job.audible:
        event = sample.event
        same = ("sample_id", "seed", "sample_rate", "size", "sha256", "pcm_sha256", "storage_path")
        yield Facts(
            listed=Listed(
                **{name: getattr(event, name) for name in same},
                job_id=job.id,
                model_id=request.model_id,
                adapter_id=request.adapter.id if request.adapter else None,
                duration=event.duration_seconds,
            ),
            prompt_id=request.prompt_id,
            prompt=request.prompt,
            model_prompt=request.model_prompt or request.prompt,
            campaign_id=request.campaign_id,
            client_id=request.client_id,
            collection=request.collection,
        )


def _preferred(id_: str, ids: Sequence[str]) -> Choice:
    return "first" if id_ == min(ids) else "second"


def _is_rated(request: DatasetCreated) -> bool:
    """Whether its filters ask for ratings."""
    return request.filters.min_rating is not None or request.filters.max_rating is not None


def _judged(vote: Vote) -> verdicts.Vote:
    told = asdict(vote.event)
    same = ("voter", "pair", "choice", "left", "catch", "heard_first", "seconds_left", "seconds_right")
    return verdicts.Vote(**{name: told[name] for name in same}, time=vote.created_at)


_vote_decoder: Final = msgspec.msgpack.Decoder(Vote)
_facts_decoder: Final = msgspec.msgpack.Decoder(Facts)
_tags_decoder: Final = msgspec.msgpack.Decoder(tuple[str, ...])
