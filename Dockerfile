# The page and the server in one image: on a CPU, as a user without rights, without a compiler.
#
#   docker build --build-arg TORCH_INDEX=... -t frankenlm .       the index of CPU builds that PyTorch's install page names
#   docker run --rm -p 7860:7860 frankenlm
#   docker run --rm -p 8000:8000 -v "$PWD/runs:/models:ro" frankenlm frankenlm serve /models/mine --host 0.0.0.0
#
# docs/serve.md tells more.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- what needs a compiler and an index of packages
FROM ${PYTHON_IMAGE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/frankenlm/venv/bin:$PATH
RUN python3 -m venv /opt/frankenlm/venv
WORKDIR /source
# torch first, and by name the CPU build: left to the resolver it may bring gigabytes of CUDA libraries
ARG TORCH_INDEX=
COPY constraints.txt requirements.txt ./
RUN pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} --constraint constraints.txt \
    "$(grep '^torch==' constraints.txt)+cpu" setuptools
# the packages before the code, so that a change of code fetches nothing
RUN pip install --requirement requirements.txt
COPY . .
RUN pip install --constraint constraints.txt --no-build-isolation ".[app,serve]"
ENV FRANKENLM_CACHE=/opt/frankenlm/kernels
# from outside the source: the operators are built of what was installed
RUN cd / && python -m frankenlm.kernels.build && chmod -R go+rX /opt/frankenlm \
    && python -c "from frankenlm.modeling.native_ops import native_path; assert native_path() != 'reference'"

# --- what runs
FROM ${PYTHON_IMAGE}
RUN useradd --create-home --uid 1000 frankenlm
COPY --from=build /opt/frankenlm /opt/frankenlm
WORKDIR /app
COPY app.py ./
COPY configs ./configs
ENV PATH=/opt/frankenlm/venv/bin:$PATH \
    FRANKENLM_CACHE=/opt/frankenlm/kernels \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1
USER frankenlm
EXPOSE 7860 8000
# the first process of a container is deaf to SIGTERM unless it listens to it; both of ours listen to Ctrl-C
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 \
    CMD ["python", "-m", "frankenlm.sharing.server.health"]
CMD ["python", "app.py"]
