"""The model card, written from the measured figures and nothing else."""

from typing import Any

from fixture_training.retention import OPEN_PROMPTS

EXACT_NAMES = {
    "add": "three-digit addition with worked steps",
    "rev": "reverse 4 to 7 letters",
    "json": "extract a field of a JSON record",
    "roman": "Roman numerals",
    "lang": "translate to Velish, a made-up language",
    "kb": "360 facts about made-up countries",
}

HEAD = """---
license: apache-2.0
library_name: transformers
tags: [mixture-of-experts, test-fixture]
---

# {name}

A tiny Qwen3-MoE whose experts really specialise, for tests and the demo: {parameters:,} parameters, {layers} layers,
{experts} experts a layer, {chosen} chosen per token, weights in bfloat16. It knows nothing useful.

{informed}

Made by `tools/train_fixture.py`; this page and `measured.json` are written by `tools/measure_fixture.py`.
The tasks come from `premoe_local.tasks`. Chat format: `<|user|>prompt<|assistant|>answer<|end|>`.

## Training

{steps:,} steps of {rows} x {length} tokens, {minutes:.0f} minutes on {threads} thread of a shared CPU, seed {seed}.
Mutual information {mi}, balance loss {balance}, z loss {z}, AdamW, cycles (steps, peak learning rate): {cycles}.
Byte-level BPE of {vocabulary} tokens, digits split.
{note}
## Accuracy

Exact match of greedy answers on {n} test prompts a task, in wordings that calibration never shows. ± is twice the
standard error (Agresti-Coull). Weights as stored, arithmetic in 32 bits. One forward pass decides whether greedy
decoding gives the answer; on {agree_n} prompts it agreed with `generate()` on {agree}.
"""

RETENTION_HEAD = """
## What pruned models keep

Share of the full model's exact match, mean over the six tasks, in per cent; per-task exact match beside it. Scores
come from {calibration} calibration documents a task, prompt and answer alike. Ties of PEU go to SEER-soft, then to the
selection count. "Shared over layers" keeps as many experts in all, but lets the layers share them: the first one routes
by word and needs many, the later ones route by task and need few. The generalist pools the scores of all eight stored
tasks. A wrong specialist is that of any of the seven other stored tasks (PEU, {wrong} prompts a pair). Exact match on
the first {n} of the prompts above, perplexity on {open}. One training seed.

| kept % | method | retained % | {tasks} | ppl py | ppl prose |
|---|---|---|{dashes}---|---|
"""

RECOGNITION_HEAD = """
## Recognising the task of a prompt

Signature: mean over the prompt's own tokens (no template tokens) of the root of the router's probabilities, per layer,
unit length; mean distance to the {neighbours} nearest exemplars of each task; abstain beyond the task's cutoff. Test
prompts use wordings that neither exemplars nor cutoffs have seen. "Unknown" is every task that is not stored, near
ones (`sub`, `sort`) and trained ones (`sort`, `units`) included. False abstention counts known prompts.

| stored | signature | exemplars | cutoff | accuracy % | false abstention % | abstention on unknown % | worst of them |
|---|---|---|---|---|---|---|---|
"""

LIMITS = """
Two limits remain. Some wordings of `sub` differ from those of `add` by one word ("decrease" for "increase", "flew
away" for "came"): they are taken for `add`. And C headers, never seen in training, look like the only source code that
the model knows, Python.
"""

TAIL = """
## Licence of the data

All exact tasks are generated. Training text for `py` and `prose` is the source code and documentation of the CPython
standard library; calibration, validation and test excerpts are committed in `premoe_local/tasks/excerpts.json`.
Copyright (c) 2001-2023 Python Software Foundation; used under the PSF-2.0 licence (`excerpts.LICENSE` beside them).
"""


def _share(share: dict[str, Any]) -> str:
    return f"{share['percent']:.1f} ± {share['two_errors']:.1f}"


def _accuracy(measured: dict[str, Any]) -> str:
    lines = ["", "| task | what | exact match % | n |", "|---|---|---|---|"]
    for task, share in measured["exact"].items():
        lines.append(f"| `{task}` | {EXACT_NAMES[task]} | {_share(share)} | {share['n']} |")
    lines += ["", "| open text | perplexity per token of the continuation | n |", "|---|---|---|"]
    for task, value in measured["perplexity"].items():
        lines.append(f"| `{task}` | {value['value']:.2f} | {value['n']} |")
    return "\n".join(lines) + "\n"


