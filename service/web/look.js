// The verdict on one image: its p-value with the evidence, its place among calibration's, its map.

import { getJson, pngUrl, post, timing } from "./api.js";
import { $, el, format, small } from "./dom.js";
import { alphas, drawHistogram, placeInWords } from "./histogram.js";
import { floatsOf } from "./npy.js";
import { asked, remember, remembered, state } from "./state.js";

const FULL = 8; // deviations at which the map's colour covers the image, as in the service's pictures
const SHOWN = 5; // parts of the evidence before the others
const OWN = "A verdict on photos of your own takes a model of them: iafvae-train inspect FOLDER makes it, iafvae serve --models serves it.";
const PATIENCE_MS = 1000; // after which what is shown of the image before is taken away

const REASONS = {
  not_calibrated: "the model, or this K, has no calibration",
  non_finite: "an estimate is no number",
  alpha_too_small: "calibration has too few images for an alpha so small",
  altered: "it was resized or converted, calibration images were not",
};

export const alpha = () => state.alphas[Number($("alpha").value)];

// Nothing is judged yet: `words` say so.
export async function chooseScoring({ manifest }, words) {
  const { calibration, scoring } = manifest;
  const kept = remembered("k");
  const calibrated = scoring.calibrated_importance_samples;
  const ks = calibrated.length ? calibrated : [scoring.default_importance_samples];
  $("k").replaceChildren(...ks.map((k) => el("option", { value: k }, k)));
  $("k").value = ks.includes(Number(kept)) ? kept : scoring.default_importance_samples;
  const wanted = Number(remembered("alpha")) || scoring.alpha;
  state.alphas = alphas(calibration?.images ?? 1e4, [scoring.alpha, wanted]);
  const nearest = state.alphas.findLastIndex((value) => value <= wanted);
  Object.assign($("alpha"), { max: state.alphas.length - 1, value: Math.max(0, nearest) });
  $("judged").hidden = !calibrated.length;
  state.distances.clear();
  nothing(words);
  await chooseDistances();
}

// The histogram is of the chosen K.
export async function chooseDistances() {
  const k = Number($("k").value);
  const { model } = state;
  if (model.manifest.scoring.calibrated_importance_samples.includes(k) && !state.distances.has(k)) {
    const { name, version } = model;
    const path = `v1/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}/calibration`;
    const { distances } = await getJson(`${path}?importance_samples=${k}`);
    if (state.model !== model) return; // another one was chosen meanwhile
    state.distances.set(k, distances);
  }
  showAlpha();
}

// The verdict at another alpha needs no other question: the p-value stays.
export function showAlpha() {
  $("alpha-value").textContent = small(alpha());
  $("alpha").setAttribute("aria-valuetext", `p = ${small(alpha())}`);
  if (state.result) showVerdict(state.result);
  const distances = state.distances.get(Number($("k").value));
  if (!distances) return;
  const p = state.result?.p_value ?? null;
  drawHistogram($("histogram"), distances, alpha(), p);
  $("place").textContent = p === null ? "" : `${placeInWords(p, distances.length)}.`;
}

// `level` may be another alpha than the service was asked with; `images`: of the calibration, which
// decides nothing at a level below its smallest p-value.
export function verdictOf({ status, p_value: p }, level, images) {
  if (!["ok", "alpha_too_small"].includes(status) || p === null || level < 1 / (1 + images)) return null;
  return p <= level;
}

function showVerdict(result) {
  const isAnomalous = verdictOf(result, alpha(), state.model.manifest.calibration?.images);
  const p = result.p_value === null ? "" : `p = ${small(result.p_value)}`;
  const words = isAnomalous === null
    ? `No decision${p && `, ${p}`}: ${REASONS[result.status] ?? "there is no p-value"}`
    : `${isAnomalous ? "Anomalous" : "Not anomalous"}: ${p}`;
  const kind = isAnomalous === null ? "" : isAnomalous ? "bad" : "good";
  say(words, kind);
}

