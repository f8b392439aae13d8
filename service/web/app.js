// The page people look at: draw images, score one's own, go from one to another.

import { $, Problem, el, getJson, pngUrl, post, save, timing } from "./api.js";
import { Pad, pictureFrom } from "./pad.js";

const MAX_SLIDERS = 6; // with more latent groups, one temperature serves all
const WAIT_MS = 120; // between the end of a stroke and the question to the server

const state = { model: null, running: null, slots: {} };
const pad = new Pad($("pad"), (drawing) => onPadChanged(drawing));

function fail(error) {
  if (error.name === "AbortError") return;
  $("error").textContent = error.message;
  $("error").hidden = false;
  if (!(error instanceof Problem)) console.error(error);
}

// An event handler that shows what goes wrong in it.
const guarded = (work) => async (...given) => {
  $("error").hidden = true;
  try { await work(...given); } catch (error) { fail(error); }
};

async function start() {
  const { models, default: preferred } = await getJson("v1/models");
  // The version that answers for its name goes by the name alone, and so follows a newer one.
  state.models = new Map(models.map((model) => [
    model.default_version ? model.name : `${model.name}@${model.version}`, model,
  ]));
  for (const name of state.models.keys()) $("model").append(el("option", { value: name }, name));
  $("model").value = preferred;
  await chooseModel();
}

async function chooseModel() {
  const model = state.models.get($("model").value);
  state.model = model;
  const { manifest, limits } = model;
  document.title = `iafvae: ${model.name}`;
  $("chips").replaceChildren(
    ...[`v${model.version}`, model.provider, model.precision].map((text) => el("span", {}, text)),
  );
  $("n").max = Math.min(256, limits.max_n);
  $("colour-label").hidden = manifest.image.channels === 1;
  temperatureSliders(manifest.latent.groups);
  const calibrated = manifest.scoring.calibrated_importance_samples;
  $("k").replaceChildren(...calibrated.map((k) => el("option", { value: k }, k)));
  $("k").value = manifest.scoring.default_importance_samples;
  $("alpha").value = manifest.scoring.alpha;
  const { kind, threshold } = manifest.preprocessing;
  $("seen-caption").textContent = kind === "threshold" ? `as sent; the model sees ${threshold} and up as white` : "as sent";
  pad.resize(manifest.image);
  onPadChanged(true);
  state.slots = {};
  for (const id of ["slot-a", "slot-b"]) $(id).hidden = true;
  $("interpolate").disabled = true;
  $("between").replaceChildren();
  emptyVerdict();
  about(model);
  await drawSamples();
}

function temperatureSliders(groups) {
  const names = groups.length <= MAX_SLIDERS ? groups.map((group) => group.name) : ["all groups"];
  $("temperatures").replaceChildren(
    ...names.map((name) => {
      const value = el("output", {}, "1.00");
      const slider = el("input", { type: "range", min: 0, max: 1.5, step: 0.05, value: 1 });
      slider.oninput = () => { value.textContent = Number(slider.value).toFixed(2); };
      slider.onchange = guarded(drawSamples);
      return el("label", {}, el("span", {}, names.length > 1 ? `Temperature of ${name} ` : "Temperature ", value), slider);
    }),
  );
}

function sampleRequest() {
  const sliders = [...$("temperatures").querySelectorAll("input")].map((slider) => Number(slider.value));
  return {
    model: $("model").value,
    n: Number($("n").value),
    seed: Number($("seed").value),
    temperature: sliders.length === 1 ? sliders[0] : sliders,
    output: $("output").value,
  };
}

async function drawSamples() {
  $("samples").setAttribute("aria-busy", "true");
  try {
    const { response, data } = await post("v1/sample", sampleRequest());
    showImages($("samples"), data.images, (index) => `Drawn image ${index + 1} of ${data.images.length}, seed ${data.seed}`);
    $("sample-status").textContent = timing(response);
  } finally {
    $("samples").setAttribute("aria-busy", "false");
  }
}

