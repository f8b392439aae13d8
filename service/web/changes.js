// Images on the way from one to another, and what becomes of an image when its latents change.

import { pngUrl, post, timing } from "./api.js";
import { $, el, gallery } from "./dom.js";
import { asked, remember, remembered, state } from "./state.js";
import { floatsOf } from "./npy.js";

const MAX_SLIDERS = 32; // latents that a person can move one by one
const OTHERS = 8;

const slots = {};
let noise = null; // the image's own prior noise: {npy, values}
const running = {}; // what was asked last, by kind: a newer one ends it, as does another model

function begin(kind) {
  running[kind]?.abort();
  running[kind] = new AbortController();
  return running[kind].signal;
}

const isLadder = () => state.model.manifest.latent.groups.length > 1;

export function chooseChanges({ manifest: { latent } }) {
  for (const one of Object.values(running)) one.abort();
  for (const slot of ["a", "b"]) { delete slots[slot]; $(`slot-${slot}`).hidden = true; }
  $("interpolate").disabled = true;
  for (const id of ["between", "variations"]) $(id).replaceChildren();
  $("ladder").hidden = !isLadder();
  $("flat").hidden = isLadder();
  const top = Math.min(Number(remembered("keep") ?? Math.ceil(latent.groups.length / 2)), latent.groups.length - 1);
  Object.assign($("keep"), { min: 0, max: latent.groups.length - 1, value: Math.max(0, top) });
  showKept();
  showNoise(null);
}

const kept = () => state.model.manifest.latent.groups.slice(0, Number($("keep").value)).map((group) => group.name);

export function showKept() {
  const { groups } = state.model.manifest.latent;
  const names = kept();
  $("keep-value").textContent = names.length ? `${names.join(", ")} of ${groups.length}` : "none";
  $("keep").setAttribute("aria-valuetext", $("keep-value").textContent);
}

// `npy`: the prior's noise of the image that is looked at; null without one.
export function showNoise(npy) {
  running.changed?.abort();
  noise = npy && { npy, values: [...floatsOf(npy)] };
  $("vary").disabled = !noise;
  drawLatents(noise?.values ?? []);
  if (!isLadder()) showSliders();
}

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
  const largest = Math.max(3, ...shown.map((value) => Math.abs(value || 0)));
  const step = canvas.width / Math.max(1, shown.length);
  shown.forEach((value, index) => {
    const height = ((value || 0) / largest) * (middle - 2);
    context.fillRect(index * step, middle, Math.max(1, step * 0.8), -height);
  });
}

function showSliders() {
  const values = noise?.values ?? [];
  // Where they are too many, those that the image moves farthest.
  const places = values.map((_, index) => index).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, MAX_SLIDERS);
  const sliders = places.sort((a, b) => a - b).map((place) => {
    const slider = el("input", { type: "range", min: -4, max: 4, step: 0.05, value: values[place] });
    slider.dataset.place = place;
    return el("label", {}, el("span", {}, `z${place + 1}`), slider);
  });
  $("sliders").replaceChildren(...sliders);
  $("of-sliders").hidden = !noise;
  $("changed").removeAttribute("src");
  $("look-changed").disabled = true;
}

// The image of the sliders as they stand.
export async function drawChanged() {
  if (!noise) return; // gone since the slider moved
  const values = [...noise.values];
  for (const slider of $("sliders").querySelectorAll("input")) values[slider.dataset.place] = Number(slider.value);
  const signal = begin("changed");
  const { data } = await post("v1/sample", asked({ prior_eps: [values] }), { signal });
  $("changed").src = pngUrl(data.images[0]);
  $("look-changed").disabled = false;
}

export function resetSliders() {
  for (const slider of $("sliders").querySelectorAll("input")) slider.value = noise.values[slider.dataset.place];
}

function base64Of(buffer) {
  let text = "";
  for (const byte of new Uint8Array(buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}

// Keep the image's top latents and draw the others anew.
export async function vary(chosen) {
  remember({ keep: $("keep").value });
  const body = asked({ prior_eps: base64Of(noise.npy), keep: kept(), n: OTHERS });
  const { response, data } = await post("v1/sample", body, { signal: begin("vary") });
  gallery($("variations"), data.images.map((base64, index) => ({
    url: pngUrl(base64), text: `Variation ${index + 1} of ${data.images.length}`,
  })), (index) => chosen(data.images[index]));
  $("vary-status").textContent = timing(response);
}

export function take(slot, { blob, options }, url) {
  slots[slot] = { blob, options };
  Object.assign($(`slot-${slot}`), { src: url, hidden: false, alt: `Image ${slot.toUpperCase()}` });
  $("interpolate").disabled = !(slots.a && slots.b);
}

export async function interpolate(chosen) {
  const { a, b } = slots;
  const fields = asked({ ...a.options, ...b.options, n: Number($("steps").value) });
  const { response, data } = await post("v1/interpolate", fields, { files: [a.blob, b.blob], signal: begin("interpolate") });
  gallery($("between"), data.images.map((base64, index) => ({
    url: pngUrl(base64), text: `Step ${index + 1} of ${data.images.length} from A to B`,
  })), (index) => chosen(data.images[index]));
  $("between-status").textContent = timing(response);
}
