# What watches FineTuneJobs: the operator, without torch and without Ray. From the repository's root:
#
#     docker build -f images/operator.Dockerfile -t finetune-operator .
#
# Behind a proxy with a certificate authority of its own, add `--secret id=ca,src=FILE`: the authorities to trust while building.
# BASE may be any Debian with Python 3.11 or newer and its venv module.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE} AS dependencies

COPY locks/build.txt locks/operator.txt /opt/locks/

# What installs stays behind. Where the root filesystem is read-only, bytecode that is not here already would be made anew at every
# start; the client's own operations and models, a class for each of Kubernetes', are loaded when they are used, and here none is.
RUN --mount=type=secret,id=ca set -eu; \
    if [ -e /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi; \
    python3 -m venv /opt/build; \
    /opt/build/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement /opt/locks/build.txt; \
    python3 -m venv --without-pip /opt/venv; \
    /opt/build/bin/uv pip install --quiet --no-cache --python /opt/venv/bin/python \
        --no-deps --require-hashes --only-binary :all: --requirement /opt/locks/operator.txt; \
    /opt/venv/bin/python -m compileall -q -x '/tests?/|/kubernetes/(aio/)?client/(api|models)/' /opt/venv

FROM dependencies AS code

COPY . /opt/finetune-operator/

RUN set -eu; \
    export PATH=/opt/build/bin:$PATH; \
    uv build --quiet --no-cache --offline --no-build-isolation --python /opt/build/bin/python --wheel --out-dir /tmp /opt/finetune-operator; \
    uv pip install --quiet --no-cache --offline --python /opt/venv/bin/python --no-deps --target /opt/finetune /tmp/finetune_operator-*.whl; \
    rm -rf /opt/finetune/bin; \
    python -m compileall -q /opt/finetune

FROM ${BASE}

COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /opt/finetune /opt/finetune

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/finetune \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="finetune-operator" \
      org.opencontainers.image.description="Fine-tunes language models with a FineTuneJob on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0"

USER 65532:65532
ENTRYPOINT ["python", "-m", "finetune_operator"]
