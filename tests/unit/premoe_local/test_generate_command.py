"""`premoe generate`: what it asks a worker for."""

from __future__ import annotations

import asyncio
import json

from click.testing import CliRunner
from premoe_local.cli import command
from support.fake_worker import FakeWorker, serving


async def test_priority_and_template_arguments_are_sent() -> None:
    worker = FakeWorker()
    async with serving(worker) as server:
        said = [
            "--template-argument",
            "enable_thinking=false",
            "--template-argument",
            'effort="a=b"',
            "--priority",
            "7",
        ]
        asked = ["generate", "hi", "--address", server.address, *said]
        result = await asyncio.to_thread(CliRunner().invoke, command, asked)
    assert (result.exit_code, result.stdout) == (0, "one two three\n"), result.output
    (request,) = worker.requests
    assert request.priority == 7
    assert json.loads(request.prompt.chat.template_arguments) == {"enable_thinking": False, "effort": "a=b"}


async def test_nothing_is_sent_that_was_not_said() -> None:
    worker = FakeWorker()
    async with serving(worker) as server:
        await asyncio.to_thread(CliRunner().invoke, command, ["generate", "hi", "--address", server.address])
    (request,) = worker.requests
    assert (request.priority, request.prompt.chat.template_arguments) == (0, "")