function showImages(target, images, describe) {
  target.replaceChildren(
    ...images.map((base64, index) => {
      const button = el("button", { type: "button" }, el("img", { src: pngUrl(base64), alt: describe(index) }));
      button.onclick = guarded(async () => {
        for (const other of document.querySelectorAll(".samples [aria-pressed]")) other.removeAttribute("aria-pressed");
        button.setAttribute("aria-pressed", "true");
        pad.show(await pictureFrom(pngUrl(base64)), base64);
      });
      return button;
    }),
  );
}

let timer = 0;
function onPadChanged(drawing) {
  pad.image($("seen"));
  $("drop").classList.toggle("blank", pad.blank);
  clearTimeout(timer);
  if ($("live").checked && !drawing) timer = setTimeout(guarded(look), WAIT_MS);
}

// Ask everything about the image at once; a newer question cancels this one, here and on the server.
async function look() {
  state.running?.abort();
  if (pad.blank) return emptyVerdict();
  const running = new AbortController();
  state.running = running;
  const images = [pad.image($("seen"))];
  const model = $("model").value;
  const ask = (path, options) => post(path, { model, images, ...options }, { signal: running.signal });
  const [scored, again, encoded] = await Promise.all([
    ask("v1/score", { importance_samples: Number($("k").value), alpha: Number($("alpha").value) }),
    ask("v1/reconstruct", {}),
    ask("v1/encode", {}),
  ]);
  showScore(scored.data);
  $("score-status").textContent = timing(scored.response);
  $("reconstruction").src = pngUrl(again.data.images[0]);
  drawLatents(encoded.data.latents[0]);
}

function emptyVerdict() {
  $("verdict").textContent = "Draw something.";
  $("verdict").className = "verdict";
  $("scale-mark").hidden = true;
  $("numbers").replaceChildren();
  $("score-status").textContent = "";
  $("reconstruction").removeAttribute("src");
  drawLatents([]);
}

// The scale is logarithmic from the smallest p-value, about 1/2500, to 1.
const onScale = (p) => `${100 * Math.min(1, Math.max(0, 1 + Math.log10(p) / 3.3))}%`;

function drawScale() {
  const marks = [[0.0005, "p"], [0.01, "0.01"], [0.1, "0.1"], [1, "1"]];
  $("scale-text").replaceChildren(...marks.map(([p, text]) => {
    const mark = el("span", {}, text);
    mark.style.left = onScale(p);
    return mark;
  }));
}

