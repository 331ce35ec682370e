"""The report on a blind A/B test: one HTML file that needs nothing else, in light and dark."""

from collections.abc import Iterable
from html import escape

from domain.verdicts import Results
from infra.cli import verdict_picture
from infra.cli.verdict_words import ANY_TIME, Asked, exclusions, facts, headline, reasons

NARROW, WIDE = 360, 760
STYLE = (
    """
:root { color-scheme: light dark; --back: #fdfcfa; --text: #23201d; --faint: #6a645d; --grid: #e4dfd8; --line: #1f5fbf;
  --mark: #b3400f; --card: #f4f0ea; }
@media (prefers-color-scheme: dark) { :root { --back: #171614; --text: #ece7e0; --faint: #a8a199; --grid: #37332f;
  --line: #7fb0ff; --mark: #ff9a66; --card: #211f1c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem; max-width: 50rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.faint, footer { color: var(--faint); font-size: .9rem; }
.verdict { background: var(--card); border-left: .3rem solid var(--line); padding: .8rem 1rem; margin: 1.2rem 0; }
.verdict p { margin: .3rem 0; } .verdict p:first-child { font-size: 1.25rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 400; overflow-wrap: normal; }
th, td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
td:nth-child(2) { font-variant-numeric: tabular-nums; }
td:last-child { color: var(--faint); font-size: .9rem; } figure { margin: 1rem 0; } .wide { display: none; }
@media (min-width: 40rem) { .wide { display: block; } .narrow { display: none; }
  td:nth-child(2) { white-space: nowrap; } }
@media (max-width: 40rem) { th, td { display: block; padding: 0; border: 0; } tr { display: block; padding: .4rem 0;
  border-bottom: 1px solid var(--grid); } th { color: var(--faint); } td:empty { display: none; } }
"""
    + verdict_picture.STYLE
)


def report(asked: Asked, found: Results, now: str) -> str:
    """Everything that others wrote is escaped."""
    left_out = exclusions(found)
    prompts = list(dict.fromkeys(pair.prompt for pair in asked.pairs))
    failed = sum(pair.status == "failed" for pair in asked.pairs)
    missing = f" {failed} pairs could not be made, and are left out." if failed else ""
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td><td>{escape(remark)}</td></tr>"
        for name, value, remark in facts(found)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(asked.name)}: verdict</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(asked.name)}</h1>
<p class="faint">Blind A/B test {escape(asked.id)}, {escape(asked.status)}. As of {escape(now)}.</p>
<section class="verdict">
{_paragraphs([headline(asked, found), *reasons(found)])}
</section>
<h2>What was asked</h2>
<p>Voters heard two samples of one prompt, made with the same seed by {escape(asked.model_id)}: one by
{escape(asked.arm("A"))}, one by {escape(asked.arm("B"))}. They did not know which was which, and said which they
preferred, or that it was a tie, or that both were bad. There are {len(asked.pairs)} pairs.{missing}</p>
<details><summary>{len(prompts)} prompts</summary>{_list(prompts)}</details>
<h2>How it went</h2>
{_pictures(found)}
<h2>Why you may look at any time</h2>
<p>{escape(ANY_TIME)}</p>
<h2>The figures</h2>
<table><tbody>{rows}</tbody></table>
<h2>What does not count</h2>
{_list(left_out) if left_out else "<p>Every vote counts.</p>"}
<p class="faint">These votes are kept. Whether a vote counts is decided without looking at the arms.</p>
<footer>Made by Text2Song Studio.</footer>
</body>
</html>
"""


def _pictures(found: Results) -> str:
    if not found.timeline:
        return "<p>No vote counts so far.</p>"
    return "".join(
        f'<figure><div class="narrow">{draw(found, NARROW)}</div><div class="wide">{draw(found, WIDE)}</div></figure>'
        for draw in (verdict_picture.evidence, verdict_picture.win_rate)
    )


def _paragraphs(sentences: Iterable[str]) -> str:
    return "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
