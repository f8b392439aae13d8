#!/usr/bin/env bash
# Build an image without Docker and without a registry, by Debian's buildah, on a base made by
# mmdebstrap, and run smoke.sh on it by podman. As root:
#
#   deploy/verify_image.sh [cpu|cuda]
#
# Needs buildah, podman, runc and mmdebstrap. Prints the sizes of base and image. Images are kept in
# $IMAGES; where the kernel mounts no overlay, STORAGE_DRIVER=vfs works, and takes many times as long.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-cpu}
base=localhost/python-base:debian
images=${IMAGES:-/var/tmp/iafvae-images}
storage=(--root "$images" --runroot "/run$images" --storage-driver "${STORAGE_DRIVER:-overlay}")
podman=(podman "${storage[@]}" --runtime runc --cgroup-manager cgroupfs)

export SOURCE_DATE_EPOCH
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)

if ! "${podman[@]}" image exists "$base"; then
  mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io \
    --include=python3,python3-venv,ca-certificates bookworm - |
    "${podman[@]}" import \
      --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$base"
fi

buildah "${storage[@]}" bud --layers --isolation chroot --network host --format docker --pull-never \
  --timestamp "$SOURCE_DATE_EPOCH" \
  --volume /etc/ssl/certs:/etc/ssl/certs:ro \
  --build-arg "PYTHON_IMAGE=$base" --build-arg "REVISION=$(git rev-parse HEAD)" \
  --target "$target" -t "localhost/iafvae:$target" .

"${podman[@]}" images --format '{{.Repository}}:{{.Tag}} {{.Size}}' \
  --filter reference="$base" --filter reference="localhost/iafvae:$target"
"${podman[@]}" inspect --format '{{json .Labels}}' "localhost/iafvae:$target"
ENGINE="${podman[*]}" deploy/smoke.sh "localhost/iafvae:$target" \
  --ulimit nofile=1024:1024 --ulimit nproc=1024:1024
