"""Requests as people word them: reworded, framed, in other cases and languages, after system messages and other turns;
and strangers, families of prompts that are no stored task.

Every kind and family has a role, fixed by name before anything was measured: the fixture trains on the kinds of
`train`, methods are chosen on those of `validation`, and `held-out` ones are for reports alone. Standard library only.
"""

from premoe_local.tasks.wordings.kind import KINDS, Kind, Role, kinds
from premoe_local.tasks.wordings.strangers import STRANGERS, Stranger, strangers
from premoe_local.tasks.wordings.talk import PLAIN, Talk, Turn, applies, talks

__all__ = [
    "KINDS",
    "PLAIN",
    "STRANGERS",
    "Kind",
    "Role",
    "Stranger",
    "Talk",
    "Turn",
    "applies",
    "kinds",
    "strangers",
    "talks",
]
