"""Backends of the object-store client; `premoe_runtime.storage` opens them."""
