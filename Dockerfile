# The bridge in an image: one program, its certificates, no compiler, no root.
#
#   docker build --build-arg COMMIT=$(git rev-parse --short=12 HEAD) -t agora-rtm-bridge .
#   docker run -v data:/var/lib/agora-rtm-bridge -v ./agora-rtm-bridge.toml:/etc/agora-rtm-bridge/agora-rtm-bridge.toml:ro agora-rtm-bridge
#
# Without a mounted file the environment says it all (AGORA_RTM_BRIDGE__…): the file in the image
# holds only a comment.

FROM rust:1.95.0-slim-bookworm AS build
# librdkafka, OpenSSL and SQLite are built from source.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make perl \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# Dependencies in a layer of their own: it stays as long as these two files do. Benchmarks are no
# part of the program, so their lines need no files.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[bench\]\]/,/^harness/d' Cargo.toml \
    && mkdir src && echo 'fn main() {}' | tee src/main.rs build.rs && touch src/lib.rs \
    && cargo build --release --locked --bin agora-rtm-bridge \
    && rm -r src
COPY . .
ARG COMMIT=unknown
# Copied files keep their times, which may lie before those of the layer above.
RUN find src build.rs -type f -exec touch {} + \
    && AGORA_RTM_BRIDGE_COMMIT=$COMMIT cargo build --release --locked --bin agora-rtm-bridge \
    && strip --strip-debug -o /agora-rtm-bridge target/release/agora-rtm-bridge

FROM debian:12.11-slim
# Agora's certificate is checked against the system's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin agora-rtm-bridge \
    && install -d -m 700 -o 10001 -g 10001 /var/lib/agora-rtm-bridge \
    && install -d /etc/agora-rtm-bridge \
    && echo '# Mount a configuration here, or set AGORA_RTM_BRIDGE__… variables.' \
        > /etc/agora-rtm-bridge/agora-rtm-bridge.toml
COPY --from=build /agora-rtm-bridge /usr/local/bin/agora-rtm-bridge
USER 10001:10001
VOLUME /var/lib/agora-rtm-bridge
# Loopback, the default, would be the container's own.
ENV AGORA_RTM_BRIDGE__HTTP__LISTEN=0.0.0.0:9464
EXPOSE 9464
# Not ready is not dead: `health` never fails because of Agora, Kafka or a full disk.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["agora-rtm-bridge", "health", "--config", "/etc/agora-rtm-bridge/agora-rtm-bridge.toml"]
ENTRYPOINT ["agora-rtm-bridge"]
CMD ["run", "--config", "/etc/agora-rtm-bridge/agora-rtm-bridge.toml"]
