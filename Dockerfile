# syntax=docker/dockerfile:1
# The two programs in a small image without a compiler, run by a user without rights.
#   docker build -t orchestra .
#   docker run --rm -e CELERY_BROKER_URL=redis://redis.example:6379/0 orchestra

# The toolchain of rust-toolchain.toml, which .dockerignore leaves out: with it, rustup would fetch a second one.
ARG RUST_VERSION=1.95
ARG DEBIAN=bookworm

FROM rust:${RUST_VERSION}-${DEBIAN} AS build
WORKDIR /src
COPY . .
# Sources of crates and compiled crates stay on the builder between builds, not in a layer: only what changed is built
# again. The programs are copied out because a cache is gone when the step ends.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked --bin orchestra-worker --bin orchestra \
    && install -D -t /out target/dist/orchestra-worker target/dist/orchestra

FROM debian:${DEBIAN}-slim
LABEL org.opencontainers.image.title="orchestra" \
      org.opencontainers.image.description="A distributed, Celery-compatible worker in Rust for AI work" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# Certificates for rediss:// and https://, time zones for schedules. Versions are the release's newest on purpose.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin orchestra
COPY --from=build /out/ /usr/local/bin/
WORKDIR /app
# Both folders are read at start; mount your own over them.
COPY templates templates
COPY tasks tasks
USER 10001:10001
# The worker answers its own ping: it runs, its loop turns, and Redis carries both ways. Give another check where the
# node name (-n) is not the default or remote control is off.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --start-interval=2s --retries=3 \
    CMD ["sh", "-c", "orchestra inspect ping --destination \"celery@$(hostname)\" --timeout 3 || exit 1"]
# The first signal lets running tasks end: give it time (docker stop -t, stop_grace_period).
STOPSIGNAL SIGTERM
# As variables, not as arguments, which would win over what is set for a container.
ENV ORCHESTRA_LOG_LEVEL=INFO \
    ORCHESTRA_WORKER_SEND_TASK_EVENTS=true
ENTRYPOINT ["orchestra-worker"]
