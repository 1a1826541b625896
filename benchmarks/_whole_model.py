"""A whole model by Run:ai's model streamer, in a process of its own: prints {"bytes", "seconds"} as one JSON line.

python benchmarks/_whole_model.py FILE…
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    from runai_model_streamer import SafetensorsStreamer

    started, num_bytes = time.perf_counter(), 0
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(sys.argv[1:])
        for _, tensor in streamer.get_tensors():
            num_bytes += tensor.numel() * tensor.element_size()
    print(json.dumps({"bytes": num_bytes, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