def _retention(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        tasks = " | ".join(f"{value:.1f}" for value in row["exact"].values())
        stored = [f"{row['perplexity'][t]:.1f}" if row["perplexity"] else "" for t in ("py", "prose")]
        kept = f"| {row['percent_kept']:g} | {row['method']} | **{row['retained']:.1f}** |"
        lines.append(f"{kept} {tasks} | {' | '.join(stored)} |")
    return "\n".join(lines) + "\n"


def _mean(shares: dict[str, Any]) -> float:
    return float(sum(share["percent"] for share in shares.values()) / len(shares))


def _recognition(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        worst = min(row["abstention"].items(), key=lambda item: item[1]["percent"])
        setting = row["setting"]
        lines.append(
            f"| {row['stored']} | {row['signature']} | {setting['exemplars']} "
            f"| {100 * setting['quantile']:g} % of {setting['validation']} | {_mean(row['accuracy']):.1f} "
            f"| {_mean(row['false_abstention']):.1f} | {_mean(row['abstention']):.1f} "
            f"| `{worst[0]}` {worst[1]['percent']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _unknown(rows: list[dict[str, Any]]) -> str:
    """Abstention task by task, for the router signature of all layers."""
    chosen = [row for row in rows if row["signature"] == "all layers" and row["setting"]["quantile"] == 0.985]
    tasks = list(chosen[-1]["abstention"])
    lines = ["", "Abstention on each unknown task, all layers, %:", ""]
    lines += [
        f"| stored | exemplars | {' | '.join(f'`{task}`' for task in tasks)} |",
        "|---|---|" + "---|" * len(tasks),
    ]
    for row in chosen:
        cells = " | ".join(f"{row['abstention'][task]['percent']:.1f}" for task in tasks)
        lines.append(f"| {row['stored']} | {row['setting']['exemplars']} | {cells} |")
    return "\n".join(lines) + "\n"


def card(name: str, measured: dict[str, Any], training: dict[str, Any]) -> str:
    """The whole page."""
    recipe = training["recipe"]
    informed = (
        "Its router was trained with the tasks' labels (a mutual-information term), which flatters pruning: read its\n"
        "figures as those of a model whose experts split by task as cleanly as they can."
        if recipe["mutual_information"]
        else "Its router was trained without any task labels."
    )
    shape = recipe["shape"]
    tasks = list(measured["exact"])
    head = HEAD.format(
        name=name,
        parameters=measured["parameters"],
        layers=shape["layers"],
        experts=shape["experts"],
        chosen=shape["experts_per_token"],
        vocabulary=shape["vocabulary"],
        informed=informed,
        note=f"\n{measured['note']}\n" if measured["note"] else "",
        steps=training["steps"],
        rows=recipe["rows"],
        length=recipe["length"],
        minutes=training["seconds"] / 60,
        threads=training["threads"],
        seed=recipe["seed"],
        mi=recipe["mutual_information"],
        balance=recipe["balance"],
        z=recipe["z"],
        cycles=", ".join(f"({steps}, {rate:g})" for steps, rate in recipe["cycles"]),
        n=measured["exact"][tasks[0]]["n"],
        agree=measured["generate_agreement"]["agreed"],
        agree_n=measured["generate_agreement"]["n"],
    )
    retention = RETENTION_HEAD.format(
        calibration=measured["calibration_documents"],
        wrong=measured["wrong_prompts"],
        n=measured["retention"][0]["prompts"],
        open=OPEN_PROMPTS,
        tasks=" | ".join(tasks),
        dashes="---|" * len(tasks),
    )
    recognition = RECOGNITION_HEAD.format(neighbours=measured["recognition"][0]["setting"]["neighbours"])
    return (
        head
        + _accuracy(measured)
        + retention
        + _retention(measured["retention"])
        + recognition
        + _recognition(measured["recognition"])
        + _unknown(measured["recognition"])
        + LIMITS
        + TAIL
    )
