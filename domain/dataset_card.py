"""What a dataset says of itself in words: the card of an export, with the head that the Hugging Face hub reads."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from domain.datasets import Dataset
from domain.events.datasets import DatasetBuilt, Format

FORMAT: Final = "text2song-dataset/1"
WORDS: Final[Mapping[str, str]] = {
    "unknown_sample": "judgements of samples that are on no log",
    "deleted": "judgements or items of jobs that were deleted, cancelled or purged",
    "not_comparable": "comparisons of samples that do not belong together",
    "catch_trial": "votes on identical sides, which test the listener",
    "failed_attention": "votes of listeners who heard differences between identical sides",
    "little_listening": "votes after too little listening",
    "repeated": "votes on a pair that the listener had voted on before",
    "filtered": "judgements or items that filter_query does not take in",
    "unreliable": "judgements of listeners below min_reliability",
    "unrated": "judgements or samples without a rating",
    "few_votes": "samples or pairs with fewer listeners than min_votes",
    "low_agreement": "samples or pairs below min_agreement",
    "rating": "samples or pairs outside of min_rating and max_rating",
    "tied": "pairs of which neither sample was preferred",
    "erased": "items of which all judgements were erased",
    "audio_gone": "samples whose audio is gone",
    "audio_damaged": "samples whose audio is damaged",
    "undecided": "samples that are neither good nor bad",
}
EMPTY: Final = "Nothing was left to take in. The most frequent reason was: {}."
NOBODY: Final = "Nothing was left to take in: no listener has said anything of this kind yet."


def explanation(dataset: Dataset) -> str | None:
    """Why a built dataset has no items; None where it has some."""
    if dataset.built is None or dataset.sample_count:
        return None
    if dataset.built.sample_count:
        return "Everything that it was built of was erased since."
    left_out = dataset.built.left_out
    if not left_out:
        return NOBODY
    reason = max(left_out, key=lambda name: (left_out[name], name))
    return EMPTY.format(f"{left_out[reason]:,} {WORDS.get(reason, reason)} ({reason})")


def card(dataset: Dataset, exported: Format | None = None) -> str:
    """In Markdown; `exported` is the format of an export, of which the card is the README."""
    return "\n".join([*_head(dataset, exported), *_body(dataset, exported)]) + "\n"


def _head(dataset: Dataset, exported: Format | None) -> Iterator[str]:
    yield "---"
    yield f"pretty_name: {_quoted(dataset.request.dataset_name)}"
    yield "task_categories:"
    yield "- text-to-audio"
    yield "tags:"
    yield from ("- music", "- text2song", f"- {dataset.request.kind}")
    if exported is not None and dataset.built is not None:
        yield "configs:"
        yield "- config_name: default"
        yield "  data_files:"
        for split in ("train", "test"):
            if dataset.built.splits.get(split):
                yield f"  - split: {split}"
                yield f"    path: data/{split}/**"
    yield "---"


def _body(dataset: Dataset, exported: Format | None) -> Iterator[str]:
    request, built = dataset.request, dataset.built
    yield f"# {_plain(request.dataset_name)}"
    yield ""
    if request.description:
        yield _plain(request.description)
        yield ""
    yield f"A {request.kind} dataset of generated music and of what listeners said of it, made by Text2Song Studio."
    yield "Models and adapters that made the samples are named in each row; their licences hold for the samples too."
    yield ""
    yield f"* id: `{dataset.id}`, created {dataset.created_at}, {dataset.status}"
    filters = msgspec.json.encode(request.filters).decode()
    yield f"* filter: `{filters}`"
    if dataset.error:
        yield f"* error: {_plain(dataset.error)}"
    if built is not None:
        yield from _figures(dataset, built)
    if exported is not None:
        yield ""
        yield f'This is its {exported} export. Load it with `load_dataset("audiofolder", data_dir=…)`; each row of'
        yield "`data/*/metadata.jsonl` names its audio. `manifest.json` has the SHA-256 of every file."


def _figures(dataset: Dataset, built: DatasetBuilt) -> Iterator[str]:
    splits = ", ".join(f"{count:,} {name}" for name, count in built.splits.items()) or "none"
    yield f"* items: {built.sample_count:,} ({splits}), from {built.judgements:,} judgements; split by prompt"
    yield f"* SHA-256 of the list of items: `{built.digest}`"
    agreement = built.agreement
    alpha = "unknown" if agreement.alpha is None else f"{agreement.alpha:.2f}"
    yield (
        f"* agreement of {agreement.listeners:,} listeners: Krippendorff's alpha {alpha}, on "
        f"{agreement.compared:,} that several judged"
    )
    yield (
        f"* self-consistency: {agreement.consistent:,} of {agreement.repeated:,} repeated judgements said the same, "
        f"{agreement.passed:,} of {agreement.caught:,} trials of identical sides were passed"
    )
    for reason, count in built.left_out.items():
        yield f"* left out: {count:,} {WORDS.get(reason, reason)}"
    if dataset.erased:
        yield (
            f"* erased since: {len(dataset.erased_feedback):,} judgements and {len(dataset.erased_jobs):,} jobs; "
            f"{dataset.sample_count or 0:,} items are left"
        )
    if said := explanation(dataset):
        yield f"* {said}"


def _plain(text: str) -> str:
    """On one line, so that nothing in it becomes a heading."""
    return " ".join(text.split())


def _quoted(text: str) -> str:
    """A JSON text is a YAML text."""
    return msgspec.json.encode(_plain(text)).decode()
