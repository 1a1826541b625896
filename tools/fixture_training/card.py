"""The model card, written from the measured figures and nothing else."""

from typing import Any

from premoe_local.tasks import OPEN, STORED

from fixture_training.retention import OPEN_PROMPTS
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS

Row = dict[str, Any]
SHOWN = {("impact", "shared"), ("peu", "uniform"), ("random", "uniform")}
"""Rules whose specialists are shown task by task."""

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

{start}{steps:,} steps of {rows} x {length} tokens, {minutes:.0f} minutes on {threads} thread of a shared CPU,
seed {seed}.
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

Share of the full model's exact match, mean over the six tasks, in per cent; the mean of {seeds} calibration seeds, in
brackets each of them. Rankings come from {calibration} calibration documents a task, with answers, by the product's own
profiles (`premoe profile`, `premoe eval`): *impact* (what the answers' margin would lose without the expert), *peu*
(ties by SEER-soft), *seer* (SEER-soft: sum of routing weights), *norm* (sum of weight times norm of the output),
*counts* (frequency). All columns keep equally many experts in all. *Own split*: the best of all layers together, at
least {chosen} a layer. *As served*: the same within the slots of one worker for all eight stored tasks, whose layers
share slots once and for all, {spare} a layer of them spare. *Uniform*: equal numbers a layer. Exact match on the first
{n} of the prompts above. One training seed.

| kept % | ranked by | own split | as served | uniform |
|---|---|---|---|---|
"""

DETAIL_HEAD = """
Exact match by task, and perplexity of open text (on {open} excerpts). The generalist weighs the eight stored tasks
alike (impact: as shares of each task's total). A wrong specialist is that of any of the seven other stored tasks
({wrong} prompts a pair), as served.

| kept % | experts | ranked by | retained % | {tasks} | ppl py | ppl prose |
|---|---|---|---|{dashes}---|---|
| 100 | full model | | **100.0** | {full} | {ppl} |
"""

SPLIT_HEAD = """
Experts a layer by impact, first calibration seed, in each task's own split; the slots of a worker that serves all of
them, spare ones included; and the share of a task's experts that another task keeps too (least, mean and most over the
28 pairs of tasks), which decides how much a swap moves.

| kept % | {tasks} | slots | overlap |
|---|{dashes}---|---|
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

WORDINGS_HEAD = """
## Other wordings

The same requests reworded, framed, in other cases and languages, after system messages and other turns
(`premoe_local.tasks.wordings`): {talks} talks a task and kind, payloads that training never had. Recognition knows the
tasks' own wordings alone ({exemplars} exemplars a task, all layers, cutoff at {quantile:g} % of {validation}); it reads
the last turn, which has attended to what is before it.
*Role*: whether training, the choice of a method, or neither may see the kind{seen}.
Exact match is of the six exact tasks, recognition of all eight that have such a wording.

| kind | role | exact match % | recognised % | abstained % | another task % |
|---|---|---|---|---|---|
"""

STRANGERS_HEAD = """
Abstention on families of prompts that are no stored task:

| family | role | beside | abstained % |
|---|---|---|---|
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


def _means(rows: list[Row]) -> str:
    columns = (("own split", "shared"), ("as served", "shared"), ("own split", "uniform"))
    cells: dict[tuple[float, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        if row["how"] in ("own split", "as served"):
            each = ", ".join(f"{seed:.1f}" for seed in row["seeds"])
            line = cells.setdefault((row["percent_kept"], row["metric"]), {})
            line[row["how"], row["allocation"]] = f"**{row['retained']:.1f}** ({each})"
    return "".join(
        f"| {kept:g} | {metric} | {' | '.join(line.get(column, '') for column in columns)} |\n"
        for (kept, metric), line in cells.items()
    )


def _details(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        known = row["how"] in ("generalist", "wrong specialist") or (row["metric"], row["allocation"]) in SHOWN
        if not known:
            continue
        exact = " | ".join(f"{value:.1f}" for value in row["exact"].values())
        ppl = " | ".join(f"{row['perplexity'][t]:.1f}" if t in row["perplexity"] else "" for t in OPEN)
        how = row["how"]
        if row["metric"] == "random":
            how = "random experts"
        elif how in ("own split", "as served"):
            how = f"right specialist, {how if row['allocation'] == 'shared' else 'uniform'}"
        ranked = f"{row['metric']}, {row['allocation']}"
        lines.append(f"| {row['percent_kept']:g} | {how} | {ranked} | **{row['retained']:.1f}** | {exact} | {ppl} |\n")
    return "".join(lines)


def _splits(measured: dict[str, Any], experts: int) -> str:
    lines = []
    for budget, split in measured["splits"].items():
        shared = " | ".join("/".join(map(str, counts)) for counts in split.values())
        overlap = measured["overlap"][budget]
        kept = 100 * int(budget.partition("/")[2]) / experts
        lines.append(f"| {kept:g} | {shared} | {overlap['least']}, {overlap['mean']}, {overlap['most']} |\n")
    return "".join(lines)


def _pruned(measured: dict[str, Any], shape: dict[str, Any]) -> str:
    """The section on pruned models."""
    rows: list[Row] = measured["retention"]
    full = measured["full_on_pruned_prompts"]
    means = RETENTION_HEAD.format(
        seeds=measured["calibration_seeds"],
        calibration=measured["calibration_documents"],
        chosen=shape["experts_per_token"],
        spare=DEFAULT_SPARE_SLOTS,
        n=measured["pruned_prompts"],
    )
    details = DETAIL_HEAD.format(
        open=OPEN_PROMPTS,
        wrong=measured["wrong_prompts"],
        tasks=" | ".join(full),
        dashes="---|" * len(full),
        full=" | ".join(f"{value:.1f}" for value in full.values()),
        ppl=" | ".join(f"{value:.1f}" for value in measured["full_perplexity_on_pruned_prompts"].values()),
    )
    split = SPLIT_HEAD.format(tasks=" | ".join(STORED), dashes="---|" * len(STORED))
    return means + _means(rows) + details + _details(rows) + split + _splits(measured, shape["experts"])


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


def _wordings(figures: dict[str, Any], varied: bool) -> str:
    """The section on other wordings; the mean of each role comes first."""
    setting = figures["setting"]
    head = WORDINGS_HEAD.format(
        talks=figures["talks"],
        exemplars=setting["exemplars"],
        quantile=100 * setting["quantile"],
        validation=setting["validation"],
        seen="" if varied else " (this model trained on none of them)",
    )
    keys = ("exact", "recognised", "abstained", "wrong")
    lines = []
    for role in ("train", "validation", "held-out"):
        rows = [row for row in figures["kinds"] if row["role"] == role]
        means = " | ".join(f"**{sum(row[key] for row in rows) / len(rows):.1f}**" for key in keys)
        lines.append(f"| mean of {len(rows)} | {role} | {means} |\n")
    for row in figures["kinds"]:
        lines.append(f"| `{row['kind']}` | {row['role']} | {' | '.join(f'{row[key]:.1f}' for key in keys)} |\n")
    strangers = "".join(
        f"| `{row['family']}` | {row['role']} | {row['near'] and '`' + row['near'] + '`'} | {row['abstained']:.1f} |\n"
        for row in figures["strangers"]
    )
    return head + "".join(lines) + STRANGERS_HEAD + strangers


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
        start=f"On from the exported weights {recipe['start']}: " if recipe.get("start") else "",
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
    recognition = RECOGNITION_HEAD.format(neighbours=measured["recognition"][0]["setting"]["neighbours"])
    return (
        head
        + _accuracy(measured)
        + _pruned(measured, shape)
        + recognition
        + _recognition(measured["recognition"])
        + _unknown(measured["recognition"])
        + LIMITS
        + _wordings(measured["wordings"], varied=recipe.get("varied", False))
        + TAIL
    )
