#!/usr/bin/env bash
# Run an image as it should be run, and ask it for a sample and a score:
#
#   deploy/smoke.sh iafvae:cpu [options of `docker run`]
#   ENGINE="podman --runtime runc" deploy/smoke.sh iafvae:cuda --volume "$PWD/mine:/models:ro" ...
#
# No network, a read-only root file system, no capabilities, a key. The client is the image's own
# Python. Wrong settings must end the start with one line, and the log must hold no secret.
# If $SHEET is set, a sheet of 64 samples is left in that file.
set -euo pipefail

read -ra engine <<<"${ENGINE:-docker}"
image=${1:?usage: smoke.sh IMAGE [options of run]}
shift

for setting in PROT=1 PORT=http MODELS=/nowhere KEYS_FILE=/nowhere; do
  if wrong=$("${engine[@]}" run --rm --no-healthcheck --network none "$@" \
    --env "IAFVAE_$setting" "$image" 2>&1) || [ "$(grep -c . <<<"$wrong")" != 1 ]; then
    echo "smoke: IAFVAE_$setting does not end the start with one line: $wrong" >&2
    exit 1
  fi
  echo "$wrong"
done

keys=$(mktemp -d)
trap 'rm -rf "$keys"' EXIT
made=$("${engine[@]}" run --rm --no-healthcheck --network none "$@" "$image" key smoke 2>/dev/null)
key=${made%%$'\n'*}
echo "${made##*$'\n'}" >"$keys/keys.txt"
chmod -R a+rX "$keys"

started=$(date +%s%N)
container=$("${engine[@]}" run --detach --network none --read-only --cap-drop ALL \
  --security-opt no-new-privileges --volume "$keys:/keys:ro" --env IAFVAE_KEYS_FILE=/keys/keys.txt \
  --env IAFVAE_ACCESS_LOG=true --env IAFVAE_LOG_LEVEL=debug "$@" "$image")
trap '"${engine[@]}" rm --force "$container" >/dev/null; rm -rf "$keys"' EXIT
inside() { "${engine[@]}" exec --interactive --env "IAFVAE_KEY=$key" "$container" "$@"; }
fail() {
  "${engine[@]}" logs "$container" >&2 || true
  echo "smoke: $1" >&2
  exit 1
}
milliseconds() { echo $((($(date +%s%N) - $1) / 1000000)); }

health=(python -IS /opt/iafvae/healthcheck.py)
for _ in $(seq 150); do
  inside "${health[@]}" 2>/dev/null && break
  sleep 0.2
done
inside "${health[@]}" || fail "not ready"
echo "ready after $(milliseconds "$started") ms"

inside python - <<'PYTHON' || fail "a check failed"
import importlib.util
import io
import os

import httpx
import numpy as np

assert os.getuid() != 0, "runs as root"
for name in ("torch", "model", "training", "pip"):
    assert importlib.util.find_spec(name) is None, f"{name} is in the image"
try:
    open("/opt/iafvae/written", "w")
    raise AssertionError("the root file system can be written")
except OSError:
    pass

base = f"http://127.0.0.1:{os.environ['IAFVAE_PORT']}"
assert httpx.get(f"{base}/v1/models?token=of-smoke").status_code == 401, "asked without a key"
bearer = {"authorization": f"Bearer {os.environ['IAFVAE_KEY']}"}
service = httpx.Client(base_url=base, headers=bearer, timeout=60)


def ask(path, accept, **given):
    response = service.post(path, headers={"accept": accept, **given.pop("headers", {})}, **given)
    assert response.status_code == 200, (path, response.status_code, response.text)
    return response


assert service.get("/livez").status_code == 200
drawing = {"n": 16, "seed": 0, "output": "draw"}
sheet = ask("/v1/sample", "image/png", json=drawing)
assert sheet.content.startswith(b"\x89PNG")
again = ask("/v1/sample", "image/png", json=drawing)
assert again.content == sheet.content, "the same seed gave other bytes"
images = ask("/v1/sample", "application/x-npy", json=drawing)
npy = {"content-type": "application/x-npy"}
scored = ask("/v1/score", "application/json", headers=npy, content=images.content).json()
scores = [one["log_likelihood_nats"] for one in scored["results"]]
noise = io.BytesIO()
shape = np.load(io.BytesIO(images.content)).shape
np.save(noise, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
worse = ask("/v1/score", "application/json", headers=npy, content=noise.getvalue()).json()
low = [one["log_likelihood_nats"] for one in worse["results"]]
assert np.isfinite(scores).all(), "a score is not finite"
print(
    f"{scored['model']} {scored['version']} on {sheet.headers['x-iafvae-provider']}, uid {os.getuid()}:"
    f" a sheet of {len(sheet.content)} bytes; mean score (K={scored['importance_samples']}) of 16"
    f" samples {np.mean(scores):.2f} nats, of 16 images of noise {np.mean(low):.2f}"
)
PYTHON

if [ -n "${SHEET:-}" ]; then
  # shellcheck disable=SC2016 # expanded inside
  inside sh -c 'iafvae sample -n 64 --seed 0 --url "http://127.0.0.1:$IAFVAE_PORT" -o /dev/shm/s.png \
    2>/dev/null && cat /dev/shm/s.png' >"$SHEET" || fail "no sheet"
fi

stopping=$(date +%s%N)
"${engine[@]}" kill --signal TERM "$container" >/dev/null
code=$("${engine[@]}" wait "$container")
[ "$code" = 0 ] || fail "SIGTERM ended it with exit code $code"
log=$("${engine[@]}" logs "$container" 2>&1)
grep -q /v1/models <<<"$log" || fail "the log has no requests"
! grep -e "$key" -e of-smoke <<<"$log" || fail "a secret is in the log"
echo "SIGTERM: exit code 0 after $(milliseconds "$stopping") ms"
