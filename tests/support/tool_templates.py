"""Chat templates that know tools, in the manner of real families, for the byte-level tokenizer of tests."""

from __future__ import annotations

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from support.tiny import tiny_tokenizer

HERMES = (
    "{%- if tools %}{{- '<|system|># Tools\n<tools>' }}{%- for tool in tools %}"
    "{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}{{- '<|user|><tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- else %}{{- '<|' + message.role + '|>' + message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    '{{- \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
    "{%- if message.role == 'assistant' %}{{- '<|end|>' }}{%- endif %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
"""Calls between tags, as Hermes and Qwen write them."""
THINKS = HERMES + "{%- if enable_thinking is defined and enable_thinking is false %}{{- '(none)' }}{%- endif %}"
"""The same with an argument, as Qwen3 has it."""
MISTRAL = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}"
    "{%- if tools %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{- '[INST] ' + message.content + '[/INST]' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if message.tool_call_id | length != 9 %}{{- raise_exception('ids must have nine characters') }}{%- endif %}"
    "{{- '[TOOL_RESULTS] {\"content\": ' + (message.content | tojson) + '}[/TOOL_RESULTS]' }}"
    "{%- elif message.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for call in message.tool_calls %}"
    '{{- \'{"name": "\' + call.function.name + \'", "arguments": \' + (call.function.arguments | tojson) }}'
    "{{- ', \"id\": \"' + call.id + '\"}' }}{{- ', ' if not loop.last else ']' }}{%- endfor %}{{- '<|end|>' }}"
    "{%- else %}{{- ' ' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}"
)
"""Calls in a list after a token that has no text of its own, as Mistral and Mixtral write them."""
TAGGED = HERMES.replace('{"name": "', "<function=").replace('", "arguments": ', ">").replace("'}\n<", "'\n<")
"""Calls in no form that we know."""


def tool_tokenizer(template: str, *special: str) -> PreTrainedTokenizerFast:
    """``special``: tokens beside the usual ones, in place of unused rows of the vocabulary."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special], special_tokens=True)
    return tokenizer
