#!/usr/bin/env bash
# Build an image without Docker and without a registry, by Debian's buildah, on a base made by
# debootstrap, and run smoke.sh on it by podman. As root:
#
#   deploy/verify_image.sh [cpu|cuda]
#
# Needs buildah, podman, runc and debootstrap. Prints the sizes of base and image. Images are kept in
# $IMAGES; where the kernel mounts no overlay, STORAGE_DRIVER=vfs works, and takes many times as long.
# With TWICE=1 the image is built from nothing, and again, and must have the same layers.
# Where none can be built or no container can be run, exits with 77; where this one cannot, with 78.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-cpu}
base=localhost/python-base:debian
images=${IMAGES:-/var/tmp/iafvae-images}
storage=(--root "$images" --runroot "/run$images" --storage-driver "${STORAGE_DRIVER:-overlay}")
podman=(podman "${storage[@]}" --runtime runc --cgroup-manager cgroupfs)

if ! "${podman[@]}" image exists "$base"; then
  root=$(mktemp -d)
  trap 'umount -q "$root/proc" || true; rm -rf --one-file-system "$root"' EXIT
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >/dev/null \
    || exit 77
  umount -q "$root/proc" || true # which debootstrap mounts, and leaves
  rm -f "$root/etc/resolv.conf"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  tar -C "$root" --one-file-system -c . | "${podman[@]}" import \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$base" \
    || exit 77
fi
limits=(--ulimit nofile=1024:1024 --ulimit nproc=1024:1024)
"${podman[@]}" run --rm "${limits[@]}" "$base" true || exit 77

build=(buildah "${storage[@]}" bud --isolation chroot --network host --format docker --pull-never
  --volume /etc/ssl/certs:/etc/ssl/certs:ro)
# Whether an image can be built here at all, and reaches a package index; what fails later is a fault.
printf 'FROM %s\nRUN python3 -m venv /v && /v/bin/pip download -q --no-deps -d /v idna\n' "$base" \
  | "${build[@]}" -t localhost/iafvae-probe - >/dev/null || exit 77

build+=(--layers --timestamp "$(git log -1 --format=%ct)" --target "$target"
  --build-arg "PYTHON_IMAGE=$base" --build-arg "REVISION=$(git rev-parse HEAD)")
[ -z "${TWICE:-}" ] || build+=(--no-cache) # what is kept may have another revision's times
"${build[@]}" -t "localhost/iafvae:$target" . || exit 78
if [ -n "${TWICE:-}" ]; then
  "${build[@]}" -t "localhost/iafvae:$target-again" . || exit 78
  layers=("${podman[@]}" inspect --format '{{json .RootFS.Layers}}')
  cmp <("${layers[@]}" "localhost/iafvae:$target") <("${layers[@]}" "localhost/iafvae:$target-again")
  echo "built from nothing twice, it has the same layers"
fi

"${podman[@]}" images --format '{{.Repository}}:{{.Tag}} {{.Size}}' \
  --filter reference="$base" --filter reference="localhost/iafvae:$target"
"${podman[@]}" inspect --format '{{json .Labels}}' "localhost/iafvae:$target"
ENGINE="${podman[*]}" deploy/smoke.sh "localhost/iafvae:$target" "${limits[@]}"
