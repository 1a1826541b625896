"""Fields of OpenAI and of vLLM that are passed over, or refused by name unless they ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "request_id", "session_id", "stream_interval",
}  # fmt: skip
"""What only tags or bills a request, or says into how many pieces a stream is cut."""
_OPENAI: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
_VLLM: Mapping[str, tuple[object, ...]] = {
    # How tokens are chosen.
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "watermarking": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "repetition_detection": (),
    "structured_outputs": (),
    "thinking_token_budget": (),
    # What the prompt is.
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (),
    "chat_template": (),
    "documents": ([],),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    # What the answer shows.
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "logprob_token_ids": (),
    "prompt_logprobs": (),
    "return_mm_kwargs": (False,),
    "mm_payload": ("tensors", "none"),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "routed_experts_prompt_start": (0,),
    # What vLLM's own parts are told.
    "ec_transfer_params": (),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
}
"""Of its chats and completions in 0.32."""
ONLY: Mapping[str, tuple[object, ...]] = {**_OPENAI, **_VLLM}
"""Parameters that change the answer and are not supported (by every kind of request that does not name them in its
body), with the values that ask for nothing."""
