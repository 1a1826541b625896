"""The real litellm package, as its users call it, against a whole mesh of processes.

It comes into an environment of its own: it wants other versions of openai's package than we test with.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from premoe_local.mesh import Mesh
from rootfs import packages
from support.mesh import prompts
from support.processes import environ

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLIENT = Path(__file__).parents[1] / "support" / "litellm_client.py"
LITELLM = "litellm==1.110.2"
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
"""It asks no outside host for its list of prices."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has litellm. Skips where the index cannot be reached and uv's cache does not hold it."""
    folder = tmp_path_factory.mktemp("litellm")
    uv, interpreter = packages.find_uv(), folder / "bin/python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    done = subprocess.run(
        [uv, "pip", "install", "-q", "--python", str(interpreter), LITELLM], capture_output=True, text=True
    )
    if done.returncode and "client error" in done.stderr:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return interpreter


def test_litellm_asks_in_every_way_and_hears_the_same(mesh: Mesh, python: Path) -> None:
    prompt = prompts("digits", 1)[0]
    command = [str(python), str(CLIENT), mesh.url, mesh.model_name, prompt, "vowels"]
    done = subprocess.run(command, env=environ(QUIET), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:

        def ask(**extra: object) -> openai.types.chat.ChatCompletion:
            return client.chat.completions.create(
                model=mesh.model_name,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=6,
                temperature=0,
                extra_body=extra,
            )

        plain, named = ask(), ask(pattern="vowels")
        text = client.completions.create(model=mesh.model_name, prompt=prompt, max_tokens=4, temperature=0)
    assert plain.usage is not None
    usage = [plain.usage.prompt_tokens, plain.usage.completion_tokens]
    content = plain.choices[0].message.content
    assert said == {
        "whole": content,
        "finish": plain.choices[0].finish_reason,
        "usage": usage,
        "pieces": said["pieces"],
        "streamed usage": [usage],
        "awaited": content,
        "named": named.choices[0].message.content,
        "text": text.choices[0].text,
        "refusals": ["NotFoundError", "ContextWindowExceededError", "BadRequestError"],
    }
    assert "".join(said["pieces"]) == content
    assert len(said["pieces"]) > 1
