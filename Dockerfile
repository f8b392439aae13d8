# The service without torch, training code or compilers. Two targets, the last one is the default:
#
#   docker build --target cpu -t iafvae:cpu .     plain onnxruntime
#   docker build -t iafvae:cuda .                 onnxruntime-gpu with CUDA 13 and cuDNN 9, x86-64
#
# deploy/README.md says how to run them and what was measured.

# Any image with Python 3.11 or later, its venv and CA certificates. The same one is built and run
# on: the environment made at build time points to its interpreter.
ARG PYTHON_IMAGE=python:3.13-slim-bookworm


# --- What builds: pip and setuptools, of which nothing reaches an image ---------------------------

FROM ${PYTHON_IMAGE} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY deploy/locks/tools.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --quiet --require-hashes --requirement tools.txt \
    && python3 -m venv --without-pip /opt/iafvae

# The projects of the two targets.
FROM tools AS project
COPY pyproject.toml deploy/service_project.py ./
RUN python3 service_project.py pyproject.toml cpu cpu \
    && python3 service_project.py pyproject.toml cuda cuda


# --- The service: a wheel for each target, installed below /staged --------------------------------
# --root keeps it apart from its dependencies, so that a change of the code ships a small layer.

FROM tools AS service
COPY LICENSE ./
COPY service service
COPY --from=project /build/cpu/pyproject.toml cpu/
COPY --from=project /build/cuda/pyproject.toml cuda/
RUN for target in cpu cuda; do \
        cp "$target/pyproject.toml" . \
        && /opt/tools/bin/pip wheel --quiet --no-deps --no-build-isolation \
            --wheel-dir "/wheels/$target" . \
        && /opt/tools/bin/pip --python /opt/iafvae/bin/python install --quiet --no-deps \
            --no-compile --no-warn-script-location --root "/staged/$target" \
            "/wheels/$target"/*.whl \
        && python3 -m compileall -q --invalidation-mode unchecked-hash "/staged/$target" \
        || exit 1; \
    done


# --- What runs ------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="iafvae" \
      org.opencontainers.image.description="Density models of images over HTTP: sample, score, encode" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.1.0"
# A fixed number, so that `runAsNonRoot` can be checked; it owns nothing in the image.
RUN groupadd --gid 10001 iafvae \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin iafvae
# ONNX Runtime's builds report their use to Microsoft unless told not to before they start.
ENV PATH=/opt/iafvae/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    IAFVAE_HOST=0.0.0.0 \
    IAFVAE_PORT=8000
COPY --chmod=0644 deploy/healthcheck.py /opt/iafvae/healthcheck.py
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["/opt/iafvae/bin/python", "-IS", "/opt/iafvae/healthcheck.py"]
# The exec form: the server is process 1 and gets SIGTERM itself, on which it drains and exits.
ENTRYPOINT ["/opt/iafvae/bin/iafvae"]
CMD ["serve"]


# --- Target cpu: plain onnxruntime ----------------------------------------------------------------
# Dependencies are a layer of their own, before any source, each file at its hash (`make locks`). Bytecode is compiled here, never checked
# again (a copy may change modification times), and never written at run time: the root file system
# may be read-only.

FROM tools AS dependencies-cpu
COPY deploy/locks/cpu.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip --python /opt/iafvae/bin/python install --quiet --no-compile \
        --only-binary :all: --require-hashes --requirement cpu.txt \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/iafvae/lib

FROM runtime AS cpu
ENV IAFVAE_PROVIDER=cpu
COPY --from=dependencies-cpu /opt/iafvae /opt/iafvae
COPY --from=service /staged/cpu /
# Fails the build if something is missing, and compiles what is used of the standard library, whose
# bytecode the slim images leave out.
RUN env --unset=PYTHONDONTWRITEBYTECODE \
    python -c "import service.server.run, service.cli.local, service.cli.output"
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="${REVISION}"
USER 10001:10001


# --- Target cuda: last, hence the default ---------------------------------------------------------

FROM tools AS dependencies-cuda
COPY deploy/locks/cuda.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tools/bin/pip --python /opt/iafvae/bin/python install --quiet --no-compile \
        --only-binary :all: --require-hashes --requirement cuda.txt \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/iafvae/lib

# The NVIDIA container runtime reads these variables and brings the driver; CUDA's libraries are
# wheels, which the engine finds by itself.
FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"
COPY --from=dependencies-cuda /opt/iafvae /opt/iafvae
COPY --from=service /staged/cuda /
# `docker run --rm --gpus all --entrypoint python iafvae:cuda /opt/iafvae/gpu_check.py`
COPY --chmod=0644 deploy/gpu_check.py /opt/iafvae/gpu_check.py
RUN env --unset=PYTHONDONTWRITEBYTECODE \
    python -c "import service.server.run, service.cli.local, service.cli.output"
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
