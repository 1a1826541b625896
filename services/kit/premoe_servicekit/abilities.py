"""What a worker may be asked for beyond plain answers, by name.

Workers say which they know; a field that an older one does not know it would pass over in silence.
"""

from __future__ import annotations

from typing import Literal, get_args

Ability = Literal[
    "chat_template_kwargs",
    "deny",
    "end_tokens",
    "logprobs",
    "min_p",
    "penalties",
    "priority",
    "response_format",
    "tools",
]
ABILITIES: tuple[Ability, ...] = get_args(Ability)
