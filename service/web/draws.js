// Images that the model draws.

import { post, pngUrl, timing } from "./api.js";
import { $, el, gallery, save } from "./dom.js";
import { remember, remembered, state, asked } from "./state.js";

const MAX_SLIDERS = 6; // with more latent groups, one temperature serves all

export function sampleRequest() {
  const sliders = [...$("temperatures").querySelectorAll("input")].map((slider) => Number(slider.value));
  return asked({
    n: Number($("n").value),
    seed: Number($("seed").value),
    temperature: sliders.length === 1 ? sliders[0] : sliders,
    output: $("output").value,
  });
}

let running = null;

// Gives the images in base64, none where another model was chosen meanwhile; `chosen` is called with
// one that was clicked. Newer ones end it.
export async function drawSamples(chosen) {
  running?.abort();
  const { signal } = running = new AbortController();
  const { model } = state;
  const request = sampleRequest();
  remember({ n: request.n, seed: request.seed, output: request.output, temperature: request.temperature });
  $("samples").setAttribute("aria-busy", "true");
  try {
    const { response, data } = await post("v1/sample", request, { signal });
    if (state.model !== model) return null;
    gallery($("samples"), data.images.map((base64, index) => ({
      url: pngUrl(base64), text: `Drawn image ${index + 1} of ${data.images.length}`,
    })), (index) => chosen(data.images[index]));
    $("sample-status").textContent = timing(response);
    return data.images;
  } finally {
    if (!signal.aborted) $("samples").setAttribute("aria-busy", "false");
  }
}

export async function saveSheet() {
  const { data } = await post("v1/sample", sampleRequest(), { accept: "image/png" });
  save(data, `${state.model.name}-seed-${$("seed").value}.png`);
}

export function newSeed() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}

export function temperatureSliders(groups, changed) {
  const names = groups.length <= MAX_SLIDERS ? groups.map((group) => group.name) : ["all groups"];
  const before = (remembered("temperature") ?? "").split(",");
  $("temperatures").replaceChildren(...names.map((name, index) => {
    const start = before.length === names.length && before[index] !== "" ? Number(before[index]) : 1;
    const value = el("output", {}, start.toFixed(2));
    const slider = el("input", { type: "range", min: 0, max: 1.5, step: 0.05, value: start });
    slider.oninput = () => { value.textContent = Number(slider.value).toFixed(2); };
    slider.onchange = changed;
    return el("label", {}, el("span", {}, names.length > 1 ? `Temperature of ${name} ` : "Temperature ", value), slider);
  }));
}
