# One image for operator, gateway and the jobs that fill caches: `spotinference` with its arguments.
# docker build -t ghcr.io/spotinference/spotinference:0.1.0 .
FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/spotinference
COPY requirements/runtime.txt requirements/build.txt /src/requirements/
RUN /opt/spotinference/bin/pip install --require-hashes -r /src/requirements/runtime.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r /src/requirements/build.txt
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
COPY crds /src/crds
COPY charts /src/charts
COPY tools /src/tools
RUN cd /src \
    && /opt/build/bin/python -m hatchling build -t wheel -d /dist \
    && /opt/spotinference/bin/pip install --no-deps --no-index /dist/*.whl \
    && /opt/spotinference/bin/pip uninstall --yes pip

FROM python:3.12-slim
COPY --from=build /opt/spotinference /opt/spotinference
ENV PATH=/opt/spotinference/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Any user may run it: cache jobs run as the owner of the tier's volume.
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["spotinference"]
CMD ["--help"]
