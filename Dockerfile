# What servers run: Python, the packages of runtime/ and generate.py. No compiler, no PyTorch, no root.
#
#   docker build --platform linux/arm64 -t sonic-arm .
#
# docs/guides/container.md says how to run it, and describes the arguments.
ARG BASE=python:3.13-slim-trixie
# Python of the same version, with pip, for the machine that builds. Nothing runs in BASE while it builds, so that
# an image for another architecture needs no emulator.
ARG BUILDER=${BASE}

FROM ${BASE} AS base

FROM --platform=${BUILDPLATFORM} ${BUILDER} AS builder
ARG TARGETARCH
# Extras of the runtime, with commas between them: "tvm" for compiled bundles, for example.
ARG EXTRAS=""
# The date of every file in the image, in seconds since 1970.
ARG SOURCE_DATE_EPOCH=0
WORKDIR /build
COPY LICENSE generate.py ./
COPY runtime runtime
# The secret is pip's configuration, where packages come from somewhere else than PyPI. Packages are chosen for the
# target's processor and for any C library up to BASE's. Bytecode is written here, as the image is read-only.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    set -eu; \
    case "${TARGETARCH}" in \
        amd64) machine=x86_64 ;; \
        arm64) machine=aarch64 ;; \
        *) echo "TARGETARCH is '${TARGETARCH}', but images are for amd64 or arm64" >&2; exit 1 ;; \
    esac; \
    glibc="$(getconf GNU_LIBC_VERSION)"; \
    platforms="$(seq --format="manylinux_2_%g_${machine}" "${glibc##*.}" -1 17) manylinux2014_${machine}"; \
    python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir=wheel ./runtime; \
    PIP_PLATFORM="${platforms}" python3 -m pip install --no-cache-dir --no-compile --target=image/opt/sonic \
        --only-binary=:all: --implementation=cp "$(echo wheel/*.whl)${EXTRAS:+[${EXTRAS}]}"; \
    rm -f image/opt/sonic/tvm/lib/libtvm_compiler.so; \
    find image/opt/sonic/bin -type f ! -name sonic -delete; \
    sed -i '1s|.*|#!/usr/bin/env python3|' image/opt/sonic/bin/sonic; \
    mkdir -p image/app/data image/bundles image/usr/share/doc/sonic-arm; \
    chmod 1777 image/app/data; \
    cp generate.py image/app/; \
    cp LICENSE image/usr/share/doc/sonic-arm/; \
    python3 -m pip freeze --path image/opt/sonic > image/usr/share/doc/sonic-arm/requirements.txt; \
    python3 -m compileall -q -o 0 --invalidation-mode unchecked-hash -s image image/opt image/app; \
    find image -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +

FROM base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sonic-arm" \
      org.opencontainers.image.description="Talking-head video from one portrait and one recording, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /build/image/ /
ENV PATH=/opt/sonic/bin:${PATH} \
    PYTHONPATH=/opt/sonic \
    PYTHONUNBUFFERED=1 \
    SONIC_HOME=/bundles \
    HOME=/tmp
WORKDIR /app
# A number, so that Kubernetes can see that it is not root. Any other works too.
USER 65532:65532
# Whether Python, ONNX Runtime and the packaged bundle are whole. A command's own end says whether it succeeded.
HEALTHCHECK --interval=5m --timeout=1m --retries=2 CMD ["sonic", "info", "sonic-tiny"]
CMD ["sonic", "--help"]
