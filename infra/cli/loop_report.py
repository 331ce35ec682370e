"""The report on one turn of the loop: one HTML file that needs nothing else, in light and dark."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from msgspec import Struct

from domain.verdicts import Results
from infra.cli import loop_picture, verdict_picture
from infra.cli.loop_state import Turn
from infra.cli.verdict_report import NARROW, STYLE, WIDE
from infra.cli.verdict_words import Asked, exclusions, facts, headline, reasons

OWN_STYLE: Final = """
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; }
svg .dotted { stroke-dasharray: 3 5; }
audio { display: block; width: 100%; max-width: 20rem; height: 2.2rem; }
.clips { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .5rem 1rem;
  margin: 0 0 1rem; }
.clips p { grid-column: 1 / -1; margin: .4rem 0 0; }
"""


class Clips(Struct, frozen=True):
    """MP3 files of one prompt, made with the same seed."""

    prompt: str
    base: bytes
    adapter: bytes


class Told(Struct, frozen=True, kw_only=True):
    """What the studio says of a turn. Without an adapter nothing was learnt, and there was no test."""

    turn: Turn
    dataset: dict[str, Any]
    training: dict[str, Any]
    adapter: dict[str, Any] | None
    asked: Asked | None
    found: Results | None
    clips: Sequence[Clips]


def report(told: Told, now: str) -> str:
    """Everything that others wrote is escaped."""
    options = told.turn.options
    whose = f"a simulated listener ({options.simulate})" if options.simulate else options.user
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; media-src data:">
<title>One turn of the loop: {escape(told.turn.name)}</title>
<style>{STYLE}{OWN_STYLE}</style>
</head>
<body>
<h1>One turn of the loop, for {escape(whose)}</h1>
<p class="faint">{escape(told.turn.name)}, as of {escape(now)}.</p>
<section class="verdict">
{_paragraphs(_verdict(told))}
</section>
{_before_and_after(told.clips)}
{_evidence(told.found)}
<h2>What the training heard</h2>
{_paragraphs(_heard(told))}
<h2>How the training went</h2>
{_curves(told.training)}
<h2>Where it comes from</h2>
{_table(_lineage(told))}
<footer>Made by Text2Song Studio.</footer>
</body>
</html>
"""


def _verdict(told: Told) -> list[str]:
    if told.asked is None or told.found is None:
        return ["Nothing was learnt, so there is no adapter and nothing to test.", str(told.training["message"] or "")]
    return [headline(told.asked, told.found), *reasons(told.found)]


def _before_and_after(clips: Sequence[Clips]) -> str:
    if not clips:
        return ""
    shown = "".join(
        f'<div class="clips"><p>{escape(each.prompt)}</p>{_audio("before", each.base)}{_audio("after", each.adapter)}'
        "</div>"
        for each in clips
    )
    return (
        "<h2>Before and after</h2><p>Of each prompt two clips with the same seed, by the base model and with the "
        f"adapter. Nobody had rated a clip of these prompts.</p>{shown}"
    )


def _audio(name: str, content: bytes) -> str:
    data = b64encode(content).decode()
    return f'<div>{name}<audio controls preload="none" src="data:audio/mpeg;base64,{data}"></audio></div>'


def _evidence(found: Results | None) -> str:
    if found is None:
        return ""
    pictures = (
        "".join(
            f'<figure><div class="narrow">{draw(found, NARROW)}</div><div class="wide">{draw(found, WIDE)}</div>'
            "</figure>"
            for draw in (verdict_picture.evidence, verdict_picture.win_rate)
        )
        if found.timeline
        else "<p>No vote counts so far.</p>"
    )
    left_out = _paragraphs(f"Does not count: {sentence}." for sentence in exclusions(found))
    return (
        f"<h2>The blind test</h2><p>A is the base model, B the adapter.</p>{pictures}{_table(facts(found))}{left_out}"
    )


def _heard(told: Told) -> list[str]:
    metrics = told.training["metrics"]
    said = []
    if "pair_accuracy" in metrics:
        share, low, high = (metrics[f"pair_accuracy{end}"] for end in ("", "_low", "_high"))
        said.append(
            f"The preference model was asked about {metrics['pairs_judged']:.0f} pairs that it had not learnt from. It "
            f"chose as the listener did in {share:.0%} of them (95 % interval: {low:.0%} to {high:.0%}); guessing "
            "gives 50 %."
        )
    if told.adapter and (hears := told.adapter["training_config"].get("hears")):
        said.append(f"Preferred clips have or are: {hears}.")
    elif told.training["method"] == "taste":
        said.append("It has no words for the difference between what was preferred and what was not.")
    else:
        said.append(f"The method {told.training['method']} fits no preference model.")
    return said


def _curves(training: dict[str, Any]) -> str:
    drawn = loop_picture.curves(training["curve"])
    if not drawn:
        return "<p>There was no step.</p>"
    pictures = "".join(f"<figure>{each}</figure>" for each in drawn)
    return (
        f'<p>Solid: what was learnt from. Dotted: prompts that were kept back.</p><div class="curves">{pictures}</div>'
    )


def _lineage(told: Told) -> list[tuple[str, str, str]]:
    options, dataset, training = told.turn.options, told.dataset, told.training
    rows = [
        ("Pairs", f"{len(told.turn.jobs)} of {options.duration:g} s", f"{told.turn.decided} say which clip is better"),
        ("Dataset", dataset["id"], f"{dataset['sample_count']} pairs, SHA-256 {dataset['digest']}"),
        ("Training", training["id"], f"{training['method']}, {training['step']} steps"),
    ]
    if told.adapter:
        config = told.adapter["training_config"]
        rows.append(("Adapter", told.adapter["id"], f"weights {config.get('weights_sha256')}"))
        rows.append(("Base model", told.adapter["base_model"], str(told.adapter["base_revision"] or "")))
    if told.asked:
        rows.append(("Blind test", told.asked.id, told.asked.progress))
    if options.simulate:
        rows.append(("Listener", f"simulated: {options.simulate}", f"errs in {options.errors:.0%} of the answers"))
    rows.append(("Seed", str(options.seed), ""))
    return rows


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td><td>{escape(remark)}</td></tr>"
        for name, value, remark in rows
    )
    return f"<table><tbody>{body}</tbody></table>"


def _paragraphs(sentences: Iterable[str]) -> str:
    return "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences if sentence)
