# One image for every service: `docker run IMAGE worker`, `… poller`, `… tidegate.cli migrate`. See docs/DEPLOY.md.
# The base is pinned by digest where it is built: --build-arg BASE=python:3.13-slim@sha256:…
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
RUN python -m venv /opt/tidegate
COPY requirements/run.txt requirements/sbom.py requirements/
# Only what is in the lock, byte for byte, and nothing that would have to be compiled here; then no more pip.
RUN /opt/tidegate/bin/pip install --no-compile --require-hashes --only-binary :all: -r requirements/run.txt \
 && /opt/tidegate/bin/pip uninstall -q -y pip
# The services only: neither the embedded stack nor the examples are in the image.
COPY tidegate /opt/app/tidegate
COPY worker /opt/app/worker
COPY poller /opt/app/poller
COPY api /opt/app/api
# Bytecode that holds no time and sets in one order, so that the same sources make the same bytes; and what is in the image,
# as CycloneDX.
RUN python requirements/sbom.py requirements/run.txt /opt/app/tidegate/__init__.py > /opt/app/sbom.cdx.json \
 && PYTHONHASHSEED=0 /opt/tidegate/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/app /opt/tidegate/lib

FROM ${BASE}
LABEL org.opencontainers.image.title=tidegate org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /opt/tidegate /opt/tidegate
COPY --from=build /opt/app /opt/app
# The user's bubble is a layer on top: FROM this image, COPY the package to /opt/bubble.
ENV PATH=/opt/tidegate/bin:$PATH PYTHONPATH=/opt/app:/opt/bubble PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Everything is owned by root and nothing is written, so the root file system can be mounted read-only.
# A volume over /tmp keeps its rights: on Fargate it would be root's otherwise.
VOLUME ["/tmp"]
WORKDIR /tmp
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m"]
CMD ["worker"]