function say(words, kind) {
  if ($("verdict").textContent !== words) $("verdict").textContent = words;
  $("verdict").className = `verdict ${kind}`;
}

let running = null;

// Ask everything about `image` at once; a newer question cancels this one, here and on the server.
export async function look(image) {
  running?.abort();
  const { signal } = running = new AbortController();
  const { manifest } = state.model;
  const ask = (path, options, accept) =>
    post(path, asked({ ...image.options, ...options }), { files: [image.blob], accept, signal });
  setBusy(true);
  const late = setTimeout(() => {
    empty("Waiting for an answer…");
  }, PATIENCE_MS);
  signal.addEventListener("abort", () => clearTimeout(late));
  try {
    const map = manifest.calibration && "evidence" in manifest.graphs;
    const [scored, again, coded, boxes, deviations] = await Promise.all([
      ask("v1/score", { importance_samples: Number($("k").value), alpha: alpha() }),
      ask("v1/reconstruct", {}),
      ask("v1/encode", { output: "prior_eps" }, "application/x-npy"),
      map && ask("v1/anomaly-map", { boxes: 3 }),
      map && ask("v1/anomaly-map", { boxes: 0 }, "application/x-npy"),
    ]);
    const numbers = map && floatsOf(await deviations.data.arrayBuffer());
    const npy = await coded.data.arrayBuffer();
    if (signal.aborted) return null;
    showScore(scored.data);
    $("score-status").textContent = timing(scored.response);
    $("reconstruction").src = pngUrl(again.data.images[0]);
    showMap(numbers, boxes?.data);
    const [result] = scored.data.results;
    const notes = [...new Set([...scored.data.notes, ...(boxes?.data.notes ?? [])])];
    const words = notesOf({ result, notes });
    showNotes(result.status === "altered" ? [OWN, ...words.slice(1)] : words); // the verdict says the first
    return npy;
  } catch (error) {
    if (!signal.aborted) nothing(`No verdict: ${error.message}`); // none stays that is of another image
    throw error;
  } finally {
    clearTimeout(late);
    if (!signal.aborted) setBusy(false);
  }
}

function setBusy(isBusy) {
  for (const id of ["results", "evidence-box"]) $(id).setAttribute("aria-busy", isBusy);
}

// No image, or no answer: nothing on the page is of an image that was there before.
export function nothing(words) {
  running?.abort();
  setBusy(false);
  empty(words);
}

function empty(words) {
  state.result = null;
  say(words, "");
  for (const id of ["numbers", "evidence", "more-evidence", "notes"]) $(id).replaceChildren();
  $("score-status").textContent = "";
  $("calibration").textContent = "";
  $("reconstruction").removeAttribute("src");
  $("evidence-box").hidden = true;
  showMap(null);
  showAlpha();
}

