// The page people look at: it wires what stands on it to what the other modules do.

import { Problem, getJson, pngUrl } from "./api.js";
import { $, el, table } from "./dom.js";
import { chooseChanges, drawChanged, interpolate, resetSliders, showKept, showNoise, take, vary } from "./changes.js";
import { curl, offer, python } from "./code.js";
import { drawSamples, newSeed, sampleRequest, saveSheet, temperatureSliders } from "./draws.js";
import { cannotDo, showExamples } from "./examples.js";
import { dropped, onRow, saveCsv, scoreFiles, showRows, stop } from "./files.js";
import { alpha, chooseDistances, chooseScoring, look, nothing, rememberScoring, showAlpha } from "./look.js";
import { Pad, pictureFrom } from "./pad.js";
import { asked, fromAddress, remember, remembered, state, toAddress } from "./state.js";

const WAIT_MS = 120; // between the end of a stroke or the move of a slider and the question
const DRAW = "Draw something, or choose an example.";

const pad = new Pad($("pad"), (isDrawing) => onPadChanged(isDrawing));

function fail(error) {
  if (error.name === "AbortError") return;
  $("error").textContent = error.message;
  $("error").hidden = false;
  if (!(error instanceof Problem || error.isOfFile)) console.error(error);
}

// An event handler that shows what goes wrong in it.
const guarded = (work) => async (...given) => {
  $("error").hidden = true;
  try { await work(...given); } catch (error) { fail(error); }
};

// The same, once the calls have paused.
function settled(work) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(guarded(work), WAIT_MS);
  };
}

async function start() {
  const { models, default: preferred } = await getJson("v1/models");
  // The version that answers for its name goes by the name alone, and so follows a newer one.
  state.models = new Map(models.map((model) => [
    model.default_version ? model.name : `${model.name}@${model.version}`, model,
  ]));
  for (const name of state.models.keys()) $("model").append(el("option", { value: name }, name));
  $("model").value = state.models.has(remembered("model")) ? remembered("model") : preferred;
  for (const name of ["n", "seed", "output", "steps"]) $(name).value = remembered(name) ?? $(name).value;
  await chooseModel(remembered("image"));
}

// `image`: base64 of one to look at first, as an address holds it.
async function chooseModel(image = null) {
  const model = state.models.get($("model").value);
  Object.assign(state, { model, name: $("model").value });
  remember({ model: state.name });
  const { manifest, limits } = model;
  document.title = `iafvae: ${model.name}`;
  $("chips").replaceChildren(
    ...[`v${model.version}`, model.provider, model.precision].map((text) => el("span", {}, text)),
  );
  $("n").max = Math.min(256, limits.max_n);
  $("colour-label").hidden = manifest.image.channels === 1;
  temperatureSliders(manifest.latent.groups, guarded(draw));
  about(model);
  chooseChanges(model);
  for (const id of ["samples", "examples", "sample-status"]) $(id).replaceChildren(); // the other model's
  const { file, blob } = pad.exact ?? {};
  pad.resize(manifest.image, manifest.fit ?? "crop");
  onPadChanged(true);
  if (!image) remember({ image: null });
  await chooseScoring(model, DRAW);
  if (state.model !== model) return; // another one was chosen meanwhile
  if (image) await guarded(lookAt)(fromAddress(image));
  else if (file) await guarded(show)(blob, file);
  else onPadChanged(false);
  const drawn = await draw();
  if (drawn) await showExamples(manifest, drawn.map(pngUrl), lookAtChosen);
}

const draw = () => drawSamples(lookAtChosen);

async function lookAt(base64) {
  pad.show(await pictureFrom(pngUrl(base64)), { base64 });
}

// A choice far from the verdict brings the verdict into sight.
const lookAtChosen = guarded(async (base64) => {
  await lookAt(base64);
  bringIntoSight();
});

function bringIntoSight() {
  const { top, bottom } = $("results").getBoundingClientRect();
  if (top >= 0 && Math.min(bottom, top + 200) <= innerHeight) return;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("drop").scrollIntoView({ behavior: isCalm ? "auto" : "smooth", block: "start" });
}

const lookSoon = settled(lookNow);

function onPadChanged(isDrawing) {
  const image = pad.image($("seen"));
  $("drop").classList.toggle("blank", pad.blank);
  $("seen-caption").textContent = image.file ? "your file, fitted" : "as sent";
  if ($("live").checked && !isDrawing) lookSoon();
}

async function lookNow() {
  if (pad.blank) {
    nothing(DRAW);
    showNoise(null);
    remember({ image: null });
    return;
  }
  const image = pad.image($("seen"));
  remember({ image: image.base64 ? toAddress(image.base64) : null });
  rememberScoring();
  try {
    const npy = await look(image);
    if (npy) showNoise(npy);
  } catch (error) {
    if (error.name !== "AbortError") showNoise(null);
    throw error;
  }
}

async function open(file) {
  if (!file) return;
  await show(file, file.name);
  bringIntoSight();
}

async function show(blob, file) {
  const url = URL.createObjectURL(blob);
  try { pad.show(await pictureFrom(url), { file, blob }); } finally { URL.revokeObjectURL(url); }
}

// One file is looked at, many make a table.
async function openAll(files) {
  const images = [...files];
  if (images.length === 1) return open(images[0]);
  if (!images.length) return null;
  $("h-files").scrollIntoView();
  return scoreFiles(images);
}

