// What the parts of the page share, and its copy in the address.

export const state = {
  model: null, // as /v1/models describes it
  name: "", // as requests name it
  distances: new Map(), // K -> calibration's distances
  alphas: [], // the thresholds that the slider goes over
  result: null, // the score that is shown
};

const KEPT = 8000; // characters of an image in an address
const kept = new URLSearchParams(location.hash.slice(1));

export const remembered = (name) => kept.get(name);

// Put `fields` into the address; what is null leaves it.
export function remember(fields) {
  for (const [name, value] of Object.entries(fields)) {
    if (value === null || String(value).length > KEPT) kept.delete(name);
    else kept.set(name, value);
  }
  history.replaceState(null, "", `#${kept}`);
}

// In an address "+" and "/" of base64 would each take three characters.
export const toAddress = (base64) => base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
export const fromAddress = (text) => text.replaceAll("-", "+").replaceAll("_", "/").padEnd(4 * Math.ceil(text.length / 4), "=");

// The model's name and `options` of a request.
export const asked = (options) => ({ model: state.name, ...options });
