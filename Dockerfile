# viewrank on a GPU: docker build -t viewrank . ; docker run --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD":/work viewrank train my/photos
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive PATH=/opt/viewrank/bin:$PATH HOME=/work USER=viewrank
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Versions are those of the base image's release. Triton compiles a launcher with gcc.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3.12 python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 viewrank \
    && install --directory --owner viewrank /work

COPY . /src
RUN python3.12 -m venv /opt/viewrank \
    && /opt/viewrank/bin/pip install --no-cache-dir --constraint /src/constraints.txt '/src[cuda13,report,track,s3]'

USER 1001
WORKDIR /work
ENTRYPOINT ["viewrank"]
CMD ["--help"]
