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
# Programs that templates may run once `ai_programs` names them; git is for `git_clone`. "" leaves them out.
ARG PROGRAMS=git
# Certificates for rediss:// and https://, time zones for schedules, an init that buries what programs leave behind. Versions are
# the release's newest on purpose; PROGRAMS are words.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tini tzdata ${PROGRAMS} \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin orchestra
COPY --from=build /out/ /usr/local/bin/
WORKDIR /app
# Both folders are read at start; mount your own over them.
COPY templates templates
COPY tasks tasks
USER 10001:10001
# Its own answer whether it takes tasks: its loop turns, and there is a connection to Redis. Asked of this container alone, where a
# ping through Redis would reach every worker. bash, because there is no curl.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --start-interval=2s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9808 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q '^HTTP/1.[01] 200' <&3"]
# The first signal lets running tasks end: give it time (docker stop -t, stop_grace_period).
STOPSIGNAL SIGTERM
# As variables, not as arguments, which would win over what is set for a container.
ENV ORCHESTRA_LOG_LEVEL=INFO \
    ORCHESTRA_WORKER_SEND_TASK_EVENTS=true \
    MALLOC_MMAP_THRESHOLD_=1048576 \
    MALLOC_TRIM_THRESHOLD_=4194304 \
    ORCHESTRA_WORKER_METRICS_ADDR=0.0.0.0:9808
# /metrics, /healthz and /readyz. It has no login: publish it to this machine or a private network only.
EXPOSE 9808
ENTRYPOINT ["tini", "--", "orchestra-worker"]
