# The gateway: no torch. Build from the repository's root:
#   docker build -f deploy/gateway.Dockerfile -t taciturn/gateway:0.1.0 .
# The SBOM (CycloneDX) of what was installed is /usr/share/taciturn/sbom.json in the image.
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# What changes seldom comes first: requirements, then the package itself.
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src/taciturn/_version.py src/taciturn/_version.py
RUN python -m venv /opt/taciturn \
    && mkdir -p src/taciturn && touch src/taciturn/__init__.py \
    && /opt/taciturn/bin/pip install -c constraints.txt ".[server,kubernetes]" \
    && /opt/taciturn/bin/pip uninstall --yes taciturn
COPY src src
RUN /opt/taciturn/bin/pip install --no-deps .
RUN python -m venv /opt/sbom \
    && /opt/sbom/bin/pip install cyclonedx-bom==7.5.0 \
    && /opt/sbom/bin/cyclonedx-py environment /opt/taciturn --output-file /build/sbom.json

FROM python:3.11.13-slim-bookworm
RUN groupadd --gid 10001 taciturn \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/taciturn taciturn \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/taciturn
COPY --from=build /opt/taciturn /opt/taciturn
COPY --from=build /build/sbom.json /usr/share/taciturn/sbom.json
ENV PATH=/opt/taciturn/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/taciturn
EXPOSE 8321
ENTRYPOINT ["taciturn"]
CMD ["serve"]