function showScore({ results: [result], alpha: level, certified_alpha: certified, calibration, importance_samples, estimator }) {
  state.result = result;
  showAlpha();
  $("calibration").textContent = calibration && certified !== null
    ? `At p ≤ ${small(level)} about ${small(100 * level)}% of usual images are called anomalous; at p ≤ ${small(certified)} at most so many, with 95% confidence. Calibrated on ${calibration.images.toLocaleString("en")} images (${calibration.name}, ${calibration.date}).`
    : "";
  showEvidence(result.evidence);
  const rows = [
    ["log p(x) ≥", `${format(result.log_likelihood_nats, 2)} nats`],
    ["standard error", result.standard_error_nats === null ? "–" : `${format(result.standard_error_nats, 2)} nats`],
    ["bits per dimension", format(result.bits_per_dim, 4)],
    ["ELBO", `${format(result.elbo_nats, 2)} nats`],
    ["effective samples", `${format(result.effective_sample_size, 1)} of ${importance_samples}`],
    ["estimator", estimator.replace("_", " ")],
  ];
  $("numbers").replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

const WHOLE = {
  log_likelihood: "likelihood", log_px_z: "pixels, given the latents", level: "brightness", contrast: "contrast",
  variation: "change from pixel to pixel", sharpness: "sharpness", compressed_bytes: "size when compressed",
  largest_box: "largest box of the map",
  "residual/top": "what the top latents miss", "residual/all": "what the reconstruction misses",
};
const BY_GROUP = { kl: "information in", prior_eps: "prior's noise of", z: "size of" };

function partInWords(name) {
  const [kind, group] = name.split("/");
  return WHOLE[name] ?? (kind in BY_GROUP ? `${BY_GROUP[kind]} ${group}` : name.replaceAll("_", " "));
}

function showEvidence(evidence) {
  const parts = Object.entries(evidence).sort(([, a], [, b]) => (a ?? 2) - (b ?? 2));
  const rows = parts.map(([name, p]) => {
    const bar = el("span", { className: "bar" }, el("span", {}));
    bar.firstChild.style.width = `${100 * Math.min(1, -Math.log10(p ?? 1) / 3.4)}%`;
    bar.firstChild.className = p !== null && p <= alpha() ? "bad" : "";
    return el("li", { title: name }, el("span", {}, partInWords(name)), bar, el("span", { className: "number" }, small(p)));
  });
  $("evidence").replaceChildren(...rows.slice(0, SHOWN));
  $("more-evidence").replaceChildren(...rows.slice(SHOWN));
  $("others").textContent = `The other ${Math.max(0, rows.length - SHOWN)} parts`;
  $("others-box").hidden = rows.length <= SHOWN;
  // Without calibration there are the numbers alone.
  $("evidence-head").hidden = rows.length === 0;
  $("numbers-box").open ||= rows.length === 0;
  $("evidence-box").hidden = false;
}

// Deviations `[H W]` over the image: red is brighter than expected, blue darker.
function showMap(deviations, answer) {
  $("map-box").hidden = !deviations;
  $("largest").textContent = "";
  if (!deviations) return;
  const { height, width } = state.model.manifest.image;
  const canvas = Object.assign($("map"), { height, width });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage($("seen"), 0, 0);
  const under = context.getImageData(0, 0, width, height);
  deviations.forEach((value, index) => {
    const at = 4 * index;
    const share = Number.isFinite(value) ? Math.min(1, Math.abs(value) / FULL) : 1;
    const grey = (under.data[at] + under.data[at + 1] + under.data[at + 2]) / 3;
    (value > 0 ? [230, 50, 30] : [30, 110, 240]).forEach((level, channel) => {
      under.data[at + channel] = (1 - share) * grey + share * level;
    });
  });
  context.putImageData(under, 0, 0);
  const [boxes] = answer.results;
  $("boxes").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("boxes").replaceChildren(...boxes.map(({ left, top, side, p_value: p }) => {
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({ x: left, y: top, width: side, height: side })) box.setAttribute(name, value);
    box.setAttribute("class", p !== null && p <= alpha() ? "out" : "");
    return box;
  }));
  const [largest] = boxes;
  const words = largest
    ? `Largest box: ${largest.side} × ${largest.side} at ${largest.left}, ${largest.top}; ${format(largest.deviations, 1)} deviations, p = ${small(largest.p_value)}`
    : "";
  $("largest").textContent = words;
  canvas.setAttribute("aria-label", `Anomaly map over the image. ${words}`);
}

// Notes on one image, in the words of the page. The first one of an altered image speaks of places in
// a request, of which there is one here.
export function notesOf({ result, notes }) {
  const words = notes.map((note) => note.replace("_nats", "").replaceAll("_", " "));
  return result.altered ? ["resized or converted", ...words.slice(1)] : words;
}

function showNotes(notes) {
  $("notes").replaceChildren(...notes.map((note) => el("li", {}, note)));
}

export function rememberScoring() {
  remember({ k: $("k").value, alpha: alpha() });
}
