// What the page asks, for a shell and for Python.

import { $ } from "./dom.js";

const INLINE = 4000; // characters of an image that stands in the text itself

const here = () => new URL("./", document.baseURI).href;
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// `fields` as JSON where the image, if one is asked about, is short; else as a form with its file.
export function curl(path, fields, image) {
  const hasKey = sessionStorage.getItem("iafvae-key") !== null;
  const start = ["curl -s", ...(hasKey ? ['-H "Authorization: Bearer $KEY"'] : []), shell(here() + path)];
  if (image && isLong(image)) {
    const form = Object.entries({ ...fields }).map(([name, value]) => `-F ${shell(`${name}=${value}`)}`);
    const name = image.file.replace(/[\\"]/g, "\\$&"); // in quotes, else curl ends it at "," and ";"
    return [...start, ...form, `-F ${shell(`files=@"${name}"`)}`].join(" \\\n  ");
  }
  const body = image ? { ...fields, images: [image.base64] } : fields;
  return [...start, "-H 'content-type: application/json'", `-d ${shell(JSON.stringify(body))}`].join(" \\\n  ");
}

export function python(method, { model, resize, convert, ...options }, image) {
  const hasKey = sessionStorage.getItem("iafvae-key") !== null;
  const given = Object.entries(options).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  const who = [JSON.stringify(here().replace(/\/$/, "")), `model=${JSON.stringify(model)}`];
  const lines = [];
  if (hasKey) { lines.push("import os"); who.push('key=os.environ["KEY"]'); }
  if (image) {
    const { image: { channels, height, width }, fit = "crop" } = image.manifest;
    const [module, data] = isLong(image)
      ? ["from pathlib import Path", `Path(${JSON.stringify(image.file)}).read_bytes()`]
      : ["import base64", `base64.b64decode(${JSON.stringify(image.base64)})`];
    lines.push(module, "", ...(image.isAltered ? ["import numpy as np", ""] : []), "from service.client import Client", "from service.codecs.images import read_image", "");
    lines.push(`data = ${data}`, `image = read_image(data, channels=${channels}, height=${height}, width=${width}, fit=${JSON.stringify(fit)})`);
    given.unshift("image[None]");
    if (image.isAltered) given.push("altered=np.array([True])");
  } else {
    lines.push("from service.client import Client", "");
  }
  const shown = image ? ".p_value" : ".images.shape";
  lines.push(`with Client(${who.join(", ")}) as client:`, `    print(client.${method}(${given.join(", ")})${shown})`);
  return lines.join("\n");
}

const isLong = ({ isFile, base64 }) => isFile || base64.length > INLINE;

// Show `text` to copy, and copy it where the browser lets a page do so.
export async function offer(title, text) {
  $("code-head").textContent = title;
  $("code-text").value = text;
  $("code-status").textContent = "";
  $("code").showModal();
  $("code-text").select();
  try {
    await navigator.clipboard.writeText(text);
    $("code-status").textContent = "Copied.";
  } catch {
    $("code-status").textContent = "This browser lets a page copy over https alone: copy it from here.";
  }
}
