# The image that lands on devices: compiled modules, what they need, and the Docker client. See docs/operations.md.
#
#   make image                      for this machine
#   make image-arm64                for Jetson and Rockchip boards
#
# BASE_IMAGE          python:3.11-slim, or a mirror's name for it
# DOCKER_CLI_PACKAGE  Debian's package with the client: docker-cli from Debian 13 on, docker.io on a Debian 12 base
# REQUIRE_KEY_PROFILE 1 refuses to fall back to the development profile: for releases
# KEY_PROFILE_STAMP   changes with the profile: a secret alone is no part of the build cache's key
# BUILDER_IMAGE       the base of the build's own stage; the same Python as in BASE_IMAGE
ARG BASE_IMAGE=python:3.11-slim
ARG BUILDER_IMAGE=${BASE_IMAGE}

# -- the client alone: Debian 12's package brings the whole engine with it ---------------------------------------------
FROM ${BASE_IMAGE} AS client
ARG DOCKER_CLI_PACKAGE=docker-cli
WORKDIR /client
RUN apt-get update -qq \
    && apt-get download -qq -o APT::Sandbox::User=root "${DOCKER_CLI_PACKAGE}" \
    && dpkg-deb --extract ./*.deb . \
    && mkdir -p "/out/usr/bin" "/out/usr/share/doc/${DOCKER_CLI_PACKAGE}" \
    && cp usr/bin/docker /out/usr/bin/ \
    && cp "usr/share/doc/${DOCKER_CLI_PACKAGE}/copyright" "/out/usr/share/doc/${DOCKER_CLI_PACKAGE}/" \
    && /out/usr/bin/docker --version

# -- the environment /opt/loader ---------------------------------------------------------------------------------------
FROM ${BUILDER_IMAGE} AS builder
LABEL com.azaion.loader.stage=builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
RUN command -v gcc \
    || { apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*; }
WORKDIR /build
COPY requirements.txt ./
# pip stays outside: nothing installs anything at run time. Without --no-deps an unpinned package could slip in.
RUN python -m venv --without-pip /opt/loader \
    && python -m pip --python /opt/loader/bin/python install --quiet --no-compile --no-deps -r requirements.txt \
    && python -m pip --python /opt/loader/bin/python check
COPY pyproject.toml ./
RUN python -m pip install --quiet \
    $(python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
COPY setup.py README.md ./
COPY key_profiles key_profiles
COPY src/azaion_loader src/azaion_loader
ARG REQUIRE_KEY_PROFILE=0
ARG KEY_PROFILE_STAMP=development
# The profile is mounted for this one step; the wheel's C sources stay in this stage.
RUN --mount=type=secret,id=key_profile \
    if [ -s /run/secrets/key_profile ]; then \
        export KEY_PROFILE=/run/secrets/key_profile && echo "Key profile: the one given as build secret (${KEY_PROFILE_STAMP})"; \
    elif [ "${REQUIRE_KEY_PROFILE}" = 1 ]; then \
        echo "REQUIRE_KEY_PROFILE=1, but no build secret key_profile was given" >&2 && exit 1; \
    else \
        echo "Key profile: DEVELOPMENT. Not for devices: its secrets are public"; \
    fi \
    && export AZAION_DEVKIT=0 \
    && python setup.py --quiet build_ext --parallel "$(nproc)" \
    && python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/loader/bin/python install --quiet --no-compile --no-deps --no-index /wheels/*.whl \
    && rm -rf build /wheels /tmp/*
# Byte code is compiled here, because the running user may write nowhere; unchecked, so that no time stamp matters.
# botocore describes some 400 services; the loader speaks to one.
RUN rm -f /opt/loader/bin/[Aa]ctivate* \
    && find /opt/loader/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 -exec rm -rf {} + \
    && /opt/loader/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/loader/lib

# -- what ships --------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="azaion-loader" \
      org.opencontainers.image.description="Brings models and Docker images onto edge devices" \
      org.opencontainers.image.vendor="Azaion" \
      org.opencontainers.image.licenses="LicenseRef-Proprietary" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A fixed number: files on the host (device.conf, the data directory) are given to it.
RUN groupadd --gid 10001 azaion \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/azaion --shell /usr/sbin/nologin azaion \
    && install -d -o azaion -g azaion -m 0750 /var/lib/azaion \
    && install -d /opt/azaion /etc/azaion \
    && rm -f /var/log/lastlog /var/log/faillog
COPY --from=client /out/ /
COPY --from=builder /opt/loader /opt/loader
ENV PATH=/opt/loader/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LOADER_DATA_DIR=/var/lib/azaion
WORKDIR /var/lib/azaion
VOLUME ["/var/lib/azaion"]
EXPOSE 8080
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-I", "-m", "azaion_loader.health_check"]
ENTRYPOINT ["azaion-loader"]
CMD ["serve", "--host", "0.0.0.0"]
