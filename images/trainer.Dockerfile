# What trains: Ray, torch and the project's own code. From the repository's root:
#
#     docker build -f images/trainer.Dockerfile -t finetune-trainer .
#
# Behind a proxy with a certificate authority of its own, add `--secret id=ca,src=FILE`: the authorities to trust while building.
# BASE may be any Debian with Python 3.11 or newer, its venv module and its headers. For machines without a GPU:
#
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
#
# takes torch, at the version of the lock, from there; its hash is then that index's word, and CUDA's libraries stay out.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE}

# KubeRay's probes call wget, and torch.compile the compiler. Where the root filesystem is read-only, bytecode that is not here already
# would be made anew at every start. A login shell takes PATH from /etc/profile and forgets the image's; in pods that shell starts Ray,
# and what it writes to a volume belongs to its group too, so that another user of that group goes on with it. A user who is not in
# /etc/passwd, as clusters assign them, is in group 0.
RUN set -eu; \
    if ! command -v wget >/dev/null || ! command -v g++ >/dev/null; then \
        apt-get update; \
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates g++ wget; \
        rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log; \
    fi; \
    python3 -m compileall -q -x '/tests?/' "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"; \
    useradd --uid 1000 --user-group --create-home --home-dir /home/ray --shell /bin/bash ray; \
    chgrp -R 0 /home/ray; \
    chmod -R g=u /home/ray; \
    printf '%s\n' 'export PATH=/opt/venv/bin:$PATH' 'umask 0002' >/etc/profile.d/finetune.sh

COPY locks/build.txt locks/image.txt /opt/locks/

ARG TORCH_INDEX=

RUN --mount=type=secret,id=ca set -eu; \
    if [ -e /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi; \
    python3 -m venv /opt/venv; \
    /opt/venv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: --requirement /opt/locks/build.txt; \
    lock=/opt/locks/image.txt; \
    if [ -n "$TORCH_INDEX" ]; then \
        awk '/^[a-z0-9]/ { left_out = /^(torch|triton|nvidia-|cuda-)/ } !left_out' $lock >/tmp/image.txt; \
        /opt/venv/bin/uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python --only-binary :all: \
            --no-deps --index-url "$TORCH_INDEX" "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' $lock)"; \
        lock=/tmp/image.txt; \
    fi; \
    /opt/venv/bin/uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
        --no-deps --require-hashes --only-binary :all: --requirement $lock

ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/ray \
    USER=ray \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
LABEL org.opencontainers.image.title="finetune-trainer" \
      org.opencontainers.image.description="Trains a FineTuneJob in a Ray cluster" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /home/ray

# What a new installation is tried with: a model that knows nothing, and is there without a hub.
COPY examples/make_tiny_model.py /opt/
RUN python /opt/make_tiny_model.py /opt/tiny-model && chmod -R a+rX /opt/tiny-model

COPY . /opt/finetune-operator/

RUN set -eu; \
    uv pip install --quiet --no-cache --offline --python /opt/venv/bin/python --no-deps --no-build-isolation /opt/finetune-operator; \
    cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
    python -m compileall -q finetune_api finetune_trainer finetune_cli

USER 1000:1000
