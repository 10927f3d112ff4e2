# docker build -t perch .
# docker run -p 8000:8000 -v perch:/data perch
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/perch ./cmd/perch
# A volume that is new takes its owner and mode from the directory in the image.
RUN mkdir -m 0700 /out/data

FROM scratch
# For a JWKS, or later a backend, behind https.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/perch /perch
COPY --from=build --chown=65532:65532 /out/data /data
# Numeric, so that Kubernetes can tell that it is not root (runAsNonRoot).
USER 65532:65532
# The admin port stays on the container's loopback: to scrape metrics or to use
# the server API from another container, set PERCH_ADMIN=0.0.0.0:8001 and publish
# it to nobody else.
ENV PERCH_LISTEN=0.0.0.0:8000 PERCH_DATA_DIR=/data
VOLUME /data
EXPOSE 8000
# Asks the admin port of the same container.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/perch", "health"]
ENTRYPOINT ["/perch"]
CMD ["serve"]