function showScore({ results: [result], alpha, importance_samples, estimator }) {
  const p = result.p_value;
  const words = p === null
    ? "No p-value: this K is not calibrated"
    : result.anomalous === null
      ? `No decision (${result.status.replaceAll("_", " ")}): p = ${format(p, 4)}`
    : result.anomalous
      ? `Anomalous: p = ${format(p, 4)}`
      : `Ordinary: p = ${format(p, 4)}`;
  $("verdict").textContent = result.status === "non_finite" ? "The score is not finite" : words;
  $("verdict").className = `verdict ${result.anomalous === null ? "" : result.anomalous ? "bad" : "good"}`;
  $("scale-alpha").style.left = onScale(alpha);
  $("scale-mark").hidden = p === null;
  if (p !== null) $("scale-mark").style.left = onScale(p);
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

const format = (value, digits) => (value === null ? "–" : value.toFixed(digits));

function drawLatents(values) {
  const canvas = $("latents");
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const middle = canvas.height / 2;
  context.fillStyle = style.getPropertyValue("--line");
  context.fillRect(0, middle, canvas.width, 1);
  context.fillStyle = style.getPropertyValue("--accent");
  const shown = values.slice(0, canvas.width);
  const largest = Math.max(3, ...shown.map((value) => Math.abs(value ?? 0)));
  const step = canvas.width / Math.max(1, shown.length);
  shown.forEach((value, index) => {
    const height = ((value ?? 0) / largest) * (middle - 2);
    context.fillRect(index * step, middle, Math.max(1, step * 0.8), -height);
  });
}

async function open(file) {
  if (!file) return;
  const url = URL.createObjectURL(file);
  try { pad.show(await pictureFrom(url)); } finally { URL.revokeObjectURL(url); }
}

function take(slot) {
  const base64 = pad.image($("seen"));
  state.slots[slot] = base64;
  Object.assign($(`slot-${slot}`), { src: pngUrl(base64), hidden: false, alt: `Image ${slot.toUpperCase()}` });
  $("interpolate").disabled = !(state.slots.a && state.slots.b);
}

async function interpolate() {
  const { a, b } = state.slots;
  const body = { model: $("model").value, images: [a, b], n: Number($("steps").value) };
  const { response, data } = await post("v1/interpolate", body);
  showImages($("between"), data.images, (index) => `Step ${index + 1} of ${data.images.length} from A to B`);
  $("between-status").textContent = timing(response);
}

function about({ manifest, bundle }) {
  $("description").textContent = manifest.description;
  const { image, latent, scoring, calibration } = manifest;
  const facts = [
    ["Images", `${image.channels} × ${image.height} × ${image.width}, ${image.levels} levels, ${manifest.likelihood.kind.replace("_", " ")} likelihood`],
    ["Latents", `${latent.dim}: ${latent.groups.map((g) => `${g.name} ${g.channels}×${g.height}×${g.width}`).join(", ")}`],
    ["Parameters", manifest.parameters.toLocaleString("en")],
    ["Calibration", calibration ? `${calibration.images} images, K = ${scoring.calibrated_importance_samples.join(", ")}` : "none"],
    ["License", manifest.license],
    ["Bundle", bundle],
  ];
  const table = el("table", {}, ...facts.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))));
  $("facts").replaceChildren(table);
  if (!manifest.evaluation.length) return;
  const heads = ["Figure", "K", "nats", "± s.e.", "bits/dim", "on"].map((text) => el("th", { scope: "col" }, text));
  const rows = manifest.evaluation.map((figure) =>
    el("tr", {},
      el("td", {}, figure.estimator.replace("_", " ")),
      ...[figure.importance_samples, figure.value_nats.toFixed(2), figure.standard_error_nats.toFixed(2), figure.bits_per_dim.toFixed(4)]
        .map((value) => el("td", { className: "number" }, String(value))),
      el("td", {}, `${figure.images} ${figure.split} images`),
    ));
  $("facts").append(el("h3", {}, "Measured"), el("table", {}, el("tr", {}, ...heads), ...rows));
}

function listen() {
  $("model").onchange = guarded(chooseModel);
  $("sample-form").onsubmit = (event) => { event.preventDefault(); guarded(drawSamples)(); };
  $("output").onchange = guarded(drawSamples);
  $("new-seed").onclick = guarded(async () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    await drawSamples();
  });
  $("save-sheet").onclick = guarded(async () => {
    const { data } = await post("v1/sample", sampleRequest(), { accept: "image/png" });
    save(data, `${state.model.name}-seed-${$("seed").value}.png`);
  });
  $("pen").oninput = () => { pad.pen = Number($("pen").value); };
  $("colour").oninput = () => { pad.colour = $("colour").value; };
  for (const name of ["undo", "clear", "invert", "centre"]) $(name).onclick = () => pad[name]();
  $("choose").onclick = () => $("file").click();
  $("file").onchange = guarded(async () => { await open($("file").files[0]); $("file").value = ""; });
  $("score").onclick = guarded(look);
  for (const id of ["k", "alpha"]) $(id).onchange = guarded(look);
  $("take-a").onclick = () => take("a");
  $("take-b").onclick = () => take("b");
  $("interpolate").onclick = guarded(interpolate);
  document.addEventListener("paste", guarded((event) => open([...event.clipboardData.files][0])));
  const drop = $("drop");
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = guarded(async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    await open(event.dataTransfer.files[0]);
  });
}

listen();
drawScale();
guarded(start)();
