"""Tasks that the fixture never trains on and so must not be taken for one it knows: `sql` and `log`."""

from premoe_local.tasks.draw import Draw
from premoe_local.tasks.example import Generator, Payload

_TABLES = ["orders", "users", "items", "logs", "stock", "visits"]
_COLUMNS = ["price", "qty", "total", "date", "status", "owner", "region"]
_LEVELS = ["ERROR", "WARN", "INFO", "DEBUG"]
_SERVICES = ["worker", "gateway", "storage", "scheduler", "mailer"]


def _sql(draw: Draw) -> Payload:
    first, second = draw.sample(_COLUMNS, 2)
    fields = {
        "t": draw.pick(_TABLES),
        "c": first,
        "d": second,
        "n": str(draw.between(1, 500)),
        "m": str(draw.between(1, 50)),
    }
    return Payload(" ".join(fields.values()), fields, "")


def _log(draw: Draw) -> Payload:
    fields = {
        "t": f"{draw.between(10, 23)}:{draw.between(10, 59)}:{draw.between(10, 59)}",
        "l": draw.pick(_LEVELS),
        "s": f"{draw.pick(_SERVICES)}-{draw.between(1, 64)}",
        "p": str(draw.between(100, 9999)),
        "h": f"{draw.below(2**32):08x}",
        "c": draw.pick(("200", "404", "500", "503")),
    }
    return Payload(" ".join(fields.values()), fields, "")


SQL = Generator(
    _sql,
    seen=(
        "SELECT {c}, COUNT(*) FROM {t} WHERE {d} >= {n} GROUP BY {c} ORDER BY {d} DESC LIMIT {m};",
        "UPDATE {t} SET {c} = {n} WHERE {d} = {m};",
        "INSERT INTO {t} ({c}, {d}) VALUES ({n}, {m});",
        "DELETE FROM {t} WHERE {c} < {n} AND {d} IS NOT NULL LIMIT {m};",
        "SELECT DISTINCT {c} FROM {t} WHERE {d} BETWEEN {m} AND {n};",
    ),
    unseen=(
        "CREATE INDEX idx_{t}_{n} ON {t} ({c}, {d}) WITH (fillfactor = {m});",
        "SELECT AVG({c}) FROM {t} JOIN users ON users.id = {t}.{d} LIMIT {m} OFFSET {n};",
        "ALTER TABLE {t} ADD COLUMN {c}_{m} INTEGER DEFAULT {n} AFTER {d};",
    ),
    framed=False,
)

LOG = Generator(
    _log,
    seen=(
        "[{t}] {l} {s} pid={p} addr=0x{h} retry=3 status={c}",
        "{t} {s}[{p}]: {l}: connection reset, trace {h}",
        "{l} {t} {s} GET /v1/{h} {c} {p}ms",
        "level={l} ts={t} svc={s} msg=timeout id={h}",
        "{s} | {t} | {l} | code {c} after {p} ms",
    ),
    unseen=(
        "<{p}> {t} {s} {l} segfault at {h} error {c}",
        "{t}.{p} {l} [{s}] request {h} returned {c}",
        "{s}: {l}: out of memory: killed process {p} at {t}",
    ),
    framed=False,
)
