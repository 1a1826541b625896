"""An answer that is the best of several: run the search, then write its choices, best first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from premoe_gateway.domain import Ask, Finished, Recognition
from premoe_gateway.openai import answers
from premoe_gateway.openai.requests import Order
from premoe_gateway.openai.search import search_record
from premoe_gateway.search.executor import Found, Outcome, Searcher

Places = Callable[[int], int]
"""Takes places for so many answers, and says how many may run at a time."""


async def searched(
    searcher: Searcher,
    head: answers.Head,
    order: Order,
    recognise: Callable[[Ask], Awaitable[Recognition]],
    places: Places,
) -> tuple[answers.Json, list[answers.Choice], Recognition]:
    """The document, its choices, and what was recognised. Raises what ``Searcher`` and the gateway do."""
    assert order.search is not None
    searcher.check(order.n)
    recognition = await recognise(order.ask)
    outcome = await searcher.run(order.copy, order.n, recognition.choice, order.search, min(order.n, places(order.n)))
    choices = [_choice(found, recognition) for found in outcome.shown]
    return _document(head, outcome, choices), choices, recognition


def _choice(found: Found, recognition: Recognition) -> answers.Choice:
    started = found.started
    assert started is not None
    cut = Finished("length", started.prompt_tokens, found.tokens, 0.0, 0.0, 0.0)
    return answers.Choice(0, found.text, started, found.finished or cut, recognition, whole=found.finished is not None)


def _document(head: answers.Head, outcome: Outcome, choices: list[answers.Choice]) -> answers.Json:
    """As ``answers.whole`` makes it, with all that was generated in ``usage``, and the record of the search."""
    search = search_record(outcome, outcome.shown)
    document = answers.whole(head, choices)
    generated = sum(found.tokens for found in outcome.answers)
    # Of steps the later ones read what went before, too.
    prompt = min(found.started.prompt_tokens for found in outcome.answers if found.started is not None)
    usage = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
    return {**document, "usage": usage, "premoe": {**choices[0].record, "search": search}}


def told(
    head: answers.Head, order: Order, document: answers.Json, choices: list[answers.Choice]
) -> Iterator[answers.Json]:
    """The chunks of a stream that says a document: nothing is known of the best answer before."""
    for index, choice in enumerate(choices):
        if (opening := answers.opening(head, index)) is not None:
            yield opening
        yield answers.piece(head, index, choice.text, None)
        closing = answers.closing(head, index, choice)
        yield {**closing, "premoe": document["premoe"]} if index == len(choices) - 1 else closing
    if order.include_usage:
        yield {**head.base(chunk=True), "choices": [], "usage": document["usage"]}
