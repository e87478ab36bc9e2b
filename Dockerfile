# Two images from one source. Docker (with or without BuildKit), Buildah and Podman build it.
#
#   docker build --target api -t churn .                                          the API with ONNX Runtime in process
#   docker build --target api -t churn --build-arg BUNDLE=work/bundle .           the same, with this workspace's champion in it
#   docker build --target api -t churn --build-arg EXTRA=online .                 the same with Feast, for customer_id and events
#   docker build --target api -t churn-jobs --build-arg EXTRA=pipeline .         every command of `churn`, for scheduled jobs
#   docker build --target triton -t churn-triton .                                the API beside Triton
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/work/bundle:/srv/churn/work/bundle:ro" --read-only churn serve --insecure
#
# `--insecure`: the API answers whoever asks. With the environment variable CHURN_SERVE_API_KEYS it asks for a key, and the option is not needed.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.10-py3
# Where /opt/churn is made: the same Python, with venv and pip
ARG BUILD_IMAGE=${BASE_IMAGE}
ARG TRITON_BUILD_IMAGE=${TRITON_IMAGE}

FROM ${BUILD_IMAGE} AS needs
ARG EXTRA=serve
WORKDIR /src
COPY docker/install docker/*.lock docker/
RUN docker/install needs "$EXTRA"

FROM needs AS build
COPY pyproject.toml settings.ini README.md LICENSE ./
COPY churn_nb churn_nb
RUN docker/install package

FROM ${TRITON_BUILD_IMAGE} AS triton-needs
ARG EXTRA=triton
WORKDIR /src
COPY docker/install docker/*.lock docker/
RUN docker/install needs "$EXTRA"

FROM triton-needs AS triton-build
COPY pyproject.toml settings.ini README.md LICENSE ./
COPY churn_nb churn_nb
RUN docker/install package

# The layers of a model and of a commit come last: while the lock is the same, neither builds nor pushes what is below them.
FROM ${BASE_IMAGE} AS api
COPY --from=needs /opt/churn /opt/churn
ENV PATH=/opt/churn/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true DVC_NO_ANALYTICS=1 DO_NOT_TRACK=1 \
    CHURN_PATHS_WORKSPACE=/srv/churn/work CHURN_SERVE_HOST=0.0.0.0 CHURN_SERVE_PORT=8000
WORKDIR /srv/churn
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["/opt/churn/bin/python", "-Ic", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"CHURN_SERVE_PORT\"]}/readyz', timeout=4)"]
COPY --from=build /opt/package /opt/churn
ARG BUNDLE=docker/bundle
ARG STORE=docker/store
COPY ${BUNDLE} /srv/churn/work/bundle
COPY --chown=10001:10001 ${STORE} /srv/churn/work/feast
ARG GIT_SHA=unknown
ARG MODEL_VERSION=none
LABEL org.opencontainers.image.title="churn_nb: the API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${GIT_SHA}" \
      org.opencontainers.image.version="${MODEL_VERSION}" \
      churn_nb.sbom="/opt/churn/sbom.cdx.json"
ENTRYPOINT ["churn"]
CMD ["serve"]

FROM ${TRITON_IMAGE} AS triton
USER 0
# s6: a small supervisor that can be process 1; a base that has it is left as it is
# hadolint ignore=DL3008
RUN command -v s6-svscan || { apt-get update && apt-get install -y --no-install-recommends s6 && rm -rf /var/lib/apt/lists/*; }
COPY --from=triton-needs /opt/churn /opt/churn
ENV PATH=/opt/churn/bin:/opt/tritonserver/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true DVC_NO_ANALYTICS=1 DO_NOT_TRACK=1 \
    CHURN_PATHS_WORKSPACE=/srv/churn/work CHURN_SERVE_HOST=0.0.0.0 CHURN_SERVE_PORT=8000
WORKDIR /srv/churn
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["/opt/churn/bin/python", "-Ic", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"CHURN_SERVE_PORT\"]}/readyz', timeout=4)"]
COPY docker/start /etc/churn/start
COPY docker/s6 /etc/churn/s6
COPY --from=triton-build /opt/package /opt/churn
ARG BUNDLE=docker/bundle
ARG STORE=docker/store
COPY ${BUNDLE} /srv/churn/work/bundle
COPY --chown=10001:10001 ${STORE} /srv/churn/work/feast
ARG GIT_SHA=unknown
ARG MODEL_VERSION=none
LABEL org.opencontainers.image.title="churn_nb: the API beside Triton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${GIT_SHA}" \
      org.opencontainers.image.version="${MODEL_VERSION}" \
      churn_nb.sbom="/opt/churn/sbom.cdx.json"
ENTRYPOINT ["/etc/churn/start"]
CMD ["serve"]
