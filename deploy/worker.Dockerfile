# The worker: CUDA torch, the engine, and nothing that listens. Build from the repository's root:
#   docker build -f deploy/worker.Dockerfile -t taciturn/worker:0.1.0 .
# On a cluster without GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
FROM python:3.11.13-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
# One layer per rate of change: torch (gigabytes, seldom), requirements, the package (often).
RUN python -m venv /opt/taciturn \
    && /opt/taciturn/bin/pip install -c constraints.txt --extra-index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY src/taciturn/_version.py src/taciturn/_version.py
RUN mkdir -p src/taciturn && touch src/taciturn/__init__.py \
    && /opt/taciturn/bin/pip install -c constraints.txt ".[engine]" \
    && /opt/taciturn/bin/pip uninstall --yes taciturn
COPY src src
RUN /opt/taciturn/bin/pip install --no-deps .
RUN python -m venv /opt/sbom \
    && /opt/sbom/bin/pip install cyclonedx-bom==7.5.0 \
    && /opt/sbom/bin/cyclonedx-py environment /opt/taciturn --output-file /build/sbom.json

FROM python:3.11.13-slim-bookworm
# Triton builds the kernels for noise and clipping on the GPU that it meets, and its launchers in C.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "gcc=4:12.2.*" "libc6-dev=2.36-*" \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 taciturn \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /workspace taciturn \
    && install --directory --owner=10001 --group=10001 --mode=0700 /workspace
COPY --from=build /opt/taciturn /opt/taciturn
COPY --from=build /build/sbom.json /usr/share/taciturn/sbom.json
# Caches go to the workspace: the root file system is read-only.
ENV PATH=/opt/taciturn/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HF_HOME=/workspace/.cache/huggingface TORCHINDUCTOR_CACHE_DIR=/workspace/.cache/inductor \
    TRITON_CACHE_DIR=/workspace/.cache/triton \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /workspace
ENTRYPOINT ["python", "-m", "taciturn.worker"]
