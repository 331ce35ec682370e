import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import prompts
from domain.errors import InvalidError, KeyReusedError
from domain.events import Recorded, Undecodable, UnknownEvent
from domain.events.jobs import JobDeleted
from domain.events.prompts import MAX_TEXT, PromptAttributes, PromptCreated
from domain.ports import Position
from domain.prompts import AttributesRequest, Prompt, PromptRequest

CREATED = PromptCreated(prompt_id="p", text="rain", attributes=PromptAttributes(mood="calm"))


def at(offset: int, event: PromptCreated | JobDeleted | UnknownEvent | Undecodable) -> Recorded:
    time = f"2026-01-01T00:00:{offset % 60:02}.000000Z"
    return Recorded(position=Position("prompts", 0, offset), key="p", id=f"e{offset}", time=time, event=event)


def stored() -> Prompt:
    prompt = prompts.evolve(None, at(0, CREATED))
    assert prompt is not None
    return prompt


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "The prompt is empty; say what you want to hear."),
        (" \n\t", "The prompt is empty; say what you want to hear."),
        *(
            (blank, "The prompt is empty; say what you want to hear.")
            for blank in "\u200b\u2060\ufeff\u00ad\u3164\u2800\x00\x07"
        ),
        ("piano\x00drums", "Character 6 of the prompt is U+0000, which is no text; take it out."),
        ("x" * 4001, "The prompt has 4,001 characters; the limit is 4,000."),
    ],
)
def test_empty_and_over_long_prompts_are_refused(text: str, detail: str) -> None:
    with pytest.raises(InvalidError) as caught:
        prompts.create(None, "p", PromptRequest(text=text))
    assert [(fault.pointer, fault.detail) for fault in caught.value.faults] == [("/text", detail)]


def test_a_prompt_of_the_longest_length_is_taken() -> None:
    (event,) = prompts.create(None, "p", PromptRequest(text="x" * MAX_TEXT))
    assert event.text == "x" * MAX_TEXT


def test_attributes_out_of_bounds_are_refused() -> None:
    attributes = AttributesRequest(duration=-1, style="x" * 201, instrumentation=("x",) * 50 + ("x" * 201,))
    with pytest.raises(InvalidError) as caught:
        prompts.create(None, "p", PromptRequest(text="rain", attributes=attributes, user_id="x" * 201))
    assert [fault.pointer for fault in caught.value.faults] == [
        "/attributes/duration",
        "/attributes/instrumentation",
        "/attributes/style",
        "/attributes/instrumentation/50",
        "/user_id",
    ]


def test_repeating_the_command_appends_nothing() -> None:
    request = PromptRequest(text="rain", attributes=AttributesRequest(mood="calm"))
    assert prompts.create(None, "p", request) == [CREATED]
    assert prompts.create(stored(), "p", request) == []


def test_a_key_sent_with_another_prompt_is_refused() -> None:
    with pytest.raises(KeyReusedError):
        prompts.create(stored(), "p", PromptRequest(text="snow"))


anything = st.sampled_from([CREATED, JobDeleted(job_id="p"), UnknownEvent("PromptLoved"), Undecodable("not JSON")])


@given(st.lists(anything, max_size=10))
def test_any_events_fold_without_raising_and_the_first_creation_holds(events: list[PromptCreated]) -> None:
    prompt: Prompt | None = None
    for offset, event in enumerate(events):
        prompt = prompts.evolve(prompt, at(offset, event))
        assert prompts.evolve(prompt, at(offset, event)) == prompt
    if CREATED in events:
        assert prompt is not None
        assert prompt.text == "rain"
        assert prompt.position == len(events) - 1
        assert prompt.created_at == at(events.index(CREATED), CREATED).time
    else:
        assert prompt is None