function scoreCode(form) {
  const { base64, file, options } = pad.image($("seen"));
  const image = { base64: base64 ?? "", file: file ?? "image.png", isFile: Boolean(file), isAltered: Boolean(state.result?.altered), manifest: state.model.manifest };
  const fields = asked({ ...options, importance_samples: Number($("k").value), alpha: alpha() });
  return form === "curl" ? offer("Score with curl", curl("v1/score", fields, image)) : offer("Score with Python", python("score", fields, image));
}

function sampleCode(form) {
  const fields = sampleRequest();
  return form === "curl" ? offer("Draw with curl", curl("v1/sample", fields)) : offer("Draw with Python", python("sample", fields));
}

function about({ manifest, bundle }) {
  $("description").textContent = manifest.description;
  $("cannot").textContent = cannotDo(manifest);
  const { image, latent, scoring, calibration } = manifest;
  const calibrated = scoring.calibrated_importance_samples;
  const facts = [
    ["Images", `${image.channels} × ${image.height} × ${image.width}, ${image.levels} levels, ${manifest.likelihood.kind.replace("_", " ")} likelihood`],
    ["Latents", `${latent.dim}: ${latent.groups.map((g) => `${g.name} ${g.channels}×${g.height}×${g.width}`).join(", ")}`],
    ["Parameters", manifest.parameters.toLocaleString("en")],
    ["Calibration", calibrated.length ? `${calibration.images} images, K = ${calibrated.join(", ")}` : "none"],
    ["License", manifest.license],
    ["Bundle", bundle],
  ];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  const rows = manifest.evaluation.map((figure) => [
    figure.estimator.replace("_", " "), String(figure.importance_samples), figure.value_nats.toFixed(2),
    figure.standard_error_nats.toFixed(2), figure.bits_per_dim.toFixed(4), `${figure.images} ${figure.split} images`,
  ]);
  $("measured").replaceChildren(...(rows.length
    ? [el("h3", {}, "Measured"), table(["figure", "K", "nats", "± s.e.", "bits/dim", "on"], rows)] : []));
}

function listen() {
  $("model").onchange = guarded(() => chooseModel());
  $("sample-form").onsubmit = (event) => { event.preventDefault(); guarded(draw)(); };
  $("output").onchange = guarded(draw);
  $("new-seed").onclick = guarded(async () => { newSeed(); await draw(); });
  $("save-sheet").onclick = guarded(saveSheet);
  $("sample-curl").onclick = guarded(() => sampleCode("curl"));
  $("sample-python").onclick = guarded(() => sampleCode("python"));
  $("pen").oninput = () => { pad.pen = Number($("pen").value); };
  $("colour").oninput = () => { pad.colour = $("colour").value; };
  for (const name of ["undo", "clear", "invert", "centre"]) $(name).onclick = () => pad[name]();
  for (const [button, field, use] of [["choose", "file", openAll], ["choose-many", "many", scoreFiles]]) {
    $(button).onclick = () => $(field).click();
    $(field).onchange = guarded(async () => {
      const files = [...$(field).files];
      $(field).value = "";
      await use(files);
    });
  }
  $("score").onclick = guarded(lookNow);
  $("score-curl").onclick = guarded(() => scoreCode("curl"));
  $("score-python").onclick = guarded(() => scoreCode("python"));
  $("link").onclick = guarded(() => {
    const isWhole = pad.blank || remembered("image");
    return offer(isWhole ? "Link to this page as it stands" : "Link to this page, without its image", location.href);
  });
  $("k").onchange = guarded(async () => { rememberScoring(); await chooseDistances(); await lookNow(); });
  $("alpha").oninput = () => { showAlpha(); showRows(); };
  $("alpha").onchange = guarded(lookNow); // the thresholds in words are the service's
  const changed = settled(drawChanged);
  $("sliders").oninput = changed;
  $("reset-sliders").onclick = () => { resetSliders(); changed(); };
  $("look-changed").onclick = () => lookAtChosen($("changed").src.split(",")[1]);
  $("keep").oninput = showKept;
  $("vary").onclick = guarded(() => vary(lookAtChosen));
  for (const slot of ["a", "b"]) {
    $(`take-${slot}`).onclick = () => take(slot, pad.image($("seen")), $("seen").toDataURL());
  }
  $("steps").onchange = () => remember({ steps: $("steps").value });
  $("interpolate").onclick = guarded(() => interpolate(lookAtChosen));
  $("stop").onclick = stop;
  $("save-csv").onclick = saveCsv;
  onRow(guarded(open));
  document.addEventListener("paste", guarded((event) => openAll(event.clipboardData.files)));
  const isFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.ondragover = (event) => { if (isFiles(event)) event.preventDefault(); };
  document.ondrop = guarded(async (event) => {
    if (!isFiles(event)) return;
    event.preventDefault(); // else the browser leaves the page for the file
    await openAll(await dropped(event.dataTransfer.items));
  });
  $("drop").ondragover = () => $("drop").classList.add("over");
  $("drop").ondragleave = () => $("drop").classList.remove("over");
  $("drop").ondrop = () => $("drop").classList.remove("over");
  // Another link, pasted into this tab; the skip link's is none of the state's.
  window.onhashchange = () => { if (location.hash.includes("=")) location.reload(); };
}

listen();
guarded(start)();
